"""Schemes on problems with closed-form or independent solutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from odecore.explicit.tableaus import EULER, HEUN, KUTTA3, MIDPOINT, RALSTON, RK4, Tableau
from odecore.plan import Plan, Row, execute
from odecore.schemes import exact_flow, exponential_multistep, exponential_singlestep, ode, runge_kutta
from odecore.schemes.exponential import inner_nodes

LINEAR = -1.0
SPAN = (0.0, 1.0)
STARTS = (0.3, 2.0)
TABLEAUS = {"euler": EULER, "midpoint": MIDPOINT, "heun": HEUN, "ralston": RALSTON, "kutta3": KUTTA3, "rk4": RK4}


def remainder(x: torch.Tensor, t: float) -> torch.Tensor:
    """The part of dx/dt beside LINEAR·x: not linear, and explicit in time."""
    return torch.sin(x) + math.cos(5 * t)


def field(x: torch.Tensor, t: float) -> torch.Tensor:
    return LINEAR * x + remainder(x, t)


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    solution = solve_ivp(lambda t, y: LINEAR * y + np.sin(y) + np.cos(5 * t), SPAN, STARTS, method="DOP853",
                         rtol=1e-13, atol=1e-14)
    return torch.from_numpy(solution.y[:, -1])


def end_error(rows: Sequence[Row], f: object, reference: torch.Tensor) -> float:
    with torch.no_grad():
        result = execute(Plan(rows, SPAN[0]), f, torch.tensor(STARTS, dtype=torch.float64))  # type: ignore[arg-type]
    return (result - reference).norm().item()


def slope(errors: Sequence[float], steps: Sequence[int]) -> float:
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


@pytest.mark.parametrize("name", TABLEAUS)
@pytest.mark.parametrize("lawson", [False, True])
def test_runge_kutta_converges_at_its_order(name: str, lawson: bool, reference: torch.Tensor) -> None:
    tableau = TABLEAUS[name]
    steps = [80, 113, 160, 226, 320]
    variable, f = (ode(LINEAR), remainder) if lawson else (ode(), field)
    errors = [end_error(runge_kutta(variable, np.linspace(*SPAN, n + 1), [tableau] * n), f, reference) for n in steps]
    assert abs(slope(errors, steps) - tableau.order) < 0.15


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("linear", [0.0, LINEAR])
def test_multistep_converges_at_its_order(order: int, linear: float, reference: torch.Tensor) -> None:
    """The first steps, of lower order, are shortened so that their error is of the method's order."""
    steps = [80, 113, 160, 226, 320]
    f = remainder if linear else field
    errors = []
    for n in steps:
        h = (SPAN[1] - SPAN[0]) / n
        fine = [SPAN[0] + h * (k / 8) ** 4 for k in range(8)] if order > 1 else [SPAN[0]]
        times = [*fine, *np.linspace(SPAN[0] + h, SPAN[1], n)]
        orders = [min(order, i + 1) for i in range(len(times) - 1)]
        errors.append(end_error(exponential_multistep(ode(linear), times, orders), f, reference))
    assert abs(slope(errors, steps) - order) < 0.15


@pytest.mark.parametrize(("order", "fractions"), [(1, ()), (2, (0.5,)), (3, (1 / 3, 2 / 3))])
def test_singlestep_converges_at_its_order(order: int, fractions: tuple[float, ...], reference: torch.Tensor) -> None:
    steps = [80, 113, 160, 226, 320]
    variable = ode(LINEAR)
    errors = []
    for n in steps:
        times = np.linspace(*SPAN, n + 1)
        groups = [inner_nodes(variable, a, b, fractions) for a, b in zip(times[:-1], times[1:], strict=True)]
        errors.append(end_error(exponential_singlestep(variable, groups), remainder, reference))
    assert abs(slope(errors, steps) - order) < 0.15


def test_multistep_without_linear_part_has_adams_bashforth_weights() -> None:
    rows = exponential_multistep(ode(), [0.0, 1.0, 2.0, 3.0, 4.0], [1, 2, 3, 4])
    assert rows[3].anchor[2:] == pytest.approx((55 / 24, -59 / 24, 37 / 24, -9 / 24), rel=1e-13)


def test_exact_flow_solves_the_constant_problem() -> None:
    a, b = exact_flow(ode(LINEAR), 0.0, 2.0)
    assert a == pytest.approx(math.exp(2 * LINEAR), rel=1e-14)
    assert b == pytest.approx(math.expm1(2 * LINEAR) / LINEAR, rel=1e-13)


def test_one_rate_per_mode_solves_the_heat_equation() -> None:
    symbol = -torch.arange(8, dtype=torch.float64) ** 2
    plan = Plan(exponential_multistep(ode(symbol), [0.0, 0.5, 1.0], [1, 2]), 0.0, exact_flow(ode(symbol), 0.0, 1.0))
    with torch.no_grad():
        result = execute(plan, lambda x, t: torch.ones_like(x), torch.ones(8, dtype=torch.float64))
    exact = [2.0] + [math.exp(-k * k) + math.expm1(-k * k) / -(k * k) for k in range(1, 8)]
    torch.testing.assert_close(result, torch.tensor(exact, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("order", "step"), [(0, 0), (2, 0), (4, 2)])
def test_orders_beyond_the_history_are_refused(order: int, step: int) -> None:
    orders = [1, 2, 3]
    orders[step] = order
    with pytest.raises(ValueError, match=rf"orders\[{step}\]={order}"):
        exponential_multistep(ode(), [0.0, 1.0, 2.0, 3.0], orders)


def test_weights_that_do_not_sum_to_one_are_refused() -> None:
    with pytest.raises(ValueError, match="sum to one"):
        Tableau(((), (0.5,)), (0.5, 0.4), 2)
