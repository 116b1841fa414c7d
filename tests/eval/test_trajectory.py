"""Trajectory errors against a problem with a closed-form solution."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eval.trajectory import fingerprint, reference_solution, rms, trajectory_errors
from samplers import ClassifierFreeGuidance, sample
from samplers.noise import SampleNoise
from scoremodels.model import ScoreModel

Make = Callable[..., ScoreModel]


def exact_end(x: Tensor, sigma: float, deviation: float = 0.5) -> Tensor:
    """Where ``dx/dσ = σ x/(s² + σ²)`` ends at σ = 0 from x at ``sigma``: ``x s/sqrt(s² + σ²)``."""
    return x * deviation / (deviation**2 + sigma**2) ** 0.5


def test_the_reference_is_the_exact_solution(gaussian_model: Make) -> None:
    model = gaussian_model(shape=(6,))
    start = SampleNoise(range(7, 12), (6,))() * 80.0
    reference = reference_solution(model, num=5, seed=7, nfe=128, batch=2)
    torch.testing.assert_close(reference.end_points[0.0], exact_end(start, 80.0), rtol=2e-5, atol=2e-6)


def test_the_reported_convergence_bounds_the_error_of_the_reference(gaussian_model: Make) -> None:
    model = gaussian_model(shape=(6,))
    start = SampleNoise(range(20), (6,))() * 80.0
    reference = reference_solution(model, num=20, nfe=24)
    error = rms(reference.end_points[0.0] - exact_end(start, 80.0))
    assert 0 < error < reference.convergence[0.0]


def test_the_reference_also_stops_where_training_ends(gaussian_model: Make) -> None:
    model = gaussian_model(shape=(6,))
    reference = reference_solution(model, num=4, nfe=64)
    assert set(reference.end_points) == {0.0, 0.002}
    ratio = (0.5**2 + 0.002**2) ** 0.5 / 0.5
    torch.testing.assert_close(reference.end_points[0.002], reference.end_points[0.0] * ratio, rtol=1e-5, atol=1e-6)


def test_errors_are_rms_distances_per_sample() -> None:
    samples = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    errors = trajectory_errors(samples, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(errors, torch.tensor([12.5**0.5, 0.0], dtype=torch.float64))


def test_errors_of_ddim_halve_when_its_evaluations_double(gaussian_model: Make) -> None:
    model = gaussian_model(shape=(6,))
    reference = reference_solution(model, num=8, nfe=128).end_points[0.0]
    errors = [trajectory_errors(sample(model, num=8, solver="ddim", nfe=n, grid="log-snr", end="clean").samples,
                                reference).square().mean().sqrt() for n in (40, 80)]
    assert 1.7 < (errors[0] / errors[1]).item() < 2.3


def test_a_second_reference_costs_no_evaluation(gaussian_model: Make) -> None:
    model = gaussian_model(shape=(6,))
    first = reference_solution(model, num=3, nfe=16)
    calls = model.network.calls
    assert calls == 16 + 8
    assert reference_solution(model, num=3, nfe=16) is first
    assert model.network.calls == calls


def test_changed_weights_are_solved_anew(gaussian_model: Make) -> None:
    model = gaussian_model(shape=(6,))
    first = reference_solution(model, num=3, nfe=16)
    model.network.deviation.data.mul_(2)
    assert reference_solution(model, num=3, nfe=16) is not first


def test_guidance_does_not_change_the_fingerprint(gaussian_model: Make) -> None:
    model = gaussian_model(num_classes=3)
    assert fingerprint(ClassifierFreeGuidance(model, 2.0)) == fingerprint(model)


def test_other_weights_have_another_fingerprint(gaussian_model: Make) -> None:
    assert fingerprint(gaussian_model(0.5)) != fingerprint(gaussian_model(0.25))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="same seeds"):
        trajectory_errors(torch.zeros(2, 3), torch.zeros(3, 3))


def test_a_reference_of_few_evaluations_is_refused(gaussian_model: Make) -> None:
    with pytest.raises(ValueError, match="at least 8"):
        reference_solution(gaussian_model(), num=1, nfe=7)
