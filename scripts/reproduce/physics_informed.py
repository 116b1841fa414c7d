"""Learn a double pendulum with and without physics: `python scripts/reproduce/physics_informed.py`.

After Djeumou et al. 2022 (arXiv:2109.06407). Levels: a network for all derivatives (none); the known form, with
networks for the two generalised forces on the inputs that they can depend on (structure); the same with their
symmetries, odd in the angles and even in the velocity, kept by an augmented Lagrangian at collocation points; and
with the symmetries by construction. All see the same trajectories, h = .01, and take the same training steps, of Adam
and then of LBFGS on a fixed choice of rows; what is compared is the error of rollouts from new states, by the
geometric mean of the distance over time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
import torch
from claims import Claim, parser, print_claims, write
from torch import Tensor, nn

from odecore.explicit.embedded import EmbeddedPair
from odecore.explicit.tableaus import RK4
from odecore.learn.callbacks import cosine_decay
from odecore.learn.constraints import AugmentedLagrangian, Constraint, equality
from odecore.learn.fields import MLP, Reflection, StructuredField, Symmetric, Unknown
from odecore.learn.fit import Loss, adam, fit, minibatches
from odecore.learn.rollout import rollout_loss, trajectories, windows

STEP, GRAVITY = 0.01, 9.81
STEPPER = EmbeddedPair(RK4, embedded=(1.0, 0.0, 0.0, 0.0), error_order=2)
SYMMETRIES = (Reflection((0, 1), odd=True), Reflection((2,), odd=False))
LEVELS = ("none", "structure", "structure + Lagrangian", "structure + symmetries")
INPUTS = {"f1": (0, 1, 3), "f2": (0, 1, 2)}


@dataclass(frozen=True, slots=True)
class Size:
    """How much to run."""

    counts: tuple[int, ...] = (5, 50)
    length: int = 150
    steps: int = 300
    width: int = 64
    batch: int = 96
    points: int = 300
    tests: int = 30
    rows: int = 300
    finish: int = 14


QUICK = Size(counts=(2,), length=10, steps=10, width=8, points=20, tests=2, rows=20, finish=1)


def joined(y: Tensor, t: Tensor, f1: Tensor, f2: Tensor) -> Tensor:
    """The known form: two equal masses and rods, whose accelerations mix the forces."""
    mixing = torch.cos(y[:, 0] - y[:, 1])
    a1, a2, f1, f2 = mixing / 2, mixing, f1[:, 0], f2[:, 0]
    scale = 1 - a1 * a2
    return torch.stack((y[:, 2], y[:, 3], (f1 - a1 * f2) / scale, (f2 - a2 * f1) / scale), 1)


def truth(y: Tensor, t: Tensor) -> Tensor:
    """The double pendulum, by the same form."""
    q1, q2, v1, v2 = y.unbind(1)
    pull = torch.sin(q1 - q2)
    f1, f2 = -v2**2 * pull / 2 - GRAVITY * torch.sin(q1), v1**2 * pull - GRAVITY * torch.sin(q2)
    return joined(y, t, f1[:, None], f2[:, None])


def data(count: int, length: int, seed: int) -> Tensor:
    """Trajectories from random states."""
    box = torch.tensor([0.8, 0.8, 0.5, 0.5], dtype=torch.float64)
    noise = torch.rand(count, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return trajectories(STEPPER, truth, (2 * noise - 1) * box, [STEP * k for k in range(length + 1)])


class Plain(nn.Module):
    """A field that knows nothing."""

    def __init__(self, width: int, seed: int, *, size: int = 4) -> None:
        super().__init__()
        self.network = MLP((size, width, width, size), seed=seed, dtype=torch.float64)

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        """The network's value."""
        return self.network(y)


def field_of(level: str, width: int, seed: int) -> nn.Module:
    """The untrained field of a level."""
    if level == "none":
        return Plain(width, seed)
    networks: list[nn.Module] = [MLP((3, width, width, 1), seed=seed + k, dtype=torch.float64) for k in (1, 2)]
    if level == "structure + symmetries":
        networks = [Symmetric(network, SYMMETRIES, inputs=3) for network in networks]
    return StructuredField(joined, {name: Unknown(network, INPUTS[name])
                                    for name, network in zip(INPUTS, networks, strict=True)})


def asymmetry(name: str, signs: tuple[int, int, int], parity: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """``g(S x) ∓ g(x)`` of a term."""
    def value(field: nn.Module, points: Tensor) -> Tensor:
        assert isinstance(field, StructuredField)
        term = field.unknowns[name]
        assert isinstance(term, Unknown)
        both = term.network(torch.cat((points, points * points.new_tensor(signs))))
        here, mirrored = both.chunk(2)
        return mirrored - parity * here

    return value


def constraints(points: int, seed: int) -> dict[str, Constraint]:
    """The symmetries as equalities at points of the whole region."""
    box = torch.tensor([1.2, 1.5, 5.0], dtype=torch.float64)
    where = (2 * torch.rand(points, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1) * box
    return {f"{name} {kind}": Constraint(equality, asymmetry(name, signs, parity), where) for name in INPUTS
            for kind, signs, parity in (("odd", (-1, -1, 1), -1), ("even", (1, 1, -1), 1))}


class Outcome(NamedTuple):
    """Geometric mean error of rollouts after Adam and at the end, mean violation of symmetries (nan without terms)."""

    first: float
    error: float
    violation: float


def lbfgs(parameters: object) -> torch.optim.Optimizer:
    """Twenty-five iterations a step, each with a line search."""
    return torch.optim.LBFGS(parameters, max_iter=25, history_size=50, tolerance_grad=0.0, tolerance_change=0.0,  # type: ignore[arg-type]
                             line_search_fn="strong_wolfe")


def enlarged(loss: Loss) -> Loss:
    """A loss times 1e4, as LBFGS takes no curvature from changes below 1e-10."""
    def total(module: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        value = loss(module, batch)
        parts = value if isinstance(value, Mapping) else {"loss": value}
        return {name: 1e4 * part for name, part in parts.items()}

    return total


def error_of(field: nn.Module, tests: Tensor) -> float:
    """Geometric mean of the distance over times and runs."""
    reached = trajectories(STEPPER, field, tests[:, 0], [STEP * k for k in range(tests.shape[1])])
    distances = (reached - tests).norm(dim=2)[:, 1:]
    return float(distances.nan_to_num(1e3).clamp(1e-9, 1e3).log().mean().exp())


def run(level: str, count: int, size: Size, seed: int) -> Outcome:
    """Train one level on so many trajectories: Adam on minibatches, then LBFGS on some of the same rows."""
    field, rows = field_of(level, size.width, seed + 10), windows(data(count, size.length, seed), 1)
    loss, moves = rollout_loss(STEPPER, (0.0, STEP), weight=STEP**-2), []
    lagrangian = AugmentedLagrangian(constraints(size.points, seed), every=max(1, size.steps // 15), batch=size.batch)
    if level == "structure + Lagrangian":
        loss, moves = lagrangian.added_to(loss), [lagrangian]
    fit(field, loss, minibatches(rows, size=min(size.batch, len(rows)), seed=seed), steps=size.steps,
        optimizer=adam(1e-2), callbacks=[cosine_decay(size.steps), *moves])
    tests = data(size.tests, size.length, seed + 1)
    first = error_of(field, tests)
    some = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:size.rows]]
    lagrangian.every, lagrangian.batch = 1, size.points
    fit(field, enlarged(loss), lambda step: (some,), steps=size.finish, optimizer=lbfgs, callbacks=moves)
    violation = float("nan") if level == "none" else sum(lagrangian.violations(field).values()) / 4
    return Outcome(first, error_of(field, tests), violation)


def draw(path: str, size: Size, table: dict[tuple[str, int], Outcome]) -> None:
    """Errors against the number of trajectories."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for level, marker in zip(LEVELS, "os^D", strict=True):
        axes.loglog(size.counts, [table[level, count].error for count in size.counts], marker=marker, label=level)
    axes.set(xlabel="training trajectories", ylabel="error of rollouts, geometric mean",
             title="Double pendulum: the same data, more physics")
    axes.set_xticks(size.counts, [str(count) for count in size.counts])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run all of it."""
    arguments = parser(__doc__).parse_args()
    size, claims, table = QUICK if arguments.quick else Size(), [], {}
    for count in size.counts:
        for level in LEVELS:
            table[level, count] = run(level, count, size, 1000 * arguments.seed)
        base, best = table["none", count], table["structure + symmetries", count]
        claims += [Claim(f"{count} trajectories, {level}: error of rollouts", table[level, count].error)
                   for level in LEVELS]
        claims.append(Claim(f"{count} trajectories: baseline over structure + symmetries, Adam alone",
                            base.first / best.first))
        claims.append(Claim(f"{count} trajectories: baseline over structure + symmetries", base.error / best.error,
                            "two orders of magnitude", "abstract", 100.0, True))
        claims += [Claim(f"{count} trajectories, {level}: mean violation of the symmetries",
                         table[level, count].violation) for level in LEVELS[1:]]
    print_claims("Double pendulum", claims)
    write(arguments, claims)
    if arguments.figure is not None:
        draw(arguments.figure, size, table)


if __name__ == "__main__":
    main()
