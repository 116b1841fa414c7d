"""The reversible coupling: inverse, order, exact gradients, constant memory."""

from __future__ import annotations

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor

from odecore.explicit.tableaus import EULER, HEUN, KUTTA3, MIDPOINT, RK4, Tableau
from odecore.gradients.reversible import reversible, reversible_step, reversible_step_back, runge_kutta_increment

METHODS = {"euler": EULER, "midpoint": MIDPOINT, "heun": HEUN, "kutta-3": KUTTA3, "rk4": RK4}


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def forced(y: Tensor, t: Tensor) -> Tensor:
    return -y + torch.cos(5 * t)


def forced_solution(y0: float, t: float) -> float:
    return (y0 - 1 / 26) * math.exp(-t) + (math.cos(5 * t) + 5 * math.sin(5 * t)) / 26


def plain(increment, y0: Tensor, times: Tensor, coupling: float) -> Tensor:  # noqa: ANN001
    y = z = y0
    for t0, t1 in zip(times[:-1], times[1:], strict=True):
        y, z = reversible_step(increment, coupling, t0, t1, y, z)
    return y


@pytest.mark.parametrize("tableau", METHODS.values(), ids=METHODS)
def test_the_coupled_scheme_keeps_the_order_of_the_method(tableau: Tableau) -> None:
    increment, steps = runge_kutta_increment(tableau, forced), (40, 80, 160, 320)
    for coupling in (0.5, 0.999, 1.0):
        errors = []
        for count in steps:
            times = torch.linspace(0, 2, count + 1, dtype=torch.float64)
            y = reversible(increment, torch.tensor(1.5, dtype=torch.float64), times, coupling=coupling)
            errors.append(abs(y.item() - forced_solution(1.5, 2.0)))
        slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
        # Below 1, methods of odd order lie between their order and the next: Ψ_h and -Ψ_{-h} err to opposite sides.
        within_next = 0.5 if coupling < 1 and tableau.order % 2 else 0.15
        assert -0.15 <= slope - tableau.order <= within_next


def test_a_step_back_undoes_a_step() -> None:
    increment = runge_kutta_increment(RK4, forced)
    t0, t1 = torch.tensor([0.3, 0.7], dtype=torch.float64)
    y, z = random(3), random(3, seed=2)
    there = reversible_step(increment, 0.9, t0, t1, y, z)
    torch.testing.assert_close(reversible_step_back(increment, 0.9, t0, t1, *there), (y, z), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("coupling", [0.9, 0.999, 1.0])
@pytest.mark.parametrize("tableau", [MIDPOINT, RK4], ids=["midpoint", "rk4"])
def test_gradients_equal_autograd_through_the_same_scheme(tableau: Tableau, coupling: float) -> None:
    matrix, y0 = random(3, 3).requires_grad_(), random(4, 3, seed=2).requires_grad_()
    unused = random(2).requires_grad_()
    times = (torch.linspace(0, 1, 21, dtype=torch.float64) ** 1.5).requires_grad_()
    increment = runge_kutta_increment(tableau, lambda y, t: torch.tanh(y @ matrix) * (1 + t))
    inputs = (y0, matrix, times)
    expected = torch.autograd.grad(plain(increment, y0, times, coupling).square().sum(), inputs)
    y = reversible(increment, y0, times, coupling=coupling, parameters=(matrix, unused))
    actual = torch.autograd.grad(y.square().sum(), inputs)
    for a, e in zip(actual, expected, strict=True):
        assert ((a - e).abs().max() / e.abs().max()).item() <= 1e-10


def test_each_sample_may_have_its_own_times() -> None:
    y0 = random(2, 3).requires_grad_()
    times = torch.stack([torch.linspace(0, 1, 9), torch.linspace(2, 0.5, 9)], dim=1).double()
    increment = runge_kutta_increment(RK4, lambda y, t: torch.sin(y) * torch.cos(t).reshape(-1, 1))
    y = reversible(increment, y0, times)
    alone = torch.cat([reversible(increment, y0[i:i + 1], times[:, i:i + 1]) for i in range(2)])
    torch.testing.assert_close(y, alone, rtol=1e-14, atol=0)
    (expected,) = torch.autograd.grad(plain(increment, y0, times, 0.999).sum(), y0)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), y0)[0], expected, rtol=1e-10, atol=0)


def test_complex_states_follow_autograds_convention() -> None:
    y0 = torch.complex(random(3), random(3, seed=2)).requires_grad_()
    increment = runge_kutta_increment(RK4, lambda y, t: (1j - 0.2) * y - 0.1 * y * y.abs().square())
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    (expected,) = torch.autograd.grad(plain(increment, y0, times, 0.999).abs().sum(), y0)
    (actual,) = torch.autograd.grad(reversible(increment, y0, times).abs().sum(), y0)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=0)


def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    most = {}
    for steps in (20, 200):
        alive: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        peak = [0]

        def field(y: Tensor, t: Tensor, alive=alive, peak=peak) -> Tensor:  # noqa: ANN001
            slope = torch.sin(y)
            alive.add(slope.untyped_storage())
            alive.add(y.untyped_storage())
            peak[0] = max(peak[0], len(alive))
            return slope

        gc.disable()
        try:
            y0 = random(3).requires_grad_()
            y = reversible(runge_kutta_increment(RK4, field), y0, torch.linspace(0, 1, steps + 1, dtype=torch.float64))
            y.sum().backward()
        finally:
            gc.enable()
        most[steps] = peak[0]
    assert most[200] == most[20]


def test_the_gradient_survives_a_thousand_steps() -> None:
    y0, rate = random(2).requires_grad_(), torch.tensor(-1.0, dtype=torch.float64).requires_grad_()
    increment = runge_kutta_increment(MIDPOINT, lambda y, t: rate * torch.sin(y))
    times = torch.linspace(0, 2, 1001, dtype=torch.float64)
    expected = torch.autograd.grad(plain(increment, y0, times, 0.999).sum(), (y0, rate))
    actual = torch.autograd.grad(reversible(increment, y0, times, parameters=(rate,)).sum(), (y0, rate))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=0)


def test_a_parameter_changed_before_the_backward_pass_raises() -> None:
    rate = torch.tensor(-1.0, dtype=torch.float64).requires_grad_()
    y = reversible(runge_kutta_increment(EULER, lambda y, t: rate * y), random(2), [0.0, 1.0], parameters=(rate,))
    with torch.no_grad():
        rate.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_wrong_arguments_raise() -> None:
    increment = runge_kutta_increment(EULER, forced)
    with pytest.raises(ValueError, match="coupling=0.0"):
        reversible(increment, random(2), [0.0, 1.0], coupling=0.0)
    with pytest.raises(ValueError, match="times has shape"):
        reversible(increment, random(2), [0.0])
