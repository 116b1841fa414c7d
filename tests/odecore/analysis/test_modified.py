from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import jvp

from odecore import solve
from odecore.analysis.modified import (
    Scheme,
    at_step,
    exact_flow,
    inverse_modified,
    matching_field,
    modified,
    of_plan,
    runge_kutta,
    substeps,
)
from odecore.explicit.embedded import DOP853
from odecore.explicit.tableaus import EULER, HEUN, MIDPOINT, RK4
from odecore.implicit.tableaus import CRANK_NICOLSON, GAUSS2
from odecore.plan import Plan, Row
from odecore.schemes import ode
from odecore.schemes.adams import adams_bashforth
from odecore.stepper import Field

Y = torch.tensor([[0.5, 1.0], [1.2, -0.3], [-0.7, 0.4]], dtype=torch.float64)
T = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)


def pendulum(y: Tensor, t: Tensor) -> Tensor:
    return torch.stack((y[:, 1], -torch.sin(y[:, 0])), 1)


def driven(y: Tensor, t: Tensor) -> Tensor:
    """Not autonomous: damping and a force in time."""
    return torch.stack((y[:, 1], -torch.sin(y[:, 0]) - 0.2 * y[:, 1] ** 3 + torch.cos(2 * t)), 1)


def steps(h: float) -> Tensor:
    return torch.full((len(Y),), h, dtype=torch.float64)


def flow(field: Field, h: float) -> Tensor:
    return solve(DOP853, field, Y, T, T + h, rtol=1e-13, atol=1e-14).y


def slope(errors: list[float]) -> float:
    return math.log2(errors[0] / errors[1])


def two_steps_of_adams() -> Plan:
    times = [0.0, 0.3, 0.7, 1.0]
    return Plan(adams_bashforth(ode(), times, 2), 0.0, (1.0, 1.0))


SCHEMES: list[tuple[str, Scheme, int]] = [
    ("Euler", runge_kutta(EULER), 1),
    ("two steps of Euler", substeps(runge_kutta(EULER), 2), 1),
    ("midpoint", runge_kutta(MIDPOINT), 2),
    ("Crank-Nicolson", runge_kutta(CRANK_NICOLSON, passes=6), 2),
    ("Gauss", runge_kutta(GAUSS2, passes=6), 2),
    ("Adams, a plan", of_plan(two_steps_of_adams()), 2)]


CASES = [pytest.param(scheme, order, extra, id=f"{name} +{extra}")
         for name, scheme, order in SCHEMES for extra in ((0, 1) if name in ("Crank-Nicolson", "Gauss") else (0, 1, 2))]


@pytest.mark.parametrize(("scheme", "order", "extra"), CASES)
def test_a_scheme_with_the_inverse_modified_field_follows_the_solution(scheme: Scheme, order: int, extra: int) -> None:
    truncated = order - 1 + extra
    field = inverse_modified(scheme, driven, truncated, scheme_order=order)
    errors = [(scheme(at_step(field, h), Y, T, steps(h)) - flow(driven, h)).abs().max().item() for h in (0.1, 0.05)]
    assert slope(errors) == pytest.approx(truncated + 2, abs=0.45)


@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize(("scheme", "order"), [(s, p) for _, s, p in SCHEMES[:3]], ids=[n for n, _, _ in SCHEMES[:3]])
def test_the_solution_of_the_modified_equation_is_what_the_scheme_computes(
    scheme: Scheme, order: int, extra: int
) -> None:
    truncated = order - 1 + extra
    field = modified(scheme, driven, truncated, scheme_order=order)
    errors = [(flow(at_step(field, h), h) - scheme(driven, Y, T, steps(h))).abs().max().item() for h in (0.1, 0.05)]
    assert slope(errors) == pytest.approx(truncated + 2, abs=0.45)


def test_eulers_inverse_modified_field_is_the_published_series() -> None:
    def derivative(value: Field) -> Field:
        return lambda y, t: jvp(lambda z: value(z, t), (y,), (pendulum(y, t),))[1]

    first, second, third = (derivative(pendulum), derivative(derivative(pendulum)),
                            derivative(derivative(derivative(pendulum))))

    def series(h: float) -> Tensor:
        return pendulum(Y, T) + h / 2 * first(Y, T) + h**2 / 6 * second(Y, T) + h**3 / 24 * third(Y, T)

    field = inverse_modified(runge_kutta(EULER), pendulum, 3)
    errors = [(field(Y, T, steps(h)) - series(h)).abs().max().item() for h in (0.1, 0.05)]
    assert slope(errors) == pytest.approx(4, abs=0.3)
    assert errors[1] < 1e-6


def test_eulers_modified_field_of_a_linear_problem_is_the_logarithm() -> None:
    h, rate = 0.05, -1.3
    field = modified(runge_kutta(EULER), lambda y, t: rate * y, 3)
    assert torch.allclose(field(Y, T, steps(h)), math.log1p(h * rate) / h * Y, rtol=5e-5)


def test_what_a_symplectic_scheme_solves_is_free_of_divergence() -> None:
    def divergence(field: Field) -> float:
        shift = 1e-4 * torch.eye(2, dtype=torch.float64)
        return sum((field(Y + d, T) - field(Y - d, T))[:, i] / 2e-4 for i, d in enumerate(shift)).abs().max().item()

    h = 0.05
    of_euler = divergence(at_step(modified(runge_kutta(EULER), pendulum, 2), h))
    of_gauss = divergence(at_step(modified(runge_kutta(GAUSS2, passes=5), pendulum, 3, scheme_order=2), h))
    assert of_gauss < of_euler / 1000


def test_a_known_order_saves_passes_and_changes_little() -> None:
    h, scheme = 0.1, runge_kutta(MIDPOINT)
    few = inverse_modified(scheme, driven, 3, scheme_order=2)(Y, T, steps(h))
    many = inverse_modified(scheme, driven, 3)(Y, T, steps(h))
    assert (few - many).abs().max() < 20 * h**4


def test_a_plan_is_the_same_scheme_as_its_steps() -> None:
    rows = (Row(0.0, 0.5, anchor=(1.0, 0.0, 0.5)), Row(0.5, 1.0, anchor=(1.0, 0.0, 0.5)))
    plan = of_plan(Plan(rows, 0.0, (1.0, 1.0)))
    assert torch.allclose(plan(driven, Y, T, steps(0.2)), substeps(runge_kutta(EULER), 2)(driven, Y, T, steps(0.2)),
                          rtol=1e-14)


@pytest.mark.parametrize(("order", "expected"), [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (8, 9)])
def test_the_exact_flow_is_exact_to_its_order(order: int, expected: int) -> None:
    errors = [(exact_flow(order)(driven, Y, T, steps(h)) - flow(driven, h)).abs().max().item() for h in (0.8, 0.4)]
    assert slope(errors) > expected - 0.6


def test_gradients_reach_what_the_field_is_made_of() -> None:
    rate = torch.tensor(-1.3, dtype=torch.float64, requires_grad=True)
    field = inverse_modified(runge_kutta(HEUN), lambda y, t: rate * y, 2, scheme_order=2)
    (gradient,) = torch.autograd.grad(field(Y, T, steps(0.1)).sum(), rate)
    h = 1e-6
    values = [inverse_modified(runge_kutta(HEUN), lambda y, t, r=r: r * y, 2, scheme_order=2)(Y, T, steps(0.1)).sum()
              for r in (-1.3 + h, -1.3 - h)]
    assert gradient.item() == pytest.approx(((values[0] - values[1]) / (2 * h)).item(), rel=1e-6)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: inverse_modified(runge_kutta(EULER), driven, 8), "order=8"),
    (lambda: modified(runge_kutta(EULER), driven, -1), "order=-1"),
    (lambda: inverse_modified(runge_kutta(EULER), driven, 1, scheme_order=0), "scheme_order=0"),
    (lambda: matching_field(runge_kutta(EULER), exact_flow(2), driven, -1), "passes=-1"),
    (lambda: runge_kutta(GAUSS2), "passes=None"),
    (lambda: exact_flow(9), "order=9"),
    (lambda: substeps(runge_kutta(RK4), 0), "count=0"),
    (lambda: of_plan(Plan((Row(0.0, 1.0, anchor=(1.0, 0.0, 1.0), noise=0.1),), 0.0)), "noise"),
    (lambda: of_plan(Plan((Row(0.0, 1.0, anchor=(0.5, 0.0, 1.0)),), 0.0, (0.5, 1.0))), "plan.exact")])
def test_wrong_arguments_are_refused(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
