"""Symplectic methods: orders, energy, area, reversibility."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from odecore.driver.integrate import integrate
from odecore.driver.solve import solve
from odecore.explicit.embedded import DORMAND_PRINCE
from odecore.explicit.symplectic import FOREST_RUTH, LEAPFROG, SUZUKI, SYMPLECTIC_EULER, YOSHIDA, Symplectic
from odecore.problem import Separable

STEPPERS = {"euler": SYMPLECTIC_EULER, "leapfrog": LEAPFROG, "forest-ruth": FOREST_RUTH, "suzuki": SUZUKI,
            "yoshida": YOSHIDA}
SYMMETRIC = [stepper for stepper in STEPPERS.values() if stepper is not SYMPLECTIC_EULER]

OSCILLATOR = Separable(lambda p, t: p, lambda q, t: -4 * q)
PENDULUM = Separable(lambda p, t: p, lambda q, t: -torch.sin(q))
DRIVEN = Separable(lambda p, t: torch.sinh(p) * (1 + torch.sin(t).reshape(-1, 1) / 2),
                   lambda q, t: -torch.sin(q) + torch.cos(3 * t).reshape(-1, 1))
"""Both parts are non-linear and depend on time, so that wrong times of stages show."""

FIELDS = {
    "oscillator": (OSCILLATOR, lambda t, y: [y[1], -4 * y[0]]),
    "pendulum": (PENDULUM, lambda t, y: [y[1], -np.sin(y[0])]),
    "driven": (DRIVEN, lambda t, y: [np.sinh(y[1]) * (1 + np.sin(t) / 2), -np.sin(y[0]) + np.cos(3 * t)]),
}
START = torch.tensor([[[1.0], [0.2]]], dtype=torch.float64)


def grid(end: float, count: int) -> Tensor:
    return torch.linspace(0, end, count + 1, dtype=torch.float64)


@pytest.mark.parametrize("name", STEPPERS)
@pytest.mark.parametrize("problem", FIELDS)
def test_the_order_is_the_declared_one(name: str, problem: str) -> None:
    stepper, (field, f) = STEPPERS[name], FIELDS[problem]
    exact = torch.from_numpy(solve_ivp(f, (0, 2), START.flatten(), method="DOP853", rtol=3e-14, atol=1e-15).y[:, -1])
    counts = [64, 80, 101, 128] if stepper.order > 4 else [120, 160, 213, 285]
    errors = [(integrate(stepper, field, START, grid(2.0, n)).y.flatten() - exact).norm().item() for n in counts]
    assert abs(-np.polyfit(np.log(counts), np.log(errors), 1)[0] - stepper.order) < 0.15


def energy(y: Tensor) -> Tensor:
    position, momentum = y.unbind(1)
    return momentum.square() / 2 - torch.cos(position)


@pytest.mark.parametrize("name", STEPPERS)
def test_the_energy_error_stays_bounded_over_hundreds_of_periods(name: str) -> None:
    states = integrate(STEPPERS[name], PENDULUM, START, grid(600.0, 3000), trajectory=True).ys
    assert states is not None
    error = (energy(states[0]) - energy(START)).abs().flatten()
    assert error[1500:].max() <= 1.2 * error[:300].max()


def test_the_energy_of_a_method_that_is_not_symplectic_drifts() -> None:
    """What the claim above would not hold for."""
    states = integrate(DORMAND_PRINCE, PENDULUM, START, grid(600.0, 1200), trajectory=True).ys
    assert states is not None
    error = (energy(states[0]) - energy(START)).abs().flatten()
    assert error[600:].max() >= 3 * error[:120].max()


@pytest.mark.parametrize("name", STEPPERS)
def test_the_flow_keeps_area_and_the_symplectic_form(name: str) -> None:
    """For two degrees of freedom, Jᵀ Ω J = Ω."""
    def force(q: Tensor, t: Tensor) -> Tensor:
        first, second = q.unbind(1)
        return torch.stack((-first - 2 * first * second, -second - first.square() + second.square()), 1)

    def flow(y: Tensor) -> Tensor:
        problem = Separable(lambda p, t: p, force)  # Hénon and Heiles
        return integrate(STEPPERS[name], problem, y.reshape(1, 2, 2), grid(2.0, 6)).y.flatten()

    jacobian = torch.func.jacrev(flow)(torch.tensor([0.3, -0.1, 0.2, 0.25], dtype=torch.float64))
    form = torch.kron(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]), torch.eye(2)).double()
    assert torch.linalg.det(jacobian).item() == pytest.approx(1.0, abs=1e-13)
    torch.testing.assert_close(jacobian.T @ form @ jacobian, form, rtol=0, atol=1e-13)


@pytest.mark.parametrize("stepper", SYMMETRIC, ids=lambda s: s.source[:12])
def test_symmetric_methods_run_back_the_way_they_came(stepper: Symplectic) -> None:
    times = grid(5.0, 20)
    there = integrate(stepper, DRIVEN, START, times).y
    back = integrate(stepper, DRIVEN, there, times.flip(0)).y
    torch.testing.assert_close(back, START, rtol=0, atol=1e-12)


def test_leapfrog_is_kick_drift_kick() -> None:
    h = 0.1
    t = torch.tensor([0.5], dtype=torch.float64)
    q, p = START.unbind(1)
    half = p + h / 2 * DRIVEN.force(q, t)
    moved = q + h * DRIVEN.velocity(half, t + h / 2)
    expected = torch.stack((moved, half + h / 2 * DRIVEN.force(moved, t + h)), 1)
    carry, _ = LEAPFROG.start(DRIVEN, t, START)
    torch.testing.assert_close(LEAPFROG.step(DRIVEN, t, t + h, START, carry).y, expected, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize(("name", "forces"), [("euler", 10), ("leapfrog", 11), ("forest-ruth", 31), ("suzuki", 51),
                                              ("yoshida", 71)])
def test_the_last_force_of_a_step_is_the_first_of_the_next(name: str, forces: int) -> None:
    calls: list[int] = []

    def counted(q: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return -q

    solution = integrate(STEPPERS[name], Separable(lambda p, t: p, counted), START, grid(1.0, 10))
    assert len(calls) == forces == solution.nfe


def test_samples_have_their_own_times() -> None:
    times = torch.stack((grid(2.0, 10), 1 - grid(1.0, 10)), 1)
    start = torch.cat((START, -START))
    together = integrate(FOREST_RUTH, DRIVEN, start, times).y
    for i in range(2):
        alone = integrate(FOREST_RUTH, DRIVEN, start[i:i + 1], times[:, i]).y
        torch.testing.assert_close(together[i:i + 1], alone, rtol=1e-15, atol=1e-15)


def test_complex_oscillators_turn() -> None:
    start = torch.tensor([[[1.0 + 1j], [0.0]]], dtype=torch.complex128)
    turned = integrate(YOSHIDA, OSCILLATOR, start, grid(math.pi, 60)).y
    torch.testing.assert_close(turned, start, rtol=0, atol=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    k = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def final(y0: Tensor, k: Tensor, times: Tensor) -> Tensor:
        problem = Separable(lambda p, t: torch.sinh(p), lambda q, t: -k * torch.sin(q) * torch.cos(t).reshape(-1, 1))
        return integrate(FOREST_RUTH, problem, y0, times).y

    times = grid(1.0, 3).requires_grad_()
    assert torch.autograd.gradcheck(final, (START.clone().requires_grad_(), k, times))


@pytest.mark.parametrize(("kicks", "drifts", "message"), [
    ((1.0,), (), "give one for each of the 0 drifts"),
    ((0.5, 0.25, 0.25), (1.0,), "give one for each of the 1 drifts"),
    ((0.5, 0.4), (1.0,), "kicks=.* must sum to one"),
    ((0.5, 0.5), (0.4, 0.5), "drifts=.* must sum to one"),
])
def test_coefficients_that_do_not_fit_are_refused(kicks: tuple, drifts: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Symplectic(kicks, drifts, order=1)


def test_problems_that_are_not_separable_are_refused() -> None:
    with pytest.raises(ValueError, match="a symplectic method needs a Separable problem"):
        integrate(LEAPFROG, lambda y, t: y, START, grid(1.0, 2))


@pytest.mark.parametrize("shape", [(2,), (2, 3, 1)])
def test_states_without_positions_and_momenta_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give positions and momenta in axis 1"):
        integrate(LEAPFROG, OSCILLATOR, torch.ones(shape, dtype=torch.float64), grid(1.0, 2))


def test_the_adaptive_driver_refuses_a_method_without_an_error_estimate() -> None:
    with pytest.raises(ValueError, match="error_order=0"):
        solve(LEAPFROG, OSCILLATOR, START, 0.0, 1.0, rtol=1e-3, atol=1e-3)
