"""Exact denoisers against linear algebra, the score of their own density, and brute force on real images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from torch import Tensor

from eval.data import fashion_mnist
from scoremodels.analytic import EmpiricalModel, GaussianModel, MixtureModel
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

SCHEDULES = [DiscreteVP.linear(), DiscreteVP.scaled_linear().zero_terminal_snr(), ContinuousVP(), VE(), EDM(),
             RectifiedFlow(), RectifiedFlow(3.0, 1000.0)]
EYE = torch.eye(6, dtype=torch.float64)
EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def times(schedule: NoiseSchedule) -> list[float]:
    return [schedule.t_min + f * (schedule.t_max - schedule.t_min) for f in (0.0, 0.01, 0.3, 0.99)]


def gaussian(schedule: NoiseSchedule) -> GaussianModel:
    root = normal(6, 6)
    return GaussianModel(normal(2, 3, seed=1), root @ root.T / 6, schedule)


def mixture(schedule: NoiseSchedule) -> MixtureModel:
    return MixtureModel(normal(4, 2, 3), [0.1, 0.5, 1.0, 0.0], [1.0, 2.0, 0.5, 1.5], schedule)


@EVERY_SCHEDULE
def test_the_gaussian_denoiser_solves_its_normal_equations(schedule: NoiseSchedule) -> None:
    root, mean, x = normal(6, 6), normal(2, 3, seed=1), normal(5, 2, 3, seed=2)
    covariance = root @ root.T / 6
    for t in times(schedule):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        inner = torch.linalg.solve(alpha**2 * covariance + sigma**2 * EYE, (x - alpha * mean).flatten(1).T)
        expected = mean + (alpha * covariance @ inner).T.reshape(x.shape)
        torch.testing.assert_close(gaussian(schedule).denoise(x, t), expected, rtol=1e-9, atol=1e-9)


@EVERY_SCHEDULE
def test_the_mixture_denoiser_is_the_score_of_its_density(schedule: NoiseSchedule) -> None:
    """Tweedie's formula: E[x0 | x] = (x + σ² ∇ log p(x)) / α, the gradient taken by autograd."""
    model = mixture(schedule)
    means, stds = normal(4, 2, 3).flatten(1), torch.tensor([0.1, 0.5, 1.0, 0.0], dtype=torch.float64)
    log_weights = torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64).log()
    for t in times(schedule)[1:]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = normal(5, 6, seed=2).requires_grad_()
        variance = alpha**2 * stds**2 + sigma**2
        exponents = -(x[:, None] - alpha * means).square().sum(-1) / (2 * variance) - 3 * variance.log() + log_weights
        (score,) = torch.autograd.grad(exponents.logsumexp(1).sum(), x)
        expected = ((x + sigma**2 * score) / alpha).detach().reshape(5, 2, 3)
        torch.testing.assert_close(model.denoise(x.detach().reshape(5, 2, 3), t), expected, rtol=1e-7, atol=1e-9)


@EVERY_SCHEDULE
def test_a_mixture_of_one_is_a_gaussian(schedule: NoiseSchedule) -> None:
    mean, x = normal(2, 3), normal(5, 2, 3, seed=3)
    one = MixtureModel(mean[None], [0.7], [1.0], schedule)
    plain = GaussianModel(mean, 0.49 * EYE, schedule)
    for t in (*times(schedule), schedule.t_clean, schedule.t_max):
        torch.testing.assert_close(one.denoise(x, t), plain.denoise(x, t), rtol=1e-10, atol=1e-10)


@EVERY_SCHEDULE
def test_a_mixture_of_points_is_a_data_set(schedule: NoiseSchedule) -> None:
    points, x = normal(20, 2, 3), normal(5, 2, 3, seed=3)
    a = MixtureModel(points, [0.0] * 20, [1.0] * 20, schedule)
    b = EmpiricalModel(points, schedule, chunk=7)
    for t in (*times(schedule), schedule.t_max):
        torch.testing.assert_close(a.denoise(x, t), b.denoise(x, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", [gaussian, mixture, lambda s: EmpiricalModel(normal(9, 2, 3), s)])
@EVERY_SCHEDULE
def test_without_noise_the_state_is_the_sample(schedule: NoiseSchedule, make) -> None:  # noqa: ANN001
    x = normal(3, 2, 3, seed=4)
    assert torch.equal(make(schedule).denoise(x, schedule.t_clean), x)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), DiscreteVP.linear().zero_terminal_snr()])
def test_pure_noise_is_denoised_to_the_mean(schedule: NoiseSchedule) -> None:
    images = normal(9, 2, 3)
    for model, mean in ((gaussian(schedule), normal(2, 3, seed=1)), (EmpiricalModel(images, schedule), images.mean(0))):
        result = model.denoise(normal(3, 2, 3, seed=4), schedule.t_max)
        torch.testing.assert_close(result, mean.expand(3, 2, 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [gaussian, mixture, lambda s: EmpiricalModel(normal(9, 2, 3), s)])
def test_each_state_is_denoised_at_its_own_time(make) -> None:  # noqa: ANN001
    model, x, t = make(EDM()), normal(3, 2, 3, seed=4), torch.tensor([0.01, 1.0, 70.0], dtype=torch.float64)
    together = model(x, t)
    for i in range(3):
        torch.testing.assert_close(together[i: i + 1], model(x[i: i + 1], float(t[i])), rtol=1e-12, atol=1e-12)


def test_the_covariance_may_be_singular() -> None:
    """Data on a line: what lies across it is noise."""
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    model = GaussianModel(torch.zeros(2), torch.outer(direction, direction), EDM())
    x = 2.0 * direction + torch.tensor([-0.8, 0.6], dtype=torch.float64)
    torch.testing.assert_close(model.denoise(x[None], 1.0), direction[None], rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def fashion() -> Tensor:
    try:
        images, _ = fashion_mnist("test")
    except ValueError as error:
        pytest.skip(str(error))
    return images[:600].double() / 127.5 - 1


@pytest.mark.parametrize("sigma", [0.002, 0.02, 0.2, 1.0, 5.0, 80.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_real_images_are_denoised_as_by_brute_force(fashion: Tensor, sigma: float, dtype: torch.dtype) -> None:
    noise = normal(3, 1, 28, 28, seed=5)
    # Half way between two images, so that more than one has weight where σ allows it.
    x = ((fashion[:3] + fashion[3:6]) / 2 * 0.5 + fashion[:3] * 0.5 + sigma * noise).to(dtype)
    model = EmpiricalModel(fashion.to(dtype), EDM(), chunk=128)
    known = fashion.to(dtype).double()
    for i in range(3):
        logits = -(x[i].double() - known).square().sum((1, 2, 3)).numpy() / (2 * sigma**2)
        weights = torch.from_numpy(np.exp(logits - logsumexp(logits)))
        expected = torch.einsum("n,nchw->chw", weights, fashion)
        tolerance = 1e-9 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(model(x, sigma)[i].double(), expected, rtol=tolerance, atol=tolerance)


def test_a_slightly_noisy_image_is_found_again(fashion: Tensor) -> None:
    model = EmpiricalModel(fashion.float(), DiscreteVP.linear(), chunk=100)
    x = model.schedule.alpha(50.0) * fashion[:8] + model.schedule.sigma(50.0) * normal(8, 1, 28, 28)
    torch.testing.assert_close(model.denoise(x.float(), 50.0), fashion[:8].float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_chunk_does_not_matter(chunk: int) -> None:
    images, x = normal(30, 1, 4, 4), normal(5, 1, 4, 4, seed=1)
    reference = EmpiricalModel(images, EDM(), chunk=30)(x, 0.8)
    torch.testing.assert_close(EmpiricalModel(images, EDM(), chunk=chunk)(x, 0.8), reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("make", [gaussian, mixture, lambda s: EmpiricalModel(normal(9, 2, 3), s)])
def test_states_keep_their_dtype(make, dtype: torch.dtype) -> None:  # noqa: ANN001
    model: ScoreModel = make(EDM())
    x = normal(3, 2, 3, seed=4)
    result = model(x.to(dtype), 1.0)
    assert result.dtype == dtype
    exact = model(x.to(dtype).double(), 1.0)
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(("make", "match"), [
    (lambda: GaussianModel(torch.zeros(2), torch.eye(3), EDM()), "covariance has shape"),
    (lambda: GaussianModel(torch.zeros(2), [[1.0, 0.5], [0.4, 1.0]], EDM()), "symmetric"),
    (lambda: GaussianModel(torch.zeros(2), [[1.0, 2.0], [2.0, 1.0]], EDM()), "semidefinite"),
    (lambda: GaussianModel([0.0, math.nan], torch.eye(2), EDM()), "finite"),
    (lambda: MixtureModel(torch.zeros(2, 3), [1.0], [1.0, 1.0], EDM()), "shapes"),
    (lambda: MixtureModel(torch.zeros(2, 3), [1.0, -1.0], [1.0, 1.0], EDM()), "stds"),
    (lambda: MixtureModel(torch.zeros(2, 3), [1.0, 1.0], [1.0, 0.0], EDM()), "weights"),
    (lambda: EmpiricalModel(torch.zeros(0, 1, 2, 2), EDM()), "at least one"),
    (lambda: EmpiricalModel(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), EDM()), "127.5"),
    (lambda: EmpiricalModel(torch.full((3, 1, 2, 2), math.inf), EDM()), "finite"),
    (lambda: EmpiricalModel(torch.zeros(3, 1, 2, 2), EDM(), chunk=0), "chunk=0"),
])
def test_impossible_distributions_are_refused(make, match: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=match):
        make()
