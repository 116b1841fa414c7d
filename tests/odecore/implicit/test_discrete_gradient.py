"""The energy balance of a discrete gradient step, and its order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from odecore.driver.integrate import integrate
from odecore.explicit.embedded import DOP853
from odecore.implicit.discrete_gradient import DiscreteGradient, Energetic

J = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
START = torch.tensor([[1.5, 0.0], [0.2, 1.1]], dtype=torch.float64)


def energy(y: Tensor) -> Tensor:
    return y[:, 1].square() / 2 - torch.cos(y[:, 0])


def damped(y: Tensor) -> Tensor:
    return J - torch.diag_embed(torch.stack((torch.zeros_like(y[:, 1]), 0.1 + y[:, 1].square()), 1))


PENDULUM = Energetic(energy, lambda y: J.expand(len(y), 2, 2))
DAMPED = Energetic(energy, damped)
FORCED = Energetic(energy, damped, lambda y, t: torch.stack((torch.zeros_like(t), torch.cos(t)), 1))


def grid(steps: int, end: float = 2.0) -> list[float]:
    return np.linspace(0, end, steps + 1).tolist()


def test_a_skew_structure_conserves_the_energy_over_long_times() -> None:
    ys = integrate(DiscreteGradient(), PENDULUM, START, grid(120, 30.0), trajectory=True).ys
    assert ys is not None
    drift = torch.stack([energy(y) for y in ys.unbind(1)]) - energy(START)
    assert float(drift.abs().max()) < 1e-9


def test_damping_lets_the_energy_fall_at_every_step() -> None:
    ys = integrate(DiscreteGradient(), DAMPED, START, grid(40, 20.0), trajectory=True).ys
    assert ys is not None
    assert bool((torch.stack([energy(y) for y in ys.unbind(1)]).diff(dim=0) < 0).all())


@pytest.mark.parametrize("problem", [PENDULUM, DAMPED, FORCED], ids=["conservative", "damped", "forced"])
def test_the_order_is_two(problem: Energetic) -> None:
    exact = integrate(DOP853, problem, START, grid(60)).y
    steps = [8, 16, 32, 64]
    errors = [float((integrate(DiscreteGradient(), problem, START, grid(n)).y - exact).norm()) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(slope - 2) < 0.15


def test_it_is_differentiable_in_the_start() -> None:
    def end(y: Tensor) -> Tensor:
        return integrate(DiscreteGradient(), DAMPED, y, grid(3)).y

    assert torch.autograd.gradcheck(end, START.clone().requires_grad_(), rtol=1e-5, atol=1e-7)


def test_a_state_at_rest_stays() -> None:
    rest = torch.zeros(1, 2, dtype=torch.float64)
    assert torch.equal(integrate(DiscreteGradient(), PENDULUM, rest, grid(3)).y, rest)


def test_a_plain_field_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a Energetic problem"):
        integrate(DiscreteGradient(), lambda y, t: -y, START, grid(2))
