"""Exponential Adams methods, as steppers and as plans with one weight for each mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from odecore.driver.solve import solve
from odecore.explicit.adams import Adams
from odecore.exponential.adams import (
    ExponentialAdams,
    exponential_adams_bashforth,
    exponential_adams_bashforth_moulton,
)
from odecore.exponential.linear import Dense, Diagonal, Fourier
from odecore.exponential.tableaus import KROGSTAD
from odecore.plan import Plan, execute
from odecore.problem import Semilinear
from odecore.schemes import adams_bashforth, adams_bashforth_moulton, exact_flow, ode

METHODS = {f"bashforth{k}": exponential_adams_bashforth(k) for k in (1, 2, 3, 4)} | {
    f"moulton{k}": exponential_adams_bashforth_moulton(k) for k in (2, 3, 4)}
RATES = torch.tensor([-1 + 2j, -0.5 - 1j], dtype=torch.complex128)
START = torch.tensor([0.5 + 0.2j, -0.3j], dtype=torch.complex128)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def reaction(y: Tensor, t: Tensor | float) -> Tensor:
    """Not linear, not holomorphic, and explicit in time."""
    return torch.cos(torch.as_tensor(t, dtype=torch.float64)).reshape(-1, 1) - y * y.abs() ** 2


@pytest.fixture(scope="module")
def reference() -> Tensor:
    def right(t: float, y: np.ndarray) -> np.ndarray:
        return RATES.numpy() * y + math.cos(t) - y * np.abs(y) ** 2

    solution = solve_ivp(right, (0, 1), START.numpy(), method="DOP853", rtol=1e-13, atol=1e-14)
    return torch.from_numpy(solution.y[:, -1].copy())


def integrate(stepper: ExponentialAdams | Adams, problem: Callable, y: Tensor, grid: Sequence[float]) -> Tensor:
    """On a fixed grid, all samples with the same steps."""
    now = torch.zeros(len(y), dtype=torch.float64)
    carry, _ = stepper.start(problem, now + grid[0], y)
    with torch.no_grad():
        for start, end in zip(grid[:-1], grid[1:], strict=True):
            step = stepper.step(problem, now + start, now + end, y, carry)
            y, carry = step.y, step.carry
    return y


def slope(errors: Sequence[float], steps: Sequence[int]) -> float:
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


@pytest.mark.parametrize("name", METHODS)
def test_the_order_holds_on_uneven_grids(name: str, reference: Tensor) -> None:
    steps, problem = [32, 45, 64, 91], Semilinear(Diagonal(RATES), reaction)
    errors = []
    for n in steps:
        grid = [i / n + 0.2 / n * math.sin(2.0 * i) * (0 < i < n) for i in range(n + 1)]
        errors.append((integrate(METHODS[name], problem, START.unsqueeze(0), grid) - reference).norm().item())
    assert abs(slope(errors, steps) - METHODS[name].order) < 0.15


POINTS = torch.arange(1, 24, dtype=torch.float64) / 24


def growing(t: Tensor) -> Tensor:
    return POINTS * (1 - POINTS) * torch.exp(t).reshape(-1, 1)


def mean_reaction(y: Tensor, t: Tensor) -> Tensor:
    u = growing(t)
    return (y - u).mean(1, keepdim=True) + u + 2 * torch.exp(t).reshape(-1, 1)


def local_reaction(y: Tensor, t: Tensor) -> Tensor:
    u = growing(t)
    return y**2 - u**2 + u + 2 * torch.exp(t).reshape(-1, 1)


def heat() -> Dense:
    ones = torch.ones(22, dtype=torch.float64)
    return Dense((torch.diag(ones, 1) + torch.diag(ones, -1) - 2 * torch.eye(23, dtype=torch.float64)) * 24**2)


@pytest.mark.parametrize("name", METHODS)
def test_stiffness_takes_no_order(name: str) -> None:
    """‖L‖ = 2300. A single step of the starting method may have one order less. ETD-RK2, which moulton2 is, creeps
    up to its order where N does not vanish at the boundary (see test_exponential.py)."""
    steps, problem = [16, 23, 32, 45], Semilinear(heat(), local_reaction if name == "moulton2" else mean_reaction)
    grids = [[i / n for i in range(n + 1)] for n in steps]
    errors = [(integrate(METHODS[name], problem, growing(times(0.0)), grid) - growing(times(1.0))).norm().item()
              for grid in grids]
    assert slope(errors, steps) > METHODS[name].order - 0.15


@pytest.mark.parametrize("name", METHODS)
def test_the_error_estimate_shrinks_as_declared(name: str) -> None:
    """With a history of exact values of a known solution, y = sin t + 2."""
    def nonlinear(y: Tensor, t: Tensor) -> Tensor:
        s = torch.sin(t).reshape(-1, 1) + 2
        return torch.cos(t).reshape(-1, 1) + 1.5 * s + s**2 - y**2

    stepper, problem = METHODS[name], Semilinear(Diagonal(-1.5), nonlinear)
    lengths, errors = [0.1, 0.07, 0.05, 0.035], []
    for h in lengths:
        past = times(*(0.4 - j * h for j in range(stepper.slopes)))
        values = [nonlinear(torch.sin(past[j:j + 1]).reshape(1, 1) + 2, past[j:j + 1]) for j in range(stepper.slopes)]
        carry = (torch.tensor([stepper.slopes]), past.unsqueeze(0), *values)
        y = torch.sin(times(0.4)).reshape(1, 1) + 2
        errors.append(stepper.step(problem, times(0.4), times(0.4 + h), y, carry).error.abs().item())
    assert abs(-slope(errors, lengths) - stepper.error_order) < 0.15


@pytest.mark.parametrize("corrected", [False, True])
def test_without_a_linear_part_the_classical_method_remains(corrected: bool) -> None:
    y, past = times(0.3, -0.4).unsqueeze(0), times(0.5, 0.3, 0.2).unsqueeze(0)

    def field(y: Tensor, t: Tensor) -> Tensor:
        return torch.sin(y) + torch.cos(t).reshape(-1, 1)

    carry = (torch.tensor([3]), past, *(torch.full_like(y, value) for value in (1.0, 0.7, -0.2)))
    ours = ExponentialAdams(3, corrected).step(Semilinear(Diagonal(0.0), field), times(0.5), times(0.9), y, carry)
    classical = Adams(3, corrected).step(field, times(0.5), times(0.9), y, carry)
    for one, other in ((ours.y, classical.y), (ours.error, classical.error), (ours.carry[2], classical.carry[2])):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", METHODS)
def test_a_linear_problem_is_solved_exactly(name: str) -> None:
    problem = Semilinear(heat(), lambda y, t: torch.zeros_like(y))
    y = growing(times(0.0))
    result = integrate(METHODS[name], problem, y, [0.0, 0.01, 0.03, 0.04, 0.2, 1.0])
    torch.testing.assert_close(result, y @ torch.linalg.matrix_exp(heat().matrix), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["bashforth4", "moulton4"])
def test_the_driver_reaches_its_tolerance_on_a_stiff_problem(name: str) -> None:
    """Samples start, and leave, at different times."""
    y0 = growing(times(0.0, -0.5))
    solution = solve(METHODS[name], Semilinear(heat(), mean_reaction), y0, times(0.0, -0.5), times(1.0, 0.2),
                     rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(solution.y, growing(times(1.0, 0.2)), rtol=1e-4, atol=1e-6)
    assert solution.accepted.max() < 120  # an explicit method needs some 800


def test_samples_do_not_see_each_other() -> None:
    k = torch.fft.fftfreq(8, 1 / 8, dtype=torch.float64)
    problem = Semilinear(Fourier(-k**2), lambda y, t: torch.sin(y) + t.reshape(-1, 1))
    y0 = torch.sin(torch.arange(24, dtype=torch.float64)).reshape(3, 8)
    ends = times(0.5, 1.0, 2.0)
    stepper = exponential_adams_bashforth_moulton(3)
    whole = solve(stepper, problem, y0, 0.0, ends, rtol=1e-5, atol=1e-7)
    for i in range(3):
        alone = solve(stepper, problem, y0[i:i + 1], 0.0, ends[i:i + 1], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(alone.y, whole.y[i:i + 1], rtol=1e-10, atol=1e-12)


def test_a_step_is_differentiable() -> None:
    def result(y: Tensor, values: Tensor) -> Tensor:
        problem = Semilinear(Diagonal(values), lambda y, t: torch.sin(y))
        stepper = exponential_adams_bashforth_moulton(3)
        carry, _ = stepper.start(problem, times(0.0), y)
        for i in range(3):
            step = stepper.step(problem, times(i * 0.3), times((i + 1) * 0.3), y, carry)
            y, carry = step.y, step.carry
        return y

    assert torch.autograd.gradcheck(result, (times(0.3, -1.0).unsqueeze(0).requires_grad_(),
                                             times(-1.0, -2.0).requires_grad_()))


@pytest.mark.parametrize(("slopes", "corrected"), [(0, False), (5, False), (0, True), (4, True)])
def test_orders_beyond_the_starting_method_are_refused(slopes: int, corrected: bool) -> None:
    with pytest.raises(ValueError, match=f"slopes={slopes}"):
        ExponentialAdams(slopes, corrected)


def test_a_plain_function_is_refused() -> None:
    with pytest.raises(ValueError, match="Semilinear"):
        exponential_adams_bashforth(2).start(lambda y, t: y, times(0.0), torch.ones(1, 1))


# The same schemes as plans.

PLANS = {f"bashforth{k}": (k, adams_bashforth) for k in (1, 2, 3, 4)} | {
    f"moulton{k}": (k, adams_bashforth_moulton) for k in (2, 3, 4)}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_with_one_complex_rate_for_each_mode_converges_at_its_order(name: str, reference: Tensor) -> None:
    order, scheme = PLANS[name]
    steps, variable = [32, 45, 64, 91], ode(RATES)
    errors = []
    for n in steps:
        rows = scheme(variable, np.linspace(0, 1, n + 1), order, start=KROGSTAD)
        plan = Plan(rows, 0.0, exact_flow(variable, 0.0, 1.0))
        with torch.no_grad():
            errors.append((execute(plan, reaction, START.unsqueeze(0)) - reference).norm().item())
    assert abs(slope(errors, steps) - order) < 0.15


@pytest.mark.parametrize("name", PLANS)
def test_plan_and_stepper_are_the_same_scheme(name: str) -> None:
    order, scheme = PLANS[name]
    grid = [0.1, 0.3, 0.4, 0.5, 0.7, 0.75]
    with torch.no_grad():
        planned = execute(Plan(scheme(ode(RATES), grid, order, start=KROGSTAD), grid[0]), reaction, START.unsqueeze(0))
    stepped = integrate(METHODS[name], Semilinear(Diagonal(RATES), reaction), START.unsqueeze(0), grid)
    torch.testing.assert_close(planned, stepped, rtol=1e-11, atol=1e-12)
