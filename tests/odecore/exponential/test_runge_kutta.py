"""Exponential Runge–Kutta steppers: orders with and without stiffness, exactness, gradients, samples apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from odecore.driver.solve import solve
from odecore.exponential import tableaus as methods
from odecore.exponential.linear import Dense, Diagonal, Fourier
from odecore.exponential.runge_kutta import ExponentialRungeKutta
from odecore.exponential.tableaus import HOCHBRUCK_OSTERMANN, KROGSTAD, ExponentialTableau
from odecore.problem import Semilinear

STEPPERS = {name: ExponentialRungeKutta(value) for name, value in vars(methods).items()
            if isinstance(value, ExponentialTableau)}
POINTS = torch.arange(1, 32, dtype=torch.float64) / 32
MODES = torch.fft.fftfreq(16, 1 / 16, dtype=torch.float64)
DRIFT = torch.where(MODES == -8, 0.0, MODES)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def integrate(stepper: ExponentialRungeKutta, problem: Semilinear, y: Tensor, steps: int, end: float = 1.0) -> Tensor:
    """On a fixed grid whose steps are all of exactly the same length."""
    now = torch.zeros(len(y), dtype=torch.float64)
    carry, _ = stepper.start(problem, now, y)
    with torch.no_grad():
        for i in range(steps):
            step = stepper.step(problem, now + end / steps * i, now + end / steps * (i + 1), y, carry)
            y, carry = step.y, step.carry
    return y


def slope(errors: Sequence[float], steps: Sequence[int]) -> float:
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def slope_of(name: str, problem: Semilinear, y0: Tensor, exact: Tensor, steps: Sequence[int]) -> float:
    errors = [(integrate(STEPPERS[name], problem, y0, n) - exact).norm().item() for n in steps]
    return slope(errors, steps)


# Without stiffness: a coupled, non-linear, non-autonomous problem that all operators can hold.

COUPLED = torch.tensor([[-1.0, 0.5], [-0.3, -2.0]], dtype=torch.float64)


def forcing(y: Tensor, t: Tensor) -> Tensor:
    return torch.sin(y).flip(-1) + torch.cos(3 * t).reshape(-1, *[1] * (y.ndim - 1)) * y**2 / 2


def mild_dense() -> tuple[Semilinear, Tensor]:
    return Semilinear(Dense(COUPLED), forcing), times(0.3, -0.4)


def mild_diagonal() -> tuple[Semilinear, Tensor]:
    """Complex, with a non-linear part that is not holomorphic."""
    values = torch.tensor([-1 + 2j, -0.5 - 1j], dtype=torch.complex128)

    def nonlinear(y: Tensor, t: Tensor) -> Tensor:
        return -y * y.abs() ** 2 + torch.cos(t).reshape(-1, 1)

    return Semilinear(Diagonal(values), nonlinear), torch.tensor([0.5 + 0.2j, -0.3j], dtype=torch.complex128)


def mild_fourier() -> tuple[Semilinear, Tensor]:
    """Advection and diffusion of a wave that reacts, in physical space."""
    x = torch.arange(16, dtype=torch.float64) * 2 * math.pi / 16
    return Semilinear(Fourier(-0.02 * MODES**2 + 1j * DRIFT), forcing), torch.sin(x)


MILD = {"dense": mild_dense, "diagonal": mild_diagonal, "fourier": mild_fourier}


@cache
def reference(kind: str) -> Tensor:
    """By scipy, of the whole right-hand side."""
    problem, y0 = MILD[kind]()

    def right(t: float, y: np.ndarray) -> np.ndarray:
        return problem(torch.from_numpy(y.copy()).unsqueeze(0), times(t))[0].numpy()

    solution = solve_ivp(right, (0, 1), y0.numpy(), method="DOP853", rtol=1e-13, atol=1e-14)
    return torch.from_numpy(solution.y[:, -1].copy())


@pytest.mark.parametrize("kind", MILD)
@pytest.mark.parametrize("name", STEPPERS)
def test_without_stiffness_the_order_is_the_declared_one(name: str, kind: str) -> None:
    problem, y0 = MILD[kind]()
    measured = slope_of(name, problem, y0.unsqueeze(0), reference(kind), [24, 34, 48, 68])
    assert abs(measured - STEPPERS[name].order) < 0.15


@pytest.mark.parametrize("name", STEPPERS)
def test_the_error_estimate_shrinks_as_declared(name: str) -> None:
    problem, y0 = mild_dense()
    y, start, stepper = y0.unsqueeze(0), times(0.2), STEPPERS[name]
    carry, _ = stepper.start(problem, start, y)
    lengths = [0.04, 0.028, 0.02, 0.014, 0.01]
    errors = [stepper.step(problem, start, start + h, y, carry).error.norm().item() for h in lengths]
    assert abs(-slope(errors, lengths) - stepper.error_order) < 0.15


# With stiffness: ‖L‖ = 4e3, solution x (1 - x) e^t, which second differences see exactly.

def laplacian() -> Tensor:
    n = len(POINTS)
    ones = torch.ones(n - 1, dtype=torch.float64)
    return (torch.diag(ones, 1) + torch.diag(ones, -1) - 2 * torch.eye(n, dtype=torch.float64)) * (n + 1) ** 2


def growing(t: Tensor) -> Tensor:
    return POINTS * (1 - POINTS) * torch.exp(t).reshape(-1, 1)


def local_reaction(y: Tensor, t: Tensor) -> Tensor:
    u = growing(t)
    return 1 / (1 + y**2) - 1 / (1 + u**2) + u + 2 * torch.exp(t).reshape(-1, 1)


def mean_reaction(y: Tensor, t: Tensor) -> Tensor:
    """Does not vanish at the boundary, as L y does: the harder one for exponential methods."""
    u = growing(t)
    return (y - u).mean(1, keepdim=True) + u + 2 * torch.exp(t).reshape(-1, 1)


@pytest.mark.parametrize("reaction", [local_reaction, mean_reaction])
@pytest.mark.parametrize(("name", "order"), [("ETD_RK1", 1), ("HOCHBRUCK_OSTERMANN", 4)])
def test_stiffness_takes_no_order_from_methods_of_full_stiff_order(
    reaction: Callable[[Tensor, Tensor], Tensor], name: str, order: int
) -> None:
    problem, y0 = Semilinear(Dense(laplacian()), reaction), growing(times(0.0))
    assert abs(slope_of(name, problem, y0, growing(times(1.0)), [16, 23, 32, 45, 64]) - order) < 0.15


@pytest.mark.parametrize("name", ["ETD_RK2", "ETD_RK3", "ETD_RK4", "KROGSTAD", "LAWSON_EULER", "LAWSON4"])
def test_stiffness_leaves_a_method_no_less_than_its_stiff_order(name: str) -> None:
    """ETD-RK2 creeps up to 2 on this grid; Lawson's methods have the error of the first order throughout."""
    problem, y0 = Semilinear(Dense(laplacian()), mean_reaction), growing(times(0.0))
    stiff = STEPPERS[name].tableau.stiff_order
    measured = slope_of(name, problem, y0, growing(times(1.0)), [32, 45, 64, 91])
    assert stiff - 0.2 < measured < STEPPERS[name].order + 0.15


def test_stiffness_takes_orders_from_lawsons_and_cox_and_matthews_methods() -> None:
    problem, y0 = Semilinear(Dense(laplacian()), mean_reaction), growing(times(0.0))
    steps = [8, 11, 16, 23, 32]
    slopes = {name: slope_of(name, problem, y0, growing(times(1.0)), steps)
              for name in ("LAWSON4", "ETD_RK4", "KROGSTAD", "HOCHBRUCK_OSTERMANN")}
    assert slopes["LAWSON4"] < 1.5 < slopes["ETD_RK4"] < 2.5 < slopes["KROGSTAD"] < 3.5 < slopes["HOCHBRUCK_OSTERMANN"]


# Exactness.

@pytest.mark.parametrize("name", STEPPERS)
def test_a_linear_problem_is_solved_exactly_in_one_step(name: str) -> None:
    matrix, y = 100 * COUPLED, torch.ones(2, 2, dtype=torch.float64)
    problem = Semilinear(Dense(matrix), lambda y, t: torch.zeros_like(y))
    stepper, start = STEPPERS[name], times(0.0, 0.0)
    step = stepper.step(problem, start, times(0.5, 2.0), y, stepper.start(problem, start, y)[0])
    exact = torch.stack([torch.linalg.matrix_exp(h * matrix) @ y[0] for h in (0.5, 2.0)])
    torch.testing.assert_close(step.y, exact, rtol=1e-9, atol=1e-12)
    assert step.error.abs().max() == 0


@pytest.mark.parametrize("name", [name for name in STEPPERS if not name.startswith("LAWSON")])
def test_a_fixed_point_is_kept(name: str) -> None:
    problem = Semilinear(Diagonal(-1e5), lambda y, t: torch.full_like(y, 3e5))
    y, stepper, start = torch.full((1, 2), 3.0, dtype=torch.float64), STEPPERS[name], times(0.0)
    step = stepper.step(problem, start, times(10.0), y, stepper.start(problem, start, y)[0])
    torch.testing.assert_close(step.y, y)


# What the driver relies on.

def test_the_driver_reaches_its_tolerance_on_a_stiff_problem_in_few_steps() -> None:
    y0 = growing(times(0.0, -0.5))
    problem = Semilinear(Dense(laplacian()), mean_reaction)
    solution = solve(ExponentialRungeKutta(HOCHBRUCK_OSTERMANN), problem, y0, times(0.0, -0.5), 1.0, rtol=1e-6,
                     atol=1e-8)
    torch.testing.assert_close(solution.y, growing(times(1.0, 1.0)), rtol=1e-5, atol=1e-7)
    assert solution.accepted.max() < 40  # an explicit method needs some 1500


@pytest.mark.parametrize("name", STEPPERS)
def test_samples_with_steps_of_their_own_do_not_see_each_other(name: str) -> None:
    problem, y0 = mild_fourier()
    stepper, y = STEPPERS[name], torch.stack((y0, 2 * y0, -y0))
    start, end = times(0.0, 0.5, 1.0), times(0.1, 0.9, 0.8)
    whole = stepper.step(problem, start, end, y, stepper.start(problem, start, y)[0])
    for i in range(3):
        one = slice(i, i + 1)
        alone = stepper.step(problem, start[one], end[one], y[one], stepper.start(problem, start[one], y[one])[0])
        torch.testing.assert_close(alone.y, whole.y[one], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(alone.error, whole.error[one], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("name", STEPPERS)
def test_evaluations_are_counted_and_made_at_the_stage_times(name: str) -> None:
    seen: list[float] = []

    def nonlinear(y: Tensor, t: Tensor) -> Tensor:
        seen.append(t.item())
        return torch.ones_like(y)

    problem, stepper, y = Semilinear(Diagonal(-1.0), nonlinear), STEPPERS[name], torch.ones(1, 2)
    carry, nfe = stepper.start(problem, times(1.0), y)
    step = stepper.step(problem, times(1.0), times(3.0), y, carry)
    assert len(seen) == nfe + step.nfe
    assert seen == [1 + 2 * c for c in stepper.tableau.c]
    assert [c.shape[0] for c in step.carry] == [1] * len(carry)


@pytest.mark.parametrize("name", ["KROGSTAD", "HOCHBRUCK_OSTERMANN", "LAWSON4"])
def test_a_step_is_differentiable_in_state_and_parameters(name: str) -> None:
    stepper, y = STEPPERS[name], torch.tensor([[0.3, -0.4]], dtype=torch.float64, requires_grad=True)
    parameters = [COUPLED.clone().requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)]

    def result(y: Tensor, matrix: Tensor, rate: Tensor) -> Tensor:
        problem = Semilinear(Dense(matrix), lambda y, t: torch.sin(rate * y) + t.reshape(-1, 1))
        carry, _ = stepper.start(problem, times(0.0), y)
        return stepper.step(problem, times(0.0), times(0.4), y, carry).y

    assert torch.autograd.gradcheck(result, (y, *parameters))


def test_a_plain_function_is_refused() -> None:
    with pytest.raises(ValueError, match="Semilinear"):
        ExponentialRungeKutta(KROGSTAD).start(lambda y, t: y, times(0.0), torch.ones(1, 1))
    with pytest.raises(ValueError, match="Semilinear"):
        ExponentialRungeKutta(HOCHBRUCK_OSTERMANN).step(lambda y, t: y, times(0.0), times(1.0), torch.ones(1, 1), ())


def test_float32_states_stay_float32() -> None:
    problem = Semilinear(Fourier(-MODES**2), lambda y, t: y**2)
    y = torch.ones(2, 16)
    step = STEPPERS["KROGSTAD"].step(problem, times(0.0, 0.0), times(0.1, 0.2), y,
                                     STEPPERS["KROGSTAD"].start(problem, times(0.0, 0.0), y)[0])
    assert step.y.dtype == step.error.dtype == torch.float32
