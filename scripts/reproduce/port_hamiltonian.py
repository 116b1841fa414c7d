"""Learn two spring-mass-dampers apart and put them together: `python scripts/reproduce/port_hamiltonian.py`.

After Neary & Topcu 2023 (arXiv:2212.00893): each submodel, with cubic damping and a port for a force, is a
port-Hamiltonian network trained on trajectories of its own under random forces. The two are then composed, with a
coupling that is known or found from a handful of points, and rolled out as a system that neither has seen. A
network that knows nothing, trained on trajectories of the composed system itself, stands beside. Energies along
long rollouts tell whether the balance is kept, by steps of RK4 and by the discrete gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
import torch
from claims import Claim, parser, print_claims, write
from torch import Tensor, nn

from odecore.driver.integrate import integrate
from odecore.explicit.embedded import DOP853, EmbeddedPair
from odecore.explicit.tableaus import RK4
from odecore.implicit.discrete_gradient import DiscreteGradient
from odecore.learn.callbacks import cosine_decay
from odecore.learn.fields import MLP
from odecore.learn.fit import adam, fit, minibatches
from odecore.learn.port_hamiltonian import Damping, Energy, PortHamiltonian, canonical, compose, recover_coupling
from odecore.learn.rollout import rollout_loss, trajectories, windows

STEP = 0.01
STEPPER = EmbeddedPair(RK4, embedded=(1.0, 0.0, 0.0, 0.0), error_order=2)
MASSES, STIFFNESSES, DAMPINGS = (1.0, 0.8), (1.2, 1.5), (0.5, 0.3)
PORT = torch.tensor([[0.0], [1.0]])
COUPLING = torch.zeros(4, 4, dtype=torch.float64)
COUPLING[1, 2], COUPLING[2, 1] = 1.0, -1.0


@dataclass(frozen=True, slots=True)
class Size:
    """How much to run."""

    runs: int = 100
    length: int = 50
    steps: int = 1000
    batch: int = 128
    tests: int = 20
    horizon: float = 10.0


QUICK = Size(runs=10, length=20, steps=25, tests=3, horizon=0.5)


def part(index: int) -> Callable[..., Tensor]:
    """A true submodel: extension q and momentum p under a force u."""
    m, k, b = MASSES[index], STIFFNESSES[index], DAMPINGS[index]

    def field(y: Tensor, t: Tensor, u: Tensor) -> Tensor:
        v = y[:, 1] / m
        return torch.stack((v, -k * y[:, 0] - b * v**3 + u[:, 0]), 1)

    return field


def whole(y: Tensor, t: Tensor) -> Tensor:
    """The true composition: the second mass hangs on the first."""
    q1, p1, q2, p2 = y.unbind(1)
    v1, v2 = p1 / MASSES[0], p2 / MASSES[1]
    first = -STIFFNESSES[0] * q1 + STIFFNESSES[1] * q2 - DAMPINGS[0] * v1**3
    return torch.stack((v1, first, v2 - v1, -STIFFNESSES[1] * q2 - DAMPINGS[1] * v2**3), 1)


def grid(steps: int) -> list[float]:
    """Times of so many steps."""
    return [STEP * k for k in range(steps + 1)]


def starts(count: int, size: int, seed: int) -> Tensor:
    """Random initial states."""
    return 2 * torch.rand(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


def learn_part(index: int, size: Size, seed: int) -> PortHamiltonian:
    """Train one submodel on its own trajectories, by one step of RK4 each."""
    y0, u = 2 * starts(size.runs, 2, seed), 2 * starts(size.runs, 1, seed + 50)
    data = windows(trajectories(STEPPER, part(index), y0, grid(size.length), args=(u,)), 1).float()
    forces = u.repeat_interleave(size.length, 0).float()
    system = PortHamiltonian(
        Energy(MLP((2, 32, 32, 1), seed=seed)), canonical(1, torch.float32), ports=PORT,
        damping=Damping(MLP((2, 32, 1), seed=seed + 1), (1,), size=2))
    fit(system, rollout_loss(STEPPER, grid(1), weight=STEP**-2), minibatches(data, forces, size=size.batch, seed=seed),
        steps=size.steps, optimizer=adam(1e-2), callbacks=[cosine_decay(size.steps)])
    return system.double()


class Plain(nn.Module):
    """A field that knows nothing."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.network = MLP((4, 64, 64, 4), seed=seed)

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        """The network's value."""
        return self.network(y)


def learn_whole(size: Size, seed: int) -> Plain:
    """Train a plain network on as many trajectories of the composed system."""
    data = windows(trajectories(STEPPER, whole, 2 * starts(size.runs, 4, seed), grid(size.length)), 1).float()
    field = Plain(seed)
    fit(field, rollout_loss(STEPPER, grid(1), weight=STEP**-2), minibatches(data, size=size.batch, seed=seed),
        steps=2 * size.steps, optimizer=adam(1e-2), callbacks=[cosine_decay(2 * size.steps)])
    return field.double()


def distance(field: Callable[..., Tensor], y0: Tensor, truth: Tensor) -> float:
    """Root mean square of the error of a rollout, relative to that of the truth."""
    predicted = trajectories(STEPPER, field, y0, grid(truth.shape[1] - 1))
    return float((predicted - truth).square().mean().sqrt() / truth.square().mean().sqrt())


@torch.no_grad()
def gained(system: PortHamiltonian, y: Tensor, u: Tensor) -> float:
    """Largest excess of dH/dt over the supplied power; a passive system has none."""
    stored = (system.gradient(y) * system(y, torch.zeros(len(y)), u)).sum(1)
    return float((stored - (system.output(y) * u).sum(1)).max())


def draw(path: str, truth: Tensor, ours: Tensor, plain: Tensor, energies: Tensor) -> None:
    """A rollout of the composed system, and its energy."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
    t = grid(truth.shape[0] - 1)
    for states, name, style in ((truth, "truth", "k-"), (ours, "parts learned apart, composed", "C0--"),
                                (plain, "plain network, trained on the whole", "C1:")):
        left.plot(t, states[:, 0], style, label=name)
    left.set(xlabel="time", ylabel="position of the first mass", title="The composed system", ylim=(-1.6, 2.6))
    left.legend(frameon=False, fontsize=8, loc="upper right")
    right.plot(t, energies - energies[-1], color="C0")
    right.set(xlabel="time", ylabel="learned energy above its last", title="Energy by the discrete gradient")
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run all of it."""
    arguments = parser(__doc__).parse_args()
    size = QUICK if arguments.quick else Size()
    seed = 1000 * arguments.seed
    parts = [learn_part(index, size, seed + 100 * index) for index in range(2)]
    plain = learn_whole(size, seed + 200)
    composed = compose(parts, COUPLING)
    y0 = starts(size.tests, 4, seed + 300)
    truth = trajectories(DOP853, whole, y0, grid(round(size.horizon / STEP)))
    few = truth[:, ::10].flatten(0, 1)[torch.randperm(size.tests * 3, generator=torch.Generator().manual_seed(7))[:10]]
    found = recover_coupling(parts, few, whole(few, few))
    y, u = 3 * starts(2000, 4, seed + 400), 3 * starts(2000, 2, seed + 401)
    error, baseline = distance(composed, y0, truth), distance(plain, y0, truth)
    system = composed.problem()
    length = grid(len(grid(round(size.horizon / STEP))) - 1)[::10]
    with torch.no_grad():
        path = integrate(DiscreteGradient(), system, y0, length, trajectory=True).ys
    assert path is not None
    energies = torch.stack([composed.energy(state) for state in path.unbind(1)]).detach()
    claims = [
        Claim(f"composed, C known: relative error of a rollout of {size.horizon:g} s", error, baseline,
              "plain network on the whole, this run", baseline),
        Claim("composed, C from 10 points: the same", distance(compose(parts, found.matrix), y0, truth), error,
              "C known, this run"),
        Claim("largest error of an entry of C, from 10 points", float((found.matrix - COUPLING).abs().max()), 0.0,
              "true C", 0.05),
        Claim("passivity: most of dH/dt - yᵀu on 2000 random states and forces", gained(composed, y, u), 0.0,
              "theory", 1e-9),
        Claim("largest rise of H in a step of .1 by the discrete gradient", float(energies.diff(dim=0).max()), 0.0,
              "theory", 1e-9),
    ]
    print_claims("Two spring-mass-dampers learned apart", claims)
    write(arguments, claims)
    if arguments.figure is not None:
        ours, other = (trajectories(STEPPER, f, y0[:1], grid(truth.shape[1] - 1))[0] for f in (composed, plain))
        fine = integrate(DiscreteGradient(), system, y0[:1], grid(truth.shape[1] - 1)[::5], trajectory=True).ys
        assert fine is not None
        along = torch.repeat_interleave(composed.energy(fine[0]).detach(), 5)[:truth.shape[1]]
        draw(arguments.figure, truth[0], ours, other, along)


if __name__ == "__main__":
    main()
