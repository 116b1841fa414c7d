"""Taylor–Lagrange steps: orders, exactness, error estimates, training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from odecore.driver.integrate import integrate
from odecore.driver.solve import solve
from odecore.explicit.taylor import Taylor
from odecore.half_steps import HalfSteps
from odecore.learn.callbacks import every
from odecore.learn.fit import Moment, adam, fit
from odecore.learn.taylor_lagrange import (
    DiagonalMidpoint,
    MatrixMidpoint,
    OrderDifference,
    Starts,
    TaylorLagrange,
    fit_midpoint,
    roll,
    starts,
)

STARTS = torch.tensor([[0.3, -0.1], [2.0, 0.4]], dtype=torch.float64)


def forced(y: Tensor, t: Tensor) -> Tensor:
    return torch.stack((-y[:, 0] + torch.cos(5 * t), torch.sin(y[:, 1]) * y[:, 0]), 1)


def exact(y0: Tensor, t0: float, t1: float) -> Tensor:
    from odecore.explicit.embedded import DOP853

    return solve(DOP853, forced, y0, t0, t1, rtol=1e-13, atol=1e-13).y


def untrained(degree: int, kind: type[DiagonalMidpoint] | type[MatrixMidpoint] = DiagonalMidpoint) -> TaylorLagrange:
    return TaylorLagrange(degree, kind(2, degree, hidden=(8,)).double())


def moved(midpoint: nn.Module) -> nn.Module:
    """Weights that no training would choose."""
    with torch.no_grad():
        for parameter in midpoint.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return midpoint


def slope(stepper: TaylorLagrange) -> float:
    counts = [10, 14, 20, 28]
    errors = [(integrate(stepper, forced, STARTS, torch.linspace(0, 0.5, n + 1, dtype=torch.float64)).y
               - exact(STARTS, 0.0, 0.5)).norm().item() for n in counts]
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", [DiagonalMidpoint, MatrixMidpoint])
def test_before_training_the_order_is_two_above_the_degree(
    degree: int, kind: type[DiagonalMidpoint] | type[MatrixMidpoint]
) -> None:
    assert abs(slope(untrained(degree, kind)) - (degree + 2)) < 0.15


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_with_any_weights_the_order_is_the_declared_one(degree: int) -> None:
    stepper = TaylorLagrange(degree, moved(DiagonalMidpoint(2, degree).double()))
    assert abs(slope(stepper) - stepper.order) < 0.15


def test_without_a_move_the_step_is_that_of_taylor() -> None:
    t0, t1 = torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([0.4, 0.1], dtype=torch.float64)
    step = TaylorLagrange(2, lambda y, t, h, slope: (y, t)).step(forced, t0, t1, STARTS, ())
    torch.testing.assert_close(step.y, Taylor(3).step(forced, t0, t1, STARTS, ()).y, rtol=1e-14, atol=1e-15)


def test_a_degree_of_zero_is_the_midpoint_rule() -> None:
    t0, t1 = torch.zeros(2, dtype=torch.float64), torch.full((2,), 0.2, dtype=torch.float64)
    step = untrained(0).step(forced, t0, t1, STARTS, ())
    middle = STARTS + 0.1 * forced(STARTS, t0)
    torch.testing.assert_close(step.y, STARTS + 0.2 * forced(middle, t0 + 0.1), rtol=1e-15, atol=1e-15)
    assert step.nfe == 2


def test_the_time_of_the_remainder_stays_within_the_step() -> None:
    midpoint = DiagonalMidpoint(2, 1).double()
    t, h = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([0.5, -0.5], dtype=torch.float64)
    for correction, wanted in ((9.0, t + h), (-9.0, t)):
        with torch.no_grad():
            midpoint.constant[-1] = correction
        assert torch.equal(midpoint(STARTS, t, h, STARTS)[1], wanted)


def test_a_constant_matrix_makes_steps_of_a_linear_problem_exact() -> None:
    matrix = torch.tensor([[-3.0, 1.0], [0.5, -1.0]], dtype=torch.float64)
    y = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t0, t1 = torch.zeros(20, dtype=torch.float64), torch.full((20,), 0.5, dtype=torch.float64)
    stepper = TaylorLagrange(1, MatrixMidpoint(2, 1).double())

    def lbfgs(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(parameters, max_iter=100, tolerance_grad=0, tolerance_change=0,
                                 line_search_fn="strong_wolfe")

    def loss(midpoint: nn.Module, batch: Tensor) -> Tensor:
        step = TaylorLagrange(1, midpoint).step(lambda y, t: y @ matrix.T, t0, t1, y, ())
        return (step.y - y @ torch.matrix_exp(matrix.T / 2)).square().mean()

    fit(stepper.midpoint, loss, lambda step: None, steps=3, optimizer=lbfgs)
    step = stepper.step(lambda y, t: y @ matrix.T, t0, t1, y, ())
    torch.testing.assert_close(step.y, y @ torch.matrix_exp(matrix.T / 2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_error_estimates_shrink_as_declared(degree: int) -> None:
    t0, sizes = torch.tensor([0.3], dtype=torch.float64), [0.04, 0.02, 0.01, 0.005]
    for stepper in (untrained(degree), OrderDifference(untrained(degree))):
        errors = [stepper.step(forced, t0, t0 + h, STARTS[:1], ()).error.norm().item() for h in sizes]
        assert abs(float(np.polyfit(np.log(sizes), np.log(errors), 1)[0]) - stepper.error_order) < 0.15


@pytest.mark.parametrize("degree", [1, 3])
def test_adaptive_solves_meet_their_tolerance(degree: int) -> None:
    for stepper in (OrderDifference(untrained(degree)), HalfSteps(untrained(degree))):
        solution = solve(stepper, forced, STARTS, 0.0, 2.0, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(solution.y, exact(STARTS, 0.0, 2.0), rtol=0, atol=2e-5)


def test_evaluations_are_counted_in_linear_operations() -> None:
    layer = nn.Linear(2, 2, dtype=torch.float64)
    t0, t1 = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    for stepper in (TaylorLagrange(3, lambda y, t, h, slope: (y, t)), OrderDifference(untrained(2)), untrained(1)):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
            step = stepper.step(lambda y, t: torch.tanh(layer(y)), t0, t1, STARTS, ())
        linear = sum(event.count for event in profile.key_averages() if event.key == "aten::linear")
        own = 0 if isinstance(stepper, TaylorLagrange) and not isinstance(stepper.midpoint, nn.Module) else 2
        assert linear - own == step.nfe


def test_gradients_are_those_of_finite_differences() -> None:
    midpoint = moved(MatrixMidpoint(2, 1, hidden=(3,)).double())
    names = [name for name, _ in midpoint.named_parameters()]

    def final(y0: Tensor, k: Tensor, *parameters: Tensor) -> Tensor:
        called = dict(zip(names, parameters, strict=True))
        stepper = TaylorLagrange(1, lambda *args: torch.func.functional_call(midpoint, called, args))
        return integrate(stepper, lambda y, t: torch.sin(k * y) + torch.cos(3 * t)[:, None], y0, [0.0, 0.3, 0.5]).y

    assert torch.autograd.gradcheck(final, (STARTS.clone().requires_grad_(), torch.tensor(
        0.7, dtype=torch.float64, requires_grad=True), *midpoint.parameters()))


def test_the_rolled_states_are_those_of_the_grid_and_remainders_are_averaged() -> None:
    stepper, times = untrained(1), [0.0, 0.2, 0.5]
    rolled = roll(stepper, forced, STARTS, times)
    assert torch.equal(rolled.y, integrate(stepper, forced, STARTS, times).y)
    at = starts(stepper, forced, STARTS, times)
    assert at.y.shape == (4, 2) and at.t0.tolist() == [0.0, 0.2, 0.0, 0.2] and at.t1.tolist() == [0.2, 0.5, 0.2, 0.5]
    sizes = stepper.step(forced, at.t0, at.t1, at.y, ()).error.abs().mean()
    torch.testing.assert_close(rolled.remainder, sizes, rtol=1e-14, atol=0)


def test_fitting_the_midpoint_brings_a_large_step_nearer_to_the_solution() -> None:
    stepper = untrained(1)
    y = torch.rand(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at = Starts(y, torch.zeros(64, dtype=torch.float64), torch.ones(64, dtype=torch.float64))
    result = fit_midpoint(stepper, forced, at, steps=150)
    assert result.losses[-1] < 0.3 * result.losses[0]
    final = (stepper.step(forced, at.t0, at.t1, y, ()).y - exact(y, 0.0, 1.0)).abs().mean().item()
    assert final < 0.3 * result.losses[0]


def test_alternating_training_learns_the_field_and_its_remainder() -> None:
    """A field k y with k = -2 is found from its flow over one large step, which the untrained step misses."""
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(torch.tensor(-0.5, dtype=torch.float64))

        def forward(self, y: Tensor, t: Tensor) -> Tensor:
            return self.k * y

    y0 = torch.linspace(0.5, 2, 16, dtype=torch.float64).unsqueeze(1)
    field, stepper = Scaled(), TaylorLagrange(1, DiagonalMidpoint(1, 1).double())

    def loss(module: nn.Module, batch: None) -> dict[str, Tensor]:
        rolled = roll(stepper, module, y0, [0.0, 1.0])
        return {"task": (rolled.y - y0 * math.exp(-2)).square().mean(), "remainder": 1e-6 * rolled.remainder}

    def refit(moment: Moment) -> None:
        fit_midpoint(stepper, moment.module, starts(stepper, moment.module, y0, [0.0, 1.0]), steps=20,
                     optimizer=adam(2e-3))

    fit(field, loss, lambda step: None, steps=150, optimizer=adam(0.05), callbacks=[every(10, refit)])
    assert float(field.k) == pytest.approx(-2.0, abs=0.03)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="degree=-1: give a whole number, at least 0"):
        TaylorLagrange(-1, DiagonalMidpoint(2, 1))
    with pytest.raises(ValueError, match="size=0, degree=1"):
        DiagonalMidpoint(0, 1)
    with pytest.raises(ValueError, match="give a module"):
        fit_midpoint(TaylorLagrange(1, lambda y, t, h, slope: (y, t)), forced,
                     Starts(STARTS, torch.zeros(2), torch.ones(2)))
