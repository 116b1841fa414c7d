"""Passivity of random networks, composition against equations written by hand, couplings from few points."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from odecore.driver.integrate import integrate
from odecore.implicit.discrete_gradient import DiscreteGradient
from odecore.learn.fields import MLP
from odecore.learn.port_hamiltonian import (
    Damping,
    Energy,
    PortHamiltonian,
    canonical,
    compose,
    recover_coupling,
)

PORT = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
COUPLING = torch.zeros(4, 4, dtype=torch.float64)
COUPLING[1, 2], COUPLING[2, 1] = 1.0, -1.0


class Spring(nn.Module):
    def __init__(self, mass: float, stiffness: float) -> None:
        super().__init__()
        self.mass, self.stiffness = mass, stiffness

    def forward(self, y: Tensor) -> Tensor:
        return y[..., 1].square() / (2 * self.mass) + self.stiffness * y[..., 0].square() / 2


class Cubic(nn.Module):
    def __init__(self, mass: float) -> None:
        super().__init__()
        self.mass = mass

    def forward(self, y: Tensor) -> Tensor:
        return y[..., 1:] / self.mass


def exact(mass: float, stiffness: float) -> PortHamiltonian:
    damping = Damping(Cubic(mass), (1,), size=2)
    return PortHamiltonian(Spring(mass, stiffness), canonical(1), damping=damping, ports=PORT)


def random_system(seed: int) -> PortHamiltonian:
    def network(outputs: int, offset: int) -> MLP:
        return MLP((2, 16, outputs), seed=seed + offset, dtype=torch.float64)

    return PortHamiltonian(Energy(network(1, 100)), canonical(1),
                           damping=Damping(network(4, 200), (0, 1), size=2, columns=2), ports=PORT)


def states(size: int, count: int = 200) -> Tensor:
    return 2 * torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("seed", range(5))
def test_a_random_composition_is_passive_at_random_states_and_controls(seed: int) -> None:
    skew = torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    system = compose([random_system(seed), random_system(seed + 7)], skew - skew.T)
    y, u = states(4), states(2)
    stored = (system.gradient(y) * system(y, torch.zeros(len(y)), u)).sum(1)
    supplied = (system.output(y) * u).sum(1)
    assert bool((stored <= supplied + 1e-12).all()) and bool((stored < supplied - 1e-6).any())


def test_two_exact_parts_make_the_equations_of_the_whole() -> None:
    m1, k1, m2, k2 = 1.0, 1.5, 0.7, 2.0
    y, u = states(4), states(2)
    q1, p1, q2, p2 = y.unbind(1)
    v1, v2 = p1 / m1, p2 / m2
    by_hand = torch.stack((v1, -k1 * q1 + k2 * q2 - v1**3 + u[:, 0], v2 - v1, -k2 * q2 - v2**3 + u[:, 1]), 1)
    whole = compose([exact(m1, k1), exact(m2, k2)], COUPLING)
    torch.testing.assert_close(whole(y, torch.zeros(len(y)), u), by_hand, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole.problem()(y, torch.zeros(len(y)), u), by_hand, rtol=1e-12, atol=1e-12)


def test_a_coupling_is_recovered_from_three_points() -> None:
    parts, y = [exact(1.0, 1.5), exact(0.7, 2.0)], states(4, 3)
    found = recover_coupling(parts, y, compose(parts, COUPLING)(y, torch.zeros(3)))
    torch.testing.assert_close(found.matrix, COUPLING, rtol=0, atol=1e-12)
    assert found.rank == found.unknowns == 4 and found.residual < 1e-12


def test_one_point_does_not_say_all_of_a_coupling() -> None:
    parts, y = [exact(1.0, 1.5), exact(0.7, 2.0)], states(4, 1)
    found = recover_coupling(parts, y, compose(parts, COUPLING)(y, torch.zeros(1)))
    assert found.rank < found.unknowns


def test_a_composition_trains_its_parts_and_its_structure_stays_skew() -> None:
    parts = [random_system(0), random_system(1)]
    whole = compose(parts, COUPLING, learn_coupling=True)
    whole(states(4), torch.zeros(200)).square().sum().backward()
    # An energy's last bias is a constant that no field sees.
    assert all(p.grad is not None for part in parts for p in list(part.energy.parameters())[:-1])
    assert whole.upper.grad is not None
    with torch.no_grad():
        whole.upper.sub_(whole.upper.grad)
    assert torch.equal(whole.skew, -whole.skew.T)


def test_the_free_system_never_gains_energy_under_the_discrete_gradient_at_long_steps() -> None:
    system = compose([exact(1.0, 1.5), exact(0.7, 2.0)], COUPLING)
    ys = integrate(DiscreteGradient(), system.problem(), states(4, 5), [0.5 * k for k in range(21)], trajectory=True).ys
    assert ys is not None
    energies = torch.stack([system.energy(y) for y in ys.unbind(1)])
    assert bool((energies.diff(dim=0) <= 1e-12 * energies[0]).all())


def test_controls_reach_the_field_through_the_driver() -> None:
    system = exact(1.0, 1.0)
    y, u = states(2, 3), torch.ones(3, 1, dtype=torch.float64)
    driven = integrate(DiscreteGradient(), system.problem(), y, [0.0, 0.001], args=(u,)).y
    free = integrate(DiscreteGradient(), system.problem(), y, [0.0, 0.001]).y
    torch.testing.assert_close((driven - free)[:, 1], torch.full((3,), 0.001, dtype=torch.float64), rtol=0.02, atol=0)


def test_wrong_matrices_are_refused() -> None:
    with pytest.raises(ValueError, match="give a square matrix"):
        PortHamiltonian(Spring(1, 1), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="give one row for each"):
        PortHamiltonian(Spring(1, 1), canonical(1), ports=torch.zeros(3, 1))
    with pytest.raises(ValueError, match="give a skew matrix"):
        compose([exact(1, 1)], torch.eye(2))
    with pytest.raises(ValueError, match="at least one"):
        compose([])
    with pytest.raises(ValueError, match="give \\(points, 4\\)"):
        recover_coupling([exact(1, 1), exact(1, 1)], torch.zeros(2, 3), torch.zeros(2, 3))
