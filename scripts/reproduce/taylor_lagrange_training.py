"""Neural ODEs trained through Taylor–Lagrange steps and through adaptive solvers, for taylor_lagrange.py."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from claims import Claim
from torch import Tensor, nn
from torch.nn import functional as F

from eval.data import fashion_mnist
from odecore.driver.solve import solve
from odecore.explicit.embedded import DORMAND_PRINCE
from odecore.facade.odeint import odeint
from odecore.learn.callbacks import every
from odecore.learn.fit import Moment, adam, fit, minibatches
from odecore.learn.taylor_lagrange import DiagonalMidpoint, TaylorLagrange, fit_midpoint, roll, starts


class ImageField(nn.Module):
    """A tanh layer on pixels and time, and back: the field of the classifying neural ODE."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(size + 1, width), nn.Linear(width + 1, size)

    def forward(self, y: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        time = t.to(y.dtype).expand(len(y)).unsqueeze(1)
        return self.out(torch.cat((torch.tanh(self.into(torch.cat((torch.tanh(y), time), 1))), time), 1))


class FlowField(nn.Module):
    """A field in the plane and its divergence, by its own tangents, so that any solver can follow it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 2)))

    def forward(self, y: Tensor, t: Tensor) -> Tensor:  # noqa: D102
        first, second, last = self.layers
        time = t.to(y.dtype).expand(len(y)).unsqueeze(1)
        h1 = torch.tanh(first(torch.cat((y[:, :2], time), 1)))
        h2 = torch.tanh(second(h1))
        d1, d2 = 1 - h1 * h1, 1 - h2 * h2
        trace = sum(((d1 * first.weight[:, i]) @ second.weight.T * d2) @ last.weight[i] for i in (0, 1))
        return torch.cat((last(h2), trace.unsqueeze(1)), 1)


Through = Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
"""``(field, y0) -> (y(1), penalty)``."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained.

    Args:
        name: of the task.
        make: a fresh module with the field in `field`, from a seed.
        start: states at time 0, from a batch.
        loss: from the module, states at time 1, and the batch.
        quality: the measure on test data, small is good, likewise.
        train: batches by step.
        test: the test batch.
        steps: of training.
        looks: steps between looks at the quality.
        lr: of Adam.
        grid: Taylor–Lagrange steps of degree 1.
        weight: of their remainders in the loss.
        refit: steps between fits of the midpoint.
        slack: how much worse than the best a quality may be that counts as equal.
    """

    name: str
    make: Callable[[], nn.Module]
    start: Callable[[Any], Tensor]
    loss: Callable[[nn.Module, Tensor, Any], Tensor]
    quality: Callable[[nn.Module, Tensor, Any], float]
    train: Callable[[int], Any]
    test: Any
    steps: int
    looks: int
    lr: float
    grid: int
    weight: float
    refit: int
    slack: float


class Trained(NamedTuple):
    """One training: quality after so many seconds, steps taken, and what one solve costs in evaluations' time."""

    solver: str
    seconds: list[float]
    quality: list[float]
    per_step: float
    cost: float

    def until(self, quality: float) -> float:
        """Seconds until a quality was reached; inf if it was not."""
        return next((s for s, q in zip(self.seconds, self.quality, strict=True) if q <= quality), math.inf)


def adaptive(interface: Callable[..., Tensor], tolerance: float) -> Through:
    """Dormand–Prince through the interface of torchdiffeq."""
    times = torch.tensor([0.0, 1.0])

    def through(field: nn.Module, y0: Tensor) -> tuple[Tensor, Tensor]:
        return interface(lambda t, y: field(y, t), y0, times, rtol=tolerance, atol=tolerance,
                         method="dopri5")[-1], y0.new_zeros(())

    return through


def adaptive_solvers() -> dict[str, Through]:
    """Ours and torchdiffeq's, if it is there, at two tolerances."""
    interfaces = {"odecore": odeint}
    try:
        import torchdiffeq

        interfaces["torchdiffeq"] = torchdiffeq.odeint
    except ImportError:
        print("torchdiffeq is not installed: its rows are left out")
    return {f"dopri5 {tolerance:.0e}, {name}": adaptive(interface, tolerance)
            for tolerance in (1e-3, 1e-6) for name, interface in interfaces.items()}


def tight(field: nn.Module, y0: Tensor) -> Tensor:
    """The solution of the field."""
    return solve(DORMAND_PRINCE, field, y0, 0.0, 1.0, rtol=1e-6, atol=1e-6).y


def seconds_of(function: Callable[[], object], repeats: int = 7) -> float:
    """Least processor time of a call."""
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        taken.append(time.process_time() - started)
    return min(taken)


def train(
    task: Task, solver: str, through: Through, refit: Callable[[nn.Module, Tensor], object] | None = None
) -> Trained:
    """Train with one solver; looks at the quality do not count."""
    module = task.make()
    seconds: list[float] = []
    quality: list[float] = []
    started = time.process_time()

    @torch.no_grad()
    def look(moment: Moment) -> None:
        nonlocal started
        seconds.append(time.process_time() - started)
        quality.append(task.quality(moment.module, tight(moment.module.field, task.start(task.test)), task.test))
        started = time.process_time() - seconds[-1]

    def follow(moment: Moment) -> None:
        if refit is not None and (moment.step == 1 or moment.step % task.refit == 0):
            refit(moment.module.field, task.start(task.train(moment.step)))

    def loss(module: nn.Module, batch: Any) -> dict[str, Tensor]:
        reached, penalty = through(module.field, task.start(batch))
        return {"task": task.loss(module, reached, batch), "penalty": penalty}

    fit(module, loss, task.train, steps=task.steps, optimizer=adam(task.lr),
        callbacks=[follow, every(task.looks, look)])
    y0, t0 = task.start(task.train(0)), torch.zeros(len(task.start(task.train(0))))
    with torch.no_grad():
        cost = seconds_of(lambda: through(module.field, y0)) / seconds_of(lambda: module.field(y0, t0))
    return Trained(solver, seconds, quality, seconds[-1] / task.steps, cost)


def train_taylor_lagrange(task: Task) -> Trained:
    """Train with Taylor–Lagrange steps, whose midpoint follows the field."""
    size = task.start(task.train(0)).shape[1]
    stepper = TaylorLagrange(1, DiagonalMidpoint(size, 1))
    grid = torch.linspace(0, 1, task.grid + 1).tolist()

    def through(field: nn.Module, y0: Tensor) -> tuple[Tensor, Tensor]:
        rolled = roll(stepper, field, y0, grid)
        return rolled.y, task.weight * rolled.remainder

    def refit(field: nn.Module, y0: Tensor) -> object:
        return fit_midpoint(stepper, field, starts(stepper, field, y0[:64], grid), steps=15, tolerance=1e-5)

    return train(task, "taylor-lagrange", through, refit)


class Classifier(nn.Module):
    """A neural ODE on pixels, and a linear layer that reads the classes off."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.field, self.head = ImageField(size, width), nn.Linear(size, 10)


class Density(nn.Module):
    """A flow that takes data to normal noise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.field = FlowField(width)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A module with the same weights for every solver."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return make()


def classification(quick: bool) -> Task:
    """Fashion-MNIST at 14×14 pixels."""
    def small(split: str, count: int) -> tuple[Tensor, Tensor]:
        images, labels = fashion_mnist(split)
        return F.avg_pool2d(images[:count].float() / 127.5 - 1, 2).flatten(1), labels[:count]

    count, size = (500, 250) if quick else (10_000, 500)
    data = small("train", count)
    per_epoch = count // size
    epochs = 1 if quick else 4
    return Task(
        "classifier of Fashion-MNIST", lambda: seeded(lambda: Classifier(196, 128)), lambda batch: batch[0],
        lambda module, y, batch: F.cross_entropy(module.head(y), batch[1]),
        lambda module, y, batch: 1 - (module.head(y).argmax(1) == batch[1]).float().mean().item(),
        minibatches(*data, size=size), small("test", 500 if quick else 5000), epochs * per_epoch, per_epoch, 3e-3, 2,
        1.0, 80, 0.01)


def moons(count: int, seed: int) -> Tensor:
    """Two interleaved half-circles with noise."""
    generator = torch.Generator().manual_seed(seed)
    angle, upper = math.pi * torch.rand(count, generator=generator), torch.rand(count, generator=generator) < 0.5
    circle = torch.stack((angle.cos(), angle.sin()), 1)
    other = torch.stack((1 - angle.cos(), 0.5 - angle.sin()), 1)
    noise = 0.1 * torch.randn(count, 2, generator=generator)
    return 1.5 * (torch.where(upper[:, None], circle, other) + noise - torch.tensor([0.5, 0.25]))


def density(quick: bool) -> Task:
    """Two moons; the quality is the negative log-likelihood."""
    def likelihood(module: nn.Module, y: Tensor, batch: Any) -> Tensor:
        return (y[:, :2].square().sum(1) / 2 + math.log(2 * math.pi) - y[:, 2]).mean()

    steps = 10 if quick else 120
    return Task(
        "density of two moons", lambda: seeded(lambda: Density(64)),
        lambda x: torch.cat((x, torch.zeros(len(x), 1)), 1), likelihood,
        lambda module, y, batch: likelihood(module, y, batch).item(), lambda step: moons(256, step),
        moons(500 if quick else 4000, 10**6), steps, steps // (2 if quick else 10), 5e-3, 3, 1e-2, 100, 0.02)


def training_claims(task: Task) -> tuple[list[Claim], list[Trained]]:
    """Train one task with every solver."""
    ours = train_taylor_lagrange(task)
    others = [train(task, name, through) for name, through in adaptive_solvers().items()]
    for run in (ours, *others):
        print(f"{task.name}: {run.solver:>26}  {1e3 * run.per_step:7.2f} ms a step, {run.seconds[-1]:6.1f} s in all, a "
              f"solve costs {run.cost:5.1f} evaluations, quality {run.quality[-1]:.4f}", flush=True)
    best = min(min(run.quality) for run in others)
    claims = [Claim(f"{task.name}: best quality through Taylor–Lagrange, of a tight solution (small is good)",
                    min(ours.quality), best, "best through dopri5 in this run", best + task.slack)]
    for run in others:
        claims.append(Claim(f"{task.name}: times faster a step than {run.solver}", run.per_step / ours.per_step,
                            "> 10", "abstract", 10.0, more=True))
        claims.append(Claim(f"{task.name}: times faster to equal quality than {run.solver}",
                            run.until(best + task.slack) / ours.until(best + task.slack), "> 10", "abstract", 10.0,
                            more=True))
    return claims, [ours, *others]
