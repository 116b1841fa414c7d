"""Exponential Runge–Kutta plans: orders in any variable, and equality with the steppers of the same tableaux."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from odecore.explicit.tableaus import RK4
from odecore.exponential import tableaus as methods
from odecore.exponential.linear import Diagonal, Fourier
from odecore.exponential.runge_kutta import ExponentialRungeKutta
from odecore.exponential.tableaus import ETD_RK1, KROGSTAD, ExponentialTableau, lawson
from odecore.plan import Plan, Row, execute
from odecore.problem import Semilinear
from odecore.schemes import exact_flow, exponential_multistep, exponential_runge_kutta, ode, runge_kutta

TABLEAUS = {name: value for name, value in vars(methods).items() if isinstance(value, ExponentialTableau)}
STARTS = (0.3, 2.0)


def remainder(x: Tensor, t: float) -> Tensor:
    return torch.sin(x) + math.cos(5 * t)


def run(rows: Sequence[Row], start: float, x: Tensor) -> Tensor:
    with torch.no_grad():
        return execute(Plan(rows, start), remainder, x)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TABLEAUS)
def test_plans_converge_at_the_order_of_their_tableau(name: str) -> None:
    solution = solve_ivp(lambda t, y: -y + np.sin(y) + np.cos(5 * t), (0, 1), STARTS, method="DOP853", rtol=1e-13,
                         atol=1e-14)
    steps, errors = [64, 91, 128, 181], []
    for n in steps:
        rows = exponential_runge_kutta(ode(-1.0), np.linspace(0, 1, n + 1), [TABLEAUS[name]] * n)
        result = run(rows, 0.0, torch.tensor(STARTS, dtype=torch.float64))
        errors.append((result - torch.from_numpy(solution.y[:, -1])).norm().item())
    slope = -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
    assert abs(slope - TABLEAUS[name].order) < 0.15


@pytest.mark.parametrize("name", TABLEAUS)
def test_plan_and_stepper_of_a_tableau_are_the_same_method(name: str) -> None:
    """The plan's state is in Fourier space, the stepper's in physical space."""
    n, grid = 16, [0.0, 0.1, 0.25, 0.4, 0.9]
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    symbol = torch.complex(-k**2, torch.where(2 * k.abs() == n, 0.0, 3 * k))
    y = torch.sin(torch.arange(n, dtype=torch.float64)).unsqueeze(0)
    half = symbol[: n // 2 + 1]

    def spectral(coefficients: Tensor, t: object) -> Tensor:
        return torch.fft.rfft(torch.sin(torch.fft.irfft(coefficients, n)) + t)

    with torch.no_grad():
        rows = exponential_runge_kutta(ode(half), grid, [TABLEAUS[name]] * 4)
        planned = torch.fft.irfft(execute(Plan(rows, 0.0), spectral, torch.fft.rfft(y)), n)
    problem = Semilinear(Fourier(symbol), lambda y, t: torch.sin(y) + t.reshape(-1, 1))
    stepper, times = ExponentialRungeKutta(TABLEAUS[name]), torch.tensor(grid, dtype=torch.float64).unsqueeze(1)
    carry, _ = stepper.start(problem, times[0], y)
    for start, end in zip(times[:-1], times[1:], strict=True):
        step = stepper.step(problem, start, end, y, carry)
        y, carry = step.y, step.carry
    torch.testing.assert_close(planned, y, rtol=1e-12, atol=1e-13)


def test_lawsons_method_is_the_classical_one_in_the_variable_of_the_integrating_factor() -> None:
    grid = [0.0, 0.3, 0.5]
    ours = exponential_runge_kutta(ode(-2.0), grid, [lawson(RK4)] * 2)
    classical = runge_kutta(ode(-2.0), grid, [RK4] * 2)
    for one, other in zip(ours, classical, strict=True):
        assert one.t == other.t and one.t_next == other.t_next
        assert one.anchor == pytest.approx(other.anchor, rel=1e-14) and one.point == pytest.approx(other.point)


def test_exponential_euler_is_the_first_multistep_scheme() -> None:
    grid = [0.0, 0.3, 0.5]
    ours = exponential_runge_kutta(ode(-2.0), grid, [ETD_RK1] * 2)
    other = exponential_multistep(ode(-2.0), grid, [1, 1])
    assert [row.anchor for row in ours] == [pytest.approx(row.anchor, rel=1e-14) for row in other]


@pytest.mark.parametrize("name", [name for name in TABLEAUS if not name.startswith("LAWSON")])
def test_stiff_plans_solve_the_problem_with_constant_prediction(name: str) -> None:
    """Far beyond the time at which e^{Lt} underflows."""
    symbol = -torch.tensor([0.0, 1.0, 1e3, 1e6], dtype=torch.float64)
    rows = exponential_runge_kutta(ode(symbol), np.linspace(0, 50, 6), [TABLEAUS[name]] * 5)
    Plan(rows, 0.0, exact_flow(ode(symbol), 0.0, 50.0))  # checks it


def _functions(rows: Sequence[Row]) -> list[Tensor]:
    return [weight for row in rows for weight in (*row.anchor[2:], *row.point[2:]) if isinstance(weight, Tensor)]


def test_steps_of_one_length_share_their_weights() -> None:
    symbol = -torch.arange(4, dtype=torch.float64)
    rows = exponential_runge_kutta(ode(symbol), np.linspace(0, 1, 8), [KROGSTAD] * 7)
    assert {id(value) for value in _functions(rows)} == {id(value) for value in _functions(rows[:4])}


def test_plans_keep_the_dtype_of_the_state() -> None:
    rows = exponential_runge_kutta(ode(torch.tensor([-1.0, -5.0])), [0.0, 0.5], [KROGSTAD])
    result = run(rows, 0.0, torch.ones(2, 2, dtype=torch.complex64))
    assert result.dtype == torch.complex64


def test_lengths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="give one a step"):
        exponential_runge_kutta(ode(), [0.0, 1.0], [KROGSTAD] * 2)


def test_a_diagonal_operator_agrees_with_the_plan_on_a_number() -> None:
    problem = Semilinear(Diagonal(-1.0), lambda y, t: torch.sin(y) + torch.cos(5 * t).reshape(-1, 1))
    y, stepper = torch.tensor([STARTS], dtype=torch.float64), ExponentialRungeKutta(KROGSTAD)
    start, end = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    step = stepper.step(problem, start, end, y, stepper.start(problem, start, y)[0])
    torch.testing.assert_close(step.y, run(exponential_runge_kutta(ode(-1.0), [0.0, 1.0], [KROGSTAD]), 0.0, y))
