"""Differential operators: what they are exact on, and what passes through them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from odecore.learn.fit import adam, fit
from odecore.learn.function_library import Library
from odecore.learn.operators import PRETRAINED, DerivativeOperator, slope_loss, with_derivatives

OPERATOR = DerivativeOperator(9, (16,), seed=0).requires_grad_(False)
TIMES = torch.cumsum(0.1 + 0.2 * torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 0)
VALUES = torch.sin(3 * TIMES)[:, None] * torch.tensor([1.0, -2.0, 0.5]) + torch.cos(TIMES)[:, None]
RUNS = torch.stack((VALUES, VALUES.flip(0) ** 2))


def test_parabolas_at_irregular_times_are_differentiated_exactly() -> None:
    a, b, c = torch.randn(3, 2, 1, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = TIMES[None, :, None]
    torch.testing.assert_close(OPERATOR(a + b * t + c * t**2, TIMES), b + 2 * c * t, rtol=1e-9, atol=1e-9)


def test_what_a_parabola_reproduces_adds_its_derivative() -> None:
    t = TIMES[None, :, None]
    torch.testing.assert_close(OPERATOR(RUNS + 3 - 2 * t + t**2, TIMES), OPERATOR(RUNS, TIMES) - 2 + 2 * t,
                               rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [3.0, -0.01])
def test_scale_sign_and_shift_of_values_pass_through(scale: float) -> None:
    torch.testing.assert_close(OPERATOR(scale * RUNS + 7, TIMES), scale * OPERATOR(RUNS, TIMES), rtol=1e-4,
                               atol=1e-5 * abs(scale))


def test_units_and_origin_of_time_pass_through() -> None:
    torch.testing.assert_close(OPERATOR(RUNS, 5 * TIMES - 3), OPERATOR(RUNS, TIMES) / 5, rtol=1e-4, atol=1e-5)


def test_coordinates_and_runs_do_not_see_each_other() -> None:
    one = OPERATOR(RUNS[1:, :, 2:], TIMES)
    torch.testing.assert_close(OPERATOR(RUNS, TIMES)[1:, :, 2:], one, rtol=1e-5, atol=1e-6)


def test_without_its_network_it_is_the_local_parabola() -> None:
    silent = DerivativeOperator(9, (4,))
    with torch.no_grad():
        for parameter in silent.parameters():
            parameter.zero_()
    found = silent(RUNS, TIMES)
    basis = torch.stack([(TIMES[3:12] - TIMES[7]) ** k for k in range(3)], 1)  # the window around the eighth time
    expected = (torch.linalg.pinv(basis) @ RUNS[:, 3:12])[:, 1]
    torch.testing.assert_close(found[:, 7], expected, rtol=1e-9, atol=1e-9)


def check_slopes(function: Library, count: int) -> None:
    made = function.sample(count, 3)
    fine = function.functions(count, torch.Generator().manual_seed(4))
    u = torch.linspace(-0.9, 0.9, function.length, dtype=torch.float64).expand(count, -1).clone()
    slope = torch.func.jvp(fine, (u,), (torch.ones_like(u),))[1]
    torch.testing.assert_close((fine(u + 1e-5) - fine(u - 1e-5)) / 2e-5, slope, rtol=1e-5, atol=1e-6)
    assert made.values.shape == made.times.shape == made.slopes.shape == (count, function.length)


def test_the_slopes_of_the_library_are_those_of_its_functions() -> None:
    check_slopes(Library(12), 50)


def test_the_library_depends_on_the_seed_alone_and_its_times_increase() -> None:
    first, again, other = (Library().sample(20, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.values, other.values) and bool((first.times.diff(dim=1) > 0).all())


def test_noise_is_of_the_level_asked_for() -> None:
    clean, noisy = (Library(200, noise=(0.1, 0.1), clean=clean).sample(400, 5) for clean in (1.0, 0.0))
    level = (noisy.values - clean.values).std(1) / clean.values.std(1)
    assert float(level.mean()) == pytest.approx(0.1, rel=0.02)


def test_training_improves_on_the_parabola() -> None:
    operator, library = DerivativeOperator(9, (32,), seed=0), Library(9)
    test = library.sample(2000, 10**6)
    with torch.no_grad():
        for parameter in (silent := DerivativeOperator(9, (4,))).parameters():
            parameter.zero_()
        before = slope_loss(silent, test)
    fit(operator, slope_loss, lambda step: library.sample(300, step), steps=80, optimizer=adam(5e-3))
    assert float(slope_loss(operator, test).detach()) < 0.8 * float(before)


def test_an_operator_comes_back_from_its_folder(tmp_path: Path) -> None:
    OPERATOR.save(tmp_path)
    torch.testing.assert_close(DerivativeOperator.load(tmp_path)(RUNS, TIMES), OPERATOR(RUNS, TIMES), rtol=0, atol=0)


def test_the_operator_that_comes_with_the_library_is_small_and_beats_differences_of_noisy_samples() -> None:
    assert (PRETRAINED / "ndo" / "model.safetensors").stat().st_size <= 300_000
    t = torch.linspace(0, 10, 100, dtype=torch.float64)
    noise = torch.randn(5, 100, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.sin(t)[None, :, None] + 0.02 * noise
    wrong = DerivativeOperator.load()(x, t) - torch.cos(t)[None, :, None]
    differences = torch.gradient(x, spacing=(t,), dim=1)[0] - torch.cos(t)[None, :, None]
    assert float(wrong.square().mean()) < 0.25 * float(differences.square().mean())


def test_derivatives_join_the_loss_of_trajectories() -> None:
    def nothing(module: nn.Module, batch: object) -> Tensor:
        return torch.zeros((), requires_grad=True) * 1.0

    field = nn.Linear(1, 1, bias=False)
    x = torch.tensor([[1.0], [2.0]])
    loss = with_derivatives(nothing, x, torch.zeros(2), -3 * x, weight=2.0, field=lambda module: lambda y, t: module(y))
    fit(field, loss, lambda step: None, steps=200, optimizer=adam(0.1))
    assert float(field.weight.detach()) == pytest.approx(-3.0, abs=1e-2)
    parts = loss(field, None)
    assert isinstance(parts, dict) and set(parts) == {"trajectory", "derivative"}


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        DerivativeOperator(3)
    with pytest.raises(ValueError, match="at least window=9"):
        OPERATOR(RUNS[:, :5], TIMES[:5])
    with pytest.raises(ValueError, match="must increase"):
        OPERATOR(RUNS, TIMES.flip(0))
    with pytest.raises(ValueError, match="holds no operator"):
        DerivativeOperator.load(Path("nowhere"))
    with pytest.raises(ValueError, match="two noise levels in order"):
        Library(noise=(1.0, 0.1))
