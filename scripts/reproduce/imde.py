"""Reproduce the inverse modified equation: `python scripts/reproduce/imde.py`.

Zhu, Jin, Zhu & Tang 2022 (arXiv:2206.07335): a network that is trained through a solver on exact data
converges to the inverse modified field f_h, not to the true field f. Here: networks trained through
Euler's method and the midpoint rule on the pendulum and a damped cubic oscillator, at several steps h: the
distance to f grows as h and h², that to f_h is far smaller; energy along the solutions of networks that
were trained through a symplectic and through another scheme; and the bias of a sampler with few steps on
an embedded model, predicted by its modified equation and measured.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from claims import Claim, parser, print_claims, write
from torch import Tensor, nn

from eval.trajectory import rms
from odecore import solve
from odecore.analysis.modified import Scheme, at_step, inverse_modified, runge_kutta
from odecore.explicit.embedded import DOP853
from odecore.explicit.tableaus import EULER, HEUN, MIDPOINT
from odecore.implicit.tableaus import GAUSS2
from odecore.learn.callbacks import cosine_decay
from odecore.learn.fit import adam, fit, minibatches
from odecore.stepper import Field
from samplers.bias import Bias, solver_bias
from samplers.grids import karras
from samplers.noise import SampleNoise
from scoremodels.loaders import load

SCHEMES: dict[str, tuple[Scheme, int, tuple[float, ...]]] = {
    "Euler": (runge_kutta(EULER), 1, (0.05, 0.1, 0.2)), "midpoint": (runge_kutta(MIDPOINT), 2, (0.1, 0.2, 0.4))}
SAMPLERS = {"ddim": EULER, "edm-heun": HEUN}
RUNS = (("ddim", 6), ("ddim", 12), ("ddim", 24), ("ddim", 48), ("edm-heun", 48))
GAUSS = runge_kutta(GAUSS2, passes=6)


def pendulum(y: Tensor, t: Tensor) -> Tensor:
    """Without friction: H = p²/2 - cos q."""
    return torch.stack((y[:, 1], -torch.sin(y[:, 0])), 1)


def cubic_oscillator(y: Tensor, t: Tensor) -> Tensor:
    """Damped, with cubic stiffness, as in the source."""
    x, v = y[:, 0] ** 3, y[:, 1] ** 3
    return torch.stack((-0.1 * x + 2.0 * v, -2.0 * x - 0.1 * v), 1)


@dataclass(frozen=True, slots=True)
class System:
    """A field with the box that its data are drawn from, and its time scale."""

    field: Field
    low: tuple[float, float]
    high: tuple[float, float]
    scale: float = 1.0

    def points(self, count: int, seed: int) -> Tensor:
        """Uniform in the box, float64."""
        generator = torch.Generator().manual_seed(seed)
        unit = torch.rand(count, 2, generator=generator, dtype=torch.float64)
        return torch.tensor(self.low) + unit * (torch.tensor(self.high) - torch.tensor(self.low))


SYSTEMS = {"pendulum": System(pendulum, (-2.5, -2.0), (2.5, 2.0)),
           "damped cubic": System(cubic_oscillator, (-1.5, -1.5), (1.5, 1.5), 0.25)}


@dataclass(frozen=True, slots=True)
class Size:
    """How long to train, by either optimiser, and how long to follow what was learned."""

    adam: int
    lbfgs: int
    until: float


class Network(nn.Module):
    """A field of two inner layers."""

    def __init__(self, seed: int, width: int = 64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
                                        nn.Linear(width, 2)).double()

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        """The slope."""
        return self.layers(y)


def flow(field: Field, y: Tensor, h: float) -> Tensor:
    """The exact solution."""
    return solve(DOP853, field, y, 0.0, h, rtol=1e-11, atol=1e-12).y


def trained_through(scheme: Scheme, system: System, h: float, size: Size, seed: int) -> Network:
    """Learn a field from pairs of exact states a step apart, through a scheme: Adam, then L-BFGS."""
    network, x = Network(seed), system.points(2000, seed)
    ends = flow(system.field, x, h)

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        start, end = batch
        times = torch.zeros(len(start), dtype=torch.float64)
        return (scheme(module, start, times, torch.full_like(times, h)) - end).square().mean() / h**2

    fit(network, loss, minibatches(x, ends, size=500, seed=seed), steps=size.adam, optimizer=adam(5e-3),
        callbacks=[cosine_decay(size.adam, warmup=size.adam // 20)])
    fit(network, loss, lambda step: (x, ends), steps=size.lbfgs, optimizer=lambda parameters: torch.optim.LBFGS(
        parameters, max_iter=20, history_size=30, line_search_fn="strong_wolfe"))
    return network.requires_grad_(False)


def distance(first: Field, second: Field, system: System) -> float:
    """RMS over points that were not trained on, inside of the box."""
    y = 0.8 * system.points(2000, 10_000)
    t = torch.zeros(len(y), dtype=torch.float64)
    return rms(first(y, t) - second(y, t))


def slope(steps: tuple[float, ...], values: list[float]) -> float:
    """Power of h with which values grow."""
    return float(np.polyfit(np.log(steps), np.log(values), 1)[0])


@dataclass(frozen=True, slots=True)
class Learned:
    """Distances of the trained networks of one system and scheme, one a step length."""

    system: str
    scheme: str
    to_field: list[float]
    to_modified: list[float]


def lengths_of(name: str, scheme: str) -> tuple[float, ...]:
    """The steps h of one system's trainings through one scheme."""
    return tuple(SYSTEMS[name].scale * h for h in SCHEMES[scheme][2])


def learn(name: str, scheme: str, size: Size, seed: int) -> Learned:
    """Train one network for each step length and compare it with f and f_h."""
    system, (step, order, _) = SYSTEMS[name], SCHEMES[scheme]
    truth, theory = [], []
    for h in lengths_of(name, scheme):
        network = trained_through(step, system, h, size, seed)
        modified_field = at_step(inverse_modified(step, system.field, order + 2, scheme_order=order), h)
        truth.append(distance(network, system.field, system))
        theory.append(distance(network, modified_field, system))
    return Learned(name, scheme, truth, theory)


def energy(y: Tensor) -> Tensor:
    """Of the pendulum."""
    return y[..., 1] ** 2 / 2 - torch.cos(y[..., 0])


def energies(field: Field, until: float) -> Tensor:
    """Energy along the exact solution of a field, from one start."""
    start = torch.tensor([[1.2, 0.0]], dtype=torch.float64)
    ys = solve(DOP853, field, start, 0.0, until, rtol=1e-9, atol=1e-9, ts=torch.linspace(0, until, 201)).ys
    return energy(ys[0])


def drifts(size: Size, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Energies along what was learned through two schemes at h = .2, and along what theory says is learned."""
    found = {}
    for name, scheme, order in (("Euler", SCHEMES["Euler"][0], 1), ("implicit midpoint", GAUSS, 2)):
        network = trained_through(scheme, SYSTEMS["pendulum"], 0.2, size, seed)
        theory = at_step(inverse_modified(scheme, pendulum, order + 1, scheme_order=order), 0.2)
        found[name] = energies(network, size.until), energies(theory, size.until)
    return found


def biases(runs: tuple[tuple[str, int], ...], count: int) -> dict[tuple[str, int], Bias]:
    """DDIM and Heun's method on the embedded model: computed, exact, predicted and corrected end points."""
    model = load("fashion-mnist-edm")
    schedule = model.schedule
    x = SampleNoise(range(1000, 1000 + count), model.shape)() * schedule.prior_scale(schedule.t_max)
    labels = torch.arange(count) % 10
    return {(name, steps): solver_bias(
        model, runge_kutta(tableau), x, [float(t) for t in karras(schedule, steps, schedule.t_min)],
        scheme_order=tableau.order, condition=labels)
        for name, steps in runs for tableau in (SAMPLERS[name],)}


def draw(path: Path, learned: list[Learned], drift: dict[str, tuple[Tensor, Tensor]], until: float,
         bias: dict[tuple[str, int], Bias]) -> None:
    """Three panels: distances against h, energies against time, biases against steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for k, one in enumerate(learned):
        lengths, name = lengths_of(one.system, one.scheme), f"{one.system}, {one.scheme}"
        left.loglog(lengths, one.to_field, "o-", color=f"C{k}", label=f"{name}: to $f$")
        left.loglog(lengths, one.to_modified, "s--", color=f"C{k}", mfc="none", label="to $f_h$")
    left.set(xlabel="step h", ylabel="RMS distance of the learned field")
    left.set_ylim(top=10 * max(max(one.to_field) for one in learned))  # room for the legend
    left.legend(fontsize=6, loc="upper left", ncols=2)
    times = torch.linspace(0, until, 201)
    for k, (name, (ours, theory)) in enumerate(drift.items()):
        middle.plot(times, ours, color=f"C{k}", label=f"learned through {name}")
        middle.plot(times, theory, "--", color=f"C{k}", lw=2.5, alpha=0.5, label="$f_h$")
    middle.set(xlabel="time", ylabel="energy of the pendulum")
    middle.legend(fontsize=8)
    for k, name in enumerate(dict.fromkeys(name for name, _ in bias)):
        steps = [n for of, n in bias if of == name]
        for what, mark, text in (("computed", "o-", "measured bias"), ("predicted", "s--", "predicted bias")):
            right.loglog(steps, [rms(getattr(bias[name, n], what) - bias[name, n].exact) for n in steps], mark,
                         color=f"C{k}", mfc="none", label=f"{name}: {text}")
    right.set(xlabel="steps", ylabel="RMS distance from the solution")
    right.legend(fontsize=8)
    for panel in (left, right):
        panel.xaxis.set_minor_formatter(NullFormatter())
    steps = sorted({n for _, n in bias})
    right.set_xticks(steps, [str(n) for n in steps])
    figure.savefig(path, dpi=80)
    print(f"wrote {path}")


def claims_of(learned: list[Learned], drift: dict[str, tuple[Tensor, Tensor]],
              bias: dict[tuple[str, int], Bias]) -> list[Claim]:
    """Figures beside anchors."""
    claims = []
    for one in learned:
        order, lengths = SCHEMES[one.scheme][1], lengths_of(one.system, one.scheme)
        name = f"{one.system}, {one.scheme}"
        claims.append(Claim(f"{name}: power of h of |net - f|", slope(lengths, one.to_field), order, "the theory"))
        claims.append(Claim(f"{name}: |net - f_h| / |net - f| at h = {lengths[-1]}",
                            one.to_modified[-1] / one.to_field[-1], "far below 1", "the theory", 0.1))
    for name, (ours, theory) in drift.items():
        claims.append(Claim(f"energy drift of the field learned through {name}, h = .2",
                            (ours[-1] - ours[0]).item(), round((theory[-1] - theory[0]).item(), 4), "f_h, computed"))
    for (name, steps), one in bias.items():
        measured, left = rms(one.computed - one.exact), rms(one.corrected - one.exact)
        claims.append(Claim(f"{name}, {steps} steps: RMS bias, measured", measured,
                            round(rms(one.predicted - one.exact), 4), "predicted"))
        claims.append(Claim(f"{name}, {steps} steps: part of the bias that theory leaves", one.unexplained()))
        claims.append(Claim(f"{name}, {steps} steps: RMS error of the corrected sampler", left,
                            round(measured, 4), "uncorrected"))
    return claims


def main(arguments: argparse.Namespace) -> None:
    """Run the three parts and print them."""
    quick = arguments.quick
    size, runs, count = (Size(100, 2, 5.0), (("ddim", 6),), 2) if quick else (Size(1000, 30, 20.0), RUNS, 6)
    pairs = [("pendulum", "Euler")] if quick else [(s, m) for s in SYSTEMS for m in SCHEMES]
    learned = [learn(name, scheme, size, arguments.seed) for name, scheme in pairs]
    drift = drifts(size, arguments.seed)
    bias = biases(runs, count)
    claims = claims_of(learned, drift, bias)
    print_claims("Inverse modified equations", claims)
    if arguments.figure is not None:
        draw(arguments.figure, learned, drift, size.until, bias)
    write(arguments, claims)


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
