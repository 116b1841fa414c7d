"""Reproduce state observers with neural ODEs: `python scripts/reproduce/observers.py`.

Miao & Gatsis (arXiv:2212.00866) observe with ``dz/dt = D z + F y``, ``x̂ = T*(z)``, T* a network, and say that D trades
speed of convergence against robustness to noise. Here:

* reverse Duffing, ``dx1/dt = x2³, dx2/dt = -x1, y = x1``: T and T* from Latin-hypercube points in [-1, 1]² whose past
  is simulated, for several cutoffs of D; once as an autoencoder with T's equation in place of pairs;
* Van der Pol and Lorenz, both seen through x1, from states on their attractors;
* Van der Pol with unknown damping, by a Luenberger observer that learns it together with its gain.

Noise is white, at the times of measurement, 5 % of the output's standard deviation. Errors are root mean squares over
coordinates, runs and times after the transient, in units of the state's standard deviation: no knowledge gives 1.
The anchor is an extended Kalman filter that knows the plant and the noise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from claims import Claim, parser, print_claims, write
from scipy.stats.qmc import LatinHypercube
from torch import Tensor

from odecore.explicit.embedded import DOP853
from odecore.learn.callbacks import cosine_decay
from odecore.learn.fields import MLP
from odecore.learn.filters import Filter, Pairs, Plant, rewound, settled
from odecore.learn.fit import Loss, adam, fit, minibatches
from odecore.learn.observers import KKL, Luenberger, autoencoder, following, regression
from odecore.learn.rollout import trajectories

KALMAN = "extended Kalman filter that knows the plant, in this run"


@dataclass(frozen=True, slots=True)
class Size:
    """How much to run."""

    points: int = 10_000
    steps: int = 1000
    hidden: tuple[int, ...] = (50, 50, 50)
    runs: int = 20
    cutoffs: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8, 1.6)
    luenberger: int = 120


QUICK = Size(points=300, steps=150, hidden=(30, 30), runs=3, cutoffs=(0.2, 0.8), luenberger=5)


def duffing(x: Tensor, t: Tensor) -> Tensor:
    """Reverse Duffing."""
    return torch.stack((x[:, 1] ** 3, -x[:, 0]), 1)


def van_der_pol(x: Tensor, t: Tensor) -> Tensor:
    """Van der Pol with unit damping."""
    return torch.stack((x[:, 1], (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]), 1)


def lorenz(x: Tensor, t: Tensor) -> Tensor:
    """Lorenz 63."""
    a, b, c = x.unbind(1)
    return torch.stack((10 * (b - a), 28 * a - b - a * c, a * b - 8 / 3 * c), 1)


@dataclass(frozen=True, slots=True)
class Task:
    """A plant that is seen through its first coordinate.

    Args:
        name: of the plant.
        field: f.
        size: n.
        width: of the box of starts, about 0.
        step: time between measurements.
        horizon: length of a test run.
        warm: time that states need to come to the attractor; 0 where there is none.
        cutoff: w_c, where it is not varied.
    """

    name: str
    field: Callable[[Tensor, Tensor], Tensor]
    size: int
    width: float
    step: float
    horizon: float
    warm: float
    cutoff: float

    @property
    def plant(self) -> Plant:
        """Its field and output."""
        return Plant(self.field, lambda x: x[..., :1])

    def points(self, count: int, seed: int) -> Tensor:
        """Latin-hypercube points, on the attractor if there is one."""
        box = torch.from_numpy(LatinHypercube(self.size, rng=seed).random(count))
        points = self.width * (2 * box - 1)
        return trajectories(DOP853, self.field, points, [0.02 * k for k in range(round(self.warm / 0.02) + 1)]
                            )[:, -1] if self.warm else points

    def pairs(self, filter: Filter, count: int, seed: int) -> Pairs:
        """States and what the filter has come to there."""
        points = self.points(count, seed)
        return settled(self.plant, filter, points if self.warm else rewound(self.plant, points, filter.memory))

    def truth(self, runs: int, seed: int) -> Tensor:
        """Test runs, of shape (runs, times, n)."""
        return trajectories(DOP853, self.field, 0.8 * self.points(runs, seed),
                            [self.step * k for k in range(round(self.horizon / self.step) + 1)])


DUFFING = Task("reverse Duffing", duffing, 2, 1.0, 0.05, 60.0, 0.0, 0.4)
VAN_DER_POL = Task("Van der Pol", van_der_pol, 2, 2.0, 0.05, 40.0, 10.0, 0.5)
LORENZ = Task("Lorenz", lorenz, 3, 15.0, 0.01, 15.0, 3.0, 2.0)


class Runs(NamedTuple):
    """States, their outputs without and with noise, and the noise."""

    x: Tensor
    clean: Tensor
    noisy: Tensor
    deviation: float

    @classmethod
    def of(cls, task: Task, count: int, seed: int) -> Runs:
        """Simulate a task."""
        x = task.truth(count, seed)
        clean = task.plant.output(x)
        noise = torch.randn(clean.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(seed))
        deviation = 0.05 * float(clean.std())
        return cls(x, clean, clean + deviation * noise, deviation)

    def error(self, estimate: Tensor, skip: int) -> float:
        """Relative error after so many times."""
        spread = self.x.flatten(0, 1).std(0)
        return float(((estimate - self.x)[:, skip:] / spread).square().mean().sqrt())

    def reached(self, estimate: Tensor, step: float) -> float:
        """The time after which the relative error over all runs stays below a tenth; infinite where it never does."""
        spread = self.x.flatten(0, 1).std(0)
        above = ((estimate - self.x) / spread).square().mean((0, 2)).sqrt() > 0.1
        last = int(above.nonzero().max()) if above.any() else -1
        return math.inf if last == len(above) - 1 else step * (last + 1)


def trained(task: Task, filter: Filter, size: Size, seed: int, way: str = "pairs") -> KKL:
    """An observer with its maps learned."""
    pairs = task.pairs(filter, size.points, seed)
    observer = KKL(filter, pairs, hidden=size.hidden, seed=seed, floor=0.01 if way == "pairs" else 0.1)
    loss: Loss = regression if way == "pairs" else autoencoder(task.plant, weight=10.0)
    rows = pairs if way == "pairs" else pairs[:1]
    fit(observer, loss, minibatches(*rows, size=min(500, len(pairs.x)), seed=seed), steps=size.steps,
        optimizer=adam(5e-3), callbacks=[cosine_decay(size.steps, floor=0.01)])
    return observer


def kalman(task: Task, runs: Runs, deviation: float) -> Tensor:
    """An extended Kalman filter from 0, with Heun's method for the state and ``P⁺ = A P Aᵀ + Q`` for its covariance."""
    h, n, tiny = task.step, task.size, 1e-6
    x, eye = torch.zeros_like(runs.x[:, 0]), torch.eye(task.size, dtype=runs.x.dtype)
    p = runs.x.flatten(0, 1).var(0).diag().expand(len(x), -1, -1)
    q, now = 1e-4 * h * p[0], torch.zeros(len(x) * (n + 1))
    states, outputs = [], runs.noisy if deviation else runs.clean
    for k in range(outputs.shape[1]):
        if k:  # the state and, beside it, n others for the derivative
            y = torch.cat((x.unsqueeze(1), x.unsqueeze(1) + tiny * eye), 1).flatten(0, 1)
            slope = task.field(y, now)
            y = (y + h / 2 * (slope + task.field(y + h * slope, now))).unflatten(0, (-1, n + 1))
            x, a = y[:, 0], (y[:, 1:] - y[:, :1]).mT / tiny
            p = a @ p @ a.mT + q
        gain = p[:, :, 0] / (p[:, :1, 0] + max(deviation, 1e-3) ** 2)
        x = x + gain * (outputs[:, k] - x[:, :1])
        p = p - gain.unsqueeze(2) * p[:, :1]
        states.append(x)
    return torch.stack(states, 1)


class Tried(NamedTuple):
    """An observer of one cutoff, and how it did."""

    cutoff: float
    clean: float
    noisy: float
    predicted: float
    time: float
    estimate: Tensor


def tried(task: Task, observer: KKL, cutoff: float, runs: Runs) -> Tried:
    """Run an observer along clean and noisy outputs."""
    skip = round(observer.filter.memory / task.step)
    clean, noisy = (observer.estimate(y, task.step) for y in (runs.clean, runs.noisy))
    z = observer.filter.states(runs.clean, task.step)[:, skip::50].flatten(0, 1)
    spread = runs.x.flatten(0, 1).std(0)
    j = torch.func.vmap(torch.func.jacrev(observer.decode))(z).detach() / spread[:, None]
    by_noise = runs.deviation**2 * (j @ observer.filter.noise(task.step) @ j.mT).diagonal(dim1=1, dim2=2).mean()
    error = runs.error(clean, skip)
    return Tried(cutoff, error, runs.error(noisy, skip), math.hypot(error, math.sqrt(by_noise)),
                 runs.reached(clean, task.step), noisy)


def peers(task: Task, runs: Runs) -> tuple[float, float]:
    """Errors of the Kalman filter, clean and noisy, over the second half."""
    half = runs.x.shape[1] // 2
    return runs.error(kalman(task, runs, 0.0), half), runs.error(kalman(task, runs, runs.deviation), half)


def duffing_claims(size: Size, seed: int) -> tuple[list[Claim], list[Tried], Runs]:
    """The trade-off, and the autoencoder."""
    runs, claims = Runs.of(DUFFING, size.runs, 1000 + seed), []
    observers = [trained(DUFFING, Filter.bessel(2, cutoff=w), size, seed) for w in size.cutoffs]
    curve = [tried(DUFFING, observer, w, runs) for observer, w in zip(observers, size.cutoffs, strict=True)]
    clean, noisy = peers(DUFFING, runs)
    for one in curve:
        name = f"reverse Duffing, w_c = {one.cutoff}"
        claims += [Claim(f"{name}: error, clean", one.clean, clean, KALMAN),
                   Claim(f"{name}: error, noisy", one.noisy, noisy, KALMAN),
                   Claim(f"{name}: noisy error predicted from D and T*", one.predicted, one.noisy, "measured"),
                   Claim(f"{name}: time until the clean error stays below .1", one.time)]
    cutoff = DUFFING.cutoff
    one = tried(DUFFING, trained(DUFFING, Filter.bessel(2, cutoff=cutoff), size, seed, "equation"), cutoff, runs)
    return [*claims, Claim(f"reverse Duffing, w_c = {cutoff}, T by its equation: error, clean", one.clean),
            Claim(f"reverse Duffing, w_c = {cutoff}, T by its equation: error, noisy", one.noisy)], curve, runs


def attractor_claims(task: Task, size: Size, seed: int) -> tuple[list[Claim], Tried, Runs]:
    """An observer of states on an attractor."""
    runs = Runs.of(task, size.runs, 1000 + seed)
    observer = trained(task, Filter.bessel(task.size, cutoff=task.cutoff), size, seed)
    one, (clean, noisy) = tried(task, observer, task.cutoff, runs), peers(task, runs)
    name = f"{task.name}, w_c = {task.cutoff}"
    return [Claim(f"{name}: error, clean", one.clean, clean, KALMAN),
            Claim(f"{name}: error, noisy", one.noisy, noisy, KALMAN)], one, runs


def luenberger_claims(size: Size, seed: int) -> list[Claim]:
    """Van der Pol whose damping is unknown, from guesses at 0."""
    task, length = VAN_DER_POL, 20
    train, test = (Runs.of(task, size.runs, s + seed) for s in (2000, 1000))

    class Damping(MLP):
        def forward(self, x: Tensor) -> Tensor:
            """A force, in the second equation alone."""
            return torch.nn.functional.pad(super().forward(x), (1, 0))

    def known(x: Tensor, t: Tensor) -> Tensor:
        return torch.stack((x[:, 1], -x[:, 0]), 1)

    def made(unknown: torch.nn.Module | None) -> Luenberger:
        return Luenberger(known, unknown, task.plant.output, torch.tensor([[2.0], [2.0]]).double())

    cuts = train.x.unfold(1, length, length).movedim(-1, 2).flatten(0, 1)
    noise = train.deviation * torch.randn(len(cuts), length, 1, dtype=cuts.dtype,
                                          generator=torch.Generator().manual_seed(seed))
    guesses = cuts[:, 0] + torch.randn(len(cuts), 2, dtype=cuts.dtype, generator=torch.Generator().manual_seed(seed))
    data = minibatches(cuts, cuts[..., :1] + noise, guesses, size=min(100, len(cuts)), seed=seed)
    observers = {"known part alone": made(None), "damping learned": made(Damping((2, 32, 1), seed=seed).double())}
    errors = {}
    for name, observer in observers.items():
        fit(observer, functools.partial(following, step=task.step), data, steps=size.luenberger, optimizer=adam(0.03),
            callbacks=[cosine_decay(size.luenberger, floor=0.05)])
        with torch.no_grad():
            start = torch.zeros_like(test.x[:, 0])
            errors[name] = [test.error(observer.estimate(y, task.step, start=start), test.x.shape[1] // 2)
                            for y in (test.clean, test.noisy)]
    return [Claim(f"Van der Pol, Luenberger observer, damping and gain learned: error, {what}", learned, known,
                  "gain alone learned, in this run", known)
            for what, learned, known in zip(("clean", "noisy"), *reversed(errors.values()), strict=True)]


def draw(path: Path, curve: Sequence[Tried], duffing_runs: Runs, attractor: Tried, runs: Runs) -> None:
    """The trade-off, and estimates beside the truth."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    cutoffs = [one.cutoff for one in curve]
    for name, values, style in (("clean", [one.clean for one in curve], "o-"),
                                ("noisy", [one.noisy for one in curve], "s-"),
                                ("noisy, predicted", [one.predicted for one in curve], ":")):
        left.plot(cutoffs, values, style, label=f"error, {name}")
    left.set(title="reverse Duffing: the price of speed", xlabel="cutoff w_c of D", ylabel="relative error",
             xscale="log", yscale="log")
    time = left.twinx()
    time.plot(cutoffs, [one.time for one in curve], "^--", color="#999999", label="time to an error of .1")
    time.set(ylabel="time to an error of .1", yscale="log")
    left.legend(fontsize=7, loc="upper center")
    middle_curve = curve[len(curve) // 2]
    for axis, task, one, seen, place in ((middle, DUFFING, middle_curve, duffing_runs, 1),
                                         (right, LORENZ, attractor, runs, 2)):
        shown = round((20 if task is DUFFING else 6) / task.step)
        t = [task.step * k for k in range(shown)]
        axis.plot(t, seen.x[0, :shown, place], color="#444444", label=f"x{place + 1}, never seen")
        axis.plot(t, one.estimate[0, :shown, place], color="#d8572a", linewidth=1, label="estimate from noisy x1")
        axis.set(title=f"{task.name}, w_c = {one.cutoff}", xlabel="time")
        low, high = float(seen.x[..., place].min()), float(seen.x[..., place].max())
        axis.set_ylim(low - 0.3 * (high - low), high + 0.3 * (high - low))
        axis.legend(fontsize=7, loc="upper right")
    figure.savefig(path, dpi=100)
    print(f"wrote {path}")


def main() -> None:
    """Run everything, print the figures beside their anchors, and save them if asked to."""
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    size = QUICK if arguments.quick else Size()
    claims, curve, runs = duffing_claims(size, arguments.seed)
    found, _, _ = attractor_claims(VAN_DER_POL, size, arguments.seed)
    claims += found
    found, chaotic, chaotic_runs = attractor_claims(LORENZ, size, arguments.seed)
    claims += [*found, *luenberger_claims(size, arguments.seed)]
    print_claims("State observers with neural ODEs (Miao & Gatsis): relative errors", claims)
    write(arguments, claims)
    if arguments.figure is not None:
        draw(arguments.figure, curve, runs, chaotic, chaotic_runs)


if __name__ == "__main__":
    main()
