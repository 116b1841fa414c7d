"""Every method of odecore converges at its declared order, and so do its error estimate and dense output."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from eval.order_ode import Method, Orders, constants, judge, ladder, measure, methods, sweep, table, tolerance
from eval.order_problems import GENERAL, MECHANICAL, ClosedForm
from eval.order_sde import geometric, strong_order
from odecore.explicit import tableaus
from odecore.explicit.embedded import EmbeddedPair
from odecore.explicit.tableaus import RK4, Tableau
from odecore.problem import ODE, Separable
from odecore.stepper import Stepper
from odecore.stochastic.sde import euler_maruyama, milstein

METHODS = list(methods())
SLOW = {"Taylor 4", "Taylor 5", "Taylor 6", "KVAERNO4", "KVAERNO5", "EXPRB43", "KENCARP5"}
"""A second or more; the others stand for their kind."""


def case(name: str, form: type) -> ClosedForm:
    return next(c for c in (*GENERAL, *MECHANICAL) if c.name == name and c.form(form) is not None)


def named(selected: list[Method]) -> dict:
    return {"argvalues": [pytest.param(m, marks=[pytest.mark.slow] if m.name in SLOW else []) for m in selected],
            "ids": [f"{m.family}: {m.name}" for m in selected]}


@pytest.mark.parametrize("method", **named(METHODS))
def test_a_method_and_its_estimate_and_dense_output_have_their_orders(method: Method) -> None:
    orders = measure(method, case("vector", method.form))
    assert orders is not None
    p, k, d = method.stepper.order, method.stepper.error_order, method.between
    assert orders.end > p - tolerance(p)
    assert not k or orders.estimate > k - tolerance(k) or math.isnan(orders.estimate)
    assert not d or orders.between > d - tolerance(d)


@pytest.mark.parametrize("method", **named([m for m in METHODS if m.family in ("embedded pair", "symplectic")]))
def test_no_order_is_higher_than_declared(method: Method) -> None:
    line = sweep(method)
    assert line.end.met and (line.estimate is None or line.estimate.met) and (line.between is None or line.between.met)


@pytest.mark.parametrize("problem", [*GENERAL, *MECHANICAL], ids=lambda c: f"{c.name}-{len(c.problems)}")
def test_closed_forms_solve_their_problems(problem: ClosedForm) -> None:
    y0 = problem.exact(0.0)
    field = problem.problems[0]

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        states = torch.from_numpy(y).reshape(y0.shape)
        return field(states, torch.full((len(y0),), t, dtype=torch.float64)).flatten().numpy()

    solution = solve_ivp(slope, (0, problem.end), y0.flatten().numpy(), method="DOP853", rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(solution.y[:, -1], problem.exact(problem.end).flatten(), rtol=0, atol=2e-12)


@pytest.mark.parametrize("problem", GENERAL, ids=lambda c: c.name)
def test_all_forms_of_a_problem_are_one_function(problem: ClosedForm) -> None:
    y, t = problem.exact(0.3), torch.tensor([0.1, 0.7], dtype=torch.float64)
    values = [form(y, t) for form in problem.problems]
    assert len(values) == 3
    for value in values[1:]:
        torch.testing.assert_close(value, values[0], rtol=1e-14, atol=1e-14)


def test_every_tableau_of_the_module_is_swept() -> None:
    swept = {m.name for m in METHODS if m.family == "explicit"}
    assert {"RK4", "EULER", "DOP853"} <= set(constants(tableaus, Tableau)) <= swept


def test_a_wrong_stage_time_is_found() -> None:
    a = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    wrong = Tableau(a, (1 / 6, 1 / 6, 1 / 6, 1 / 2), order=4)
    line = sweep(Method("explicit", "wrong", EmbeddedPair(wrong, wrong.b, 0), ODE, 0))
    assert not line.end.met and min(line.end.measured) < 1.5


class Ahead:
    """A step that evaluates its field at a time that is wrong by a constant share of the step."""

    order, error_order = 4, 0
    pair = EmbeddedPair(RK4, RK4.b, 0)

    def start(self, field, t0, y):  # noqa: ANN001, ANN201
        return (), 0

    def step(self, field, t0, t1, y, carry):  # noqa: ANN001, ANN201
        return self.pair.step(lambda y, t: field(y, torch.minimum(t + 0.1 * (t1 - t0), t1)), t0, t1, y, carry)


def test_a_wrong_time_shows_on_the_non_autonomous_problem_alone() -> None:
    stepper: Stepper = Ahead()  # type: ignore[assignment]
    method = Method("explicit", "ahead", stepper, ODE, 0)
    orders = [measure(method, c) for c in GENERAL[:3]]
    assert [o.end > 3.8 for o in orders if o is not None] == [True, True, False]


def test_the_least_order_is_judged() -> None:
    assert judge(4, [4.9, 4.05]).met and not judge(4, [4.9, 4.8]).met and not judge(4, [4.0, 3.8]).met
    assert judge(4, [math.nan, 4.0]).met and not judge(4, [math.nan]).met


def test_numbers_of_steps_are_even_and_increase() -> None:
    for method in METHODS:
        numbers = ladder(method)
        assert len(numbers) >= 6 and all(n % 2 == 0 for n in numbers) and numbers == sorted(set(numbers))


def test_a_problem_without_the_form_is_passed_over() -> None:
    symplectic = next(m for m in METHODS if m.form is Separable)
    assert measure(symplectic, GENERAL[0]) is None
    assert isinstance(measure(symplectic, MECHANICAL[0]), Orders)


def test_the_table_has_a_row_for_each_method() -> None:
    lines = [sweep(m) for m in METHODS[:3]]
    assert table(lines).row_count == 3


@pytest.mark.slow
def test_strong_orders_come_with_their_standard_error() -> None:
    problem = geometric(0.3, "ito")
    for name, method, declared in (("euler_maruyama", euler_maruyama, 0.5), ("milstein", milstein, 1.0)):
        found = strong_order(name, method, problem, declared)
        assert found.met and 0 < found.standard_error < 0.1
