"""Learn the contact of a chain with a floor: `python scripts/reproduce/physics_informed_contact.py`.

A larger system in the manner of Djeumou et al. 2022 (arXiv:2109.06407): eight masses side by side move up and down,
joined to their neighbours by springs, and bounce off a floor at height zero (16 state variables)::

    dq_k/dt = v_k      dv_k/dt = -g + κ (q_{k-1} - 2 q_k + q_{k+1}) - c v_k + λ(q_k, v_k)

The force λ of the floor is unknown: a stiff spring with damping that pushes and never pulls. Levels: a network for
all derivatives (none); the known form with one network for λ, the same for every mass (structure); the same with
λ ≥ 0 everywhere and λ = 0 off the floor, by an augmented Lagrangian at collocation points (structure + constraints).
All see the same trajectories and take the same training steps, the first level at a lower rate (3e-3 for 1e-2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
import torch
from claims import Claim, parser, print_claims, write
from physics_informed import STEP, STEPPER, Plain, error_of
from torch import Tensor, nn

from odecore.learn.callbacks import cosine_decay
from odecore.learn.constraints import AugmentedLagrangian, Constraint, equality, inequality
from odecore.learn.fields import MLP, StructuredField, Unknown
from odecore.learn.fit import adam, fit, minibatches
from odecore.learn.rollout import rollout_loss, trajectories, windows

MASSES, GRAVITY, SPRING, DAMPING, STIFF, LOSS = 8, 9.81, 40.0, 0.2, 1500.0, 0.15
LEVELS = ("none", "structure", "structure + constraints")


@dataclass(frozen=True, slots=True)
class Size:
    """How much to run."""

    count: int = 20
    length: int = 150
    steps: int = 1000
    width: int = 48
    batch: int = 64
    points: int = 1000
    tests: int = 20


QUICK = Size(count=2, length=20, steps=20, width=8, batch=16, points=50, tests=2)


def known(y: Tensor, t: Tensor, force: Tensor) -> Tensor:
    """All but the floor; the chain ends at fixed heights of one."""
    q, v = y[:, :MASSES], y[:, MASSES:]
    ends = torch.ones_like(q[:, :1])
    padded = torch.cat((ends, q, ends), 1)
    pull = SPRING * (padded[:, :-2] - 2 * q + padded[:, 2:])
    return torch.cat((v, pull - GRAVITY - DAMPING * v + force.squeeze(-1)), 1)


def contact(seen: Tensor) -> Tensor:
    """The floor: ``max(k d (1 - c v), 0)`` at depth d = max(-q, 0)."""
    q, v = seen.unbind(-1)
    return (STIFF * (-q).clamp_min(0.0) * (1 - LOSS * v)).clamp_min(0.0).unsqueeze(-1)


def each(y: Tensor, t: Tensor) -> Tensor:
    """Height and velocity of every mass."""
    return torch.stack((y[:, :MASSES], y[:, MASSES:]), -1)


def truth(y: Tensor, t: Tensor) -> Tensor:
    """The chain and its floor."""
    return known(y, t, contact(each(y, t)))


def data(count: int, length: int, seed: int) -> Tensor:
    """Trajectories from random heights above the floor."""
    noise = torch.rand(count, 2 * MASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    start = torch.cat((0.1 + 0.9 * noise[:, :MASSES], 2 * noise[:, MASSES:] - 1), 1)
    fine = trajectories(STEPPER, truth, start, [STEP / 4 * k for k in range(4 * length + 1)])
    return fine[:, ::4]


class Force(nn.Module):
    """``100 N(10 q, v)``: a network whose numbers are of order one."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.network = MLP((2, width, width, 1), seed=seed, dtype=torch.float64)

    def forward(self, seen: Tensor) -> Tensor:
        """λ at heights and velocities."""
        return 100 * self.network(seen * seen.new_tensor([10.0, 1.0]))


def field_of(level: str, width: int, seed: int) -> nn.Module:
    """The untrained field of a level."""
    if level == "none":
        return Plain(4 * width, seed, size=2 * MASSES)
    return StructuredField(known, {"force": Unknown(Force(width, seed), each)})


def force(field: nn.Module, points: Tensor) -> Tensor:
    """λ at collocation points, in units of 100."""
    assert isinstance(field, StructuredField)
    term = field.unknowns["force"]
    assert isinstance(term, Unknown)
    return term.network(points) / 100


def constraints(points: int, seed: int) -> dict[str, Constraint]:
    """Above and below the floor, at all velocities that occur."""
    noise = torch.rand(points, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    where = noise * noise.new_tensor([1.6, 10.0]) - noise.new_tensor([0.15, 5.0])
    return {"pushes": Constraint(inequality, lambda field, p: -force(field, p), where),
            "off the floor": Constraint(equality, force, where[where[:, 0] > 0])}


class Outcome(NamedTuple):
    """Error of rollouts, and the mean violation of each constraint, in units of the force."""

    error: float
    violations: dict[str, float]
    field: nn.Module


def run(level: str, size: Size, seed: int) -> Outcome:
    """Train one level."""
    field, rows = field_of(level, size.width, seed), windows(data(size.count, size.length, seed), 1)
    lagrangian = AugmentedLagrangian(constraints(size.points, seed), weight=1.0, every=max(1, size.steps // 20),
                                     batch=size.batch)
    loss, callbacks = rollout_loss(STEPPER, (0.0, STEP), weight=STEP**-2 / 100), [cosine_decay(size.steps)]
    if level == LEVELS[-1]:
        loss = lagrangian.added_to(loss)
        callbacks.append(lagrangian)
    fit(field, loss, minibatches(rows, size=min(size.batch, len(rows)), seed=seed), steps=size.steps,
        optimizer=adam(1e-2 if level != "none" else 3e-3), callbacks=callbacks)
    missed = {} if level == "none" else {name: 100 * value for name, value in lagrangian.violations(field).items()}
    return Outcome(error_of(field, data(size.tests, size.length, seed + 1)), missed, field)


def draw(path: str, outcomes: dict[str, Outcome]) -> None:
    """The learned force against the height, at rest and in descent."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    q = torch.linspace(-0.1, 0.3, 200, dtype=torch.float64)
    for axis, speed in zip(axes, (-2.0, 1.0), strict=True):
        seen = torch.stack((q, torch.full_like(q, speed)), 1)
        axis.plot(q, contact(seen)[:, 0], color="#bbbbbb", linewidth=4, label="truth")
        for level, colour in zip(LEVELS[1:], ("#d8572a", "#1f6fb4"), strict=True):
            with torch.no_grad():
                axis.plot(q, 100 * force(outcomes[level].field, seen)[:, 0], color=colour, label=level)
        axis.axvline(0, color="#dddddd", linewidth=0.8)
        axis.set(xlabel="height of a mass", title=f"Force of the floor, velocity {speed:+.0f}")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run all of it."""
    arguments = parser(__doc__).parse_args()
    size = QUICK if arguments.quick else Size()
    outcomes = {level: run(level, size, 1000 * arguments.seed) for level in LEVELS}
    base = outcomes["none"].error
    claims = [Claim(f"{level}: error of rollouts", outcome.error, None if level == "none" else base,
                    "" if level == "none" else "none, in this run", None if level == "none" else base)
              for level, outcome in outcomes.items()]
    free = outcomes["structure"].violations
    claims += [Claim(f"{level}: mean violation, {name}", value, None if level == "structure" else free[name],
                     "" if level == "structure" else "structure, in this run",
                     None if level == "structure" else free[name])
               for level in LEVELS[1:] for name, value in outcomes[level].violations.items()]
    print_claims("Chain of eight masses above a floor", claims)
    write(arguments, claims)
    if arguments.figure is not None:
        draw(arguments.figure, outcomes)


if __name__ == "__main__":
    main()
