"""Step doubling: the error that it measures, what it costs, and failed steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from odecore.driver.solve import solve
from odecore.explicit.embedded import BOGACKI_SHAMPINE
from odecore.half_steps import HalfSteps
from odecore.implicit.newton import Chord
from odecore.implicit.runge_kutta import CRANK_NICOLSON, GAUSS4, KVAERNO3, ImplicitRungeKutta
from odecore.stepper import Step, Stepper

METHODS = {"Crank-Nicolson": CRANK_NICOLSON, "Gauss": ImplicitRungeKutta(GAUSS4.tableau, Chord(1e-13)),
           "Kvaerno": KVAERNO3, "Bogacki-Shampine": BOGACKI_SHAMPINE}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def field(y: Tensor, t: Tensor) -> Tensor:
    return torch.cos(t).unsqueeze(1) * y * y


def exact(t: float) -> Tensor:
    return 1 / (2 - torch.sin(torch.tensor([[t], [t]], dtype=torch.float64)))


@torch.no_grad()
def stepped(method: Stepper, h: float) -> Step:
    t0 = torch.full((2,), 0.9, dtype=torch.float64)
    carry, _ = method.start(field, t0, exact(0.9))
    return method.step(field, t0, t0 + h, exact(0.9), carry)


@every_method
def test_the_estimate_is_the_error_of_the_halves(method: Stepper) -> None:
    step = stepped(HalfSteps(method), 0.02)
    torch.testing.assert_close(step.error, exact(0.92) - step.y, rtol=0.15, atol=0)


@every_method
def test_the_estimate_shrinks_one_order_faster_than_the_solution(method: Stepper) -> None:
    stepper, sizes = HalfSteps(method), [0.06, 0.045, 0.03, 0.0225]
    errors = [stepped(stepper, h).error.abs().max().item() for h in sizes]
    assert stepper.error_order == method.order + 1
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(stepper.error_order, abs=0.15)


@every_method
def test_a_step_is_two_steps_of_the_method_and_costs_three(method: Stepper) -> None:
    t0 = torch.full((2,), 0.9, dtype=torch.float64)
    calls = []

    def counted(y: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return field(y, t)

    with torch.no_grad():
        carry, _ = method.start(field, t0, exact(0.9))
        first = method.step(field, t0, t0 + 0.05, exact(0.9), carry)
        second = method.step(field, t0 + 0.05, t0 + 0.1, first.y, first.carry)
        step = HalfSteps(method).step(counted, t0, t0 + 0.1, exact(0.9), carry)
    torch.testing.assert_close(step.y, second.y, rtol=1e-14, atol=0)
    assert step.nfe >= len(calls) > 2 * min(first.nfe, second.nfe)


@torch.no_grad()
def test_it_follows_the_tolerance_with_fewer_steps_than_a_pessimistic_estimate() -> None:
    solutions = [solve(method, field, exact(0.0), 0.0, 1.5, rtol=1e-6, atol=1e-6)
                 for method in (CRANK_NICOLSON, HalfSteps(CRANK_NICOLSON))]
    for solution in solutions:
        torch.testing.assert_close(solution.y, exact(1.5), rtol=0, atol=1e-4)
    assert 2 * solutions[1].accepted[0] < solutions[0].accepted[0] / 2


@torch.no_grad()
def test_a_failure_in_any_of_the_steps_is_a_failure() -> None:
    y = torch.ones(2, 1, dtype=torch.float64)
    rates = torch.tensor([[1.0], [1e3]], dtype=torch.float64)
    t0, t1 = torch.tensor([[0.0, 0.0], [0.01, 1.0]], dtype=torch.float64)

    def exploding(y: Tensor, t: Tensor) -> Tensor:
        return rates * (1 + y * y)

    carry, _ = KVAERNO3.start(exploding, t0, y)
    step = HalfSteps(KVAERNO3).step(exploding, t0, t1, y, carry)
    assert step.error.isinf().squeeze(1).tolist() == [False, True]
