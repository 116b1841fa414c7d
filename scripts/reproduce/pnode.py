"""Reproduce PNODE's claims (Zhang & Zhao 2022): `python scripts/reproduce/pnode.py`.

The discrete adjoint is the gradient of what was computed at any step size, the continuous adjoint is not;
an implicit scheme learns Robertson's kinetics where an explicit one fails; memory and time are held against
torchdiffeq in the same run, counted as in `scripts/bench_adjoint.py`. Then the use in sampling: the start
noise and the guidance weight of 50-step samples are tuned to a classifier's reward in 5 stored states.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchdiffeq
from claims import Claim, parser, print_claims, write
from pnode_robertson import robertson_claims
from torch import Tensor, nn

from eval.features import CLASSIFIER_FOLDER
from odecore.driver.integrate import integrate
from odecore.facade.methods import stepper
from odecore.gradients.checkpoint import optimal_advances
from odecore.gradients.checkpointed import integrate_checkpointed
from odecore.learn.fields import MLP
from odecore.learn.fit import fit
from odecore.plan import Weight, execute
from samplers import compile_plan
from samplers.gradients import differentiable_sample
from scoremodels.loaders import load
from scoremodels.model import ScoreModel

sys.path.append(str(Path(__file__).parents[1]))
import bench_adjoint as bench  # noqa: E402

PAPER = "abstract of PNODE"


@dataclass(frozen=True, slots=True)
class Size:
    """How much to run: training steps on Robertson, and sizes of the benchmark and of the tuning."""

    robertson: tuple[int, int] = (400, 20)
    steps: int = 400
    batch: int = 512
    rounds: int = 3
    tuned: int = 2
    tuning: int = 6
    sampling: int = 50


QUICK = Size(robertson=(4, 1), steps=20, batch=64, rounds=1, tuned=1, tuning=1, sampling=6)


# Gradients at coarse steps


class Coarse(nn.Module):
    """A nonlinear field in float64, in torchdiffeq's order of arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MLP((3, 16, 3), dtype=torch.float64)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt."""
        return 6 * self.network(torch.sin(y))


def gradient_errors(method: str, theirs: str, counts: Sequence[int]) -> dict[str, list[float]]:
    """Relative errors of the gradient in the parameters: discrete and continuous adjoint, finite differences."""
    field = Coarse()
    generator = torch.Generator().manual_seed(1)
    y0 = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    parameters = tuple(field.parameters())
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    errors: dict[str, list[float]] = {"discrete": [], "continuous": [], "finite differences": []}
    for count in counts:
        grid = torch.linspace(0, 2, count + 1, dtype=torch.float64)

        def loss(grid: Tensor = grid) -> Tensor:
            return integrate(stepper(method), lambda y, t: field(t, y), y0, grid).y.square().sum()

        def flat(value: Tensor) -> Tensor:
            return torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])

        exact = flat(loss())
        discrete = flat(integrate_checkpointed(stepper(method), lambda y, t: field(t, y), y0, grid, states=3,
                                               parameters=parameters).square().sum())
        continuous = flat(torchdiffeq.odeint_adjoint(field, y0, grid[[0, -1]], method=theirs, options={
            "step_size": 2 / count})[-1].square().sum())
        along = (exact * torch.cat([d.flatten() for d in directions])).sum().item()
        values = []
        with torch.no_grad():
            for h in (1e-5, -2e-5, 1e-5):
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter += h * direction
                values.append(loss().item())
        difference = (values[0] - values[1]) / 2e-5
        for name, error in (("discrete", ((discrete - exact).norm() / exact.norm()).item()),
                            ("continuous", ((continuous - exact).norm() / exact.norm()).item()),
                            ("finite differences", abs(difference - along) / abs(along))):
            errors[name].append(error)
    return errors


# Memory and time


def benchmark(size: Size) -> list[Claim]:
    """All ways through as many steps, in one run."""
    few, names_of = 10, [f"discrete, {states} states" for states in (10, size.steps)]
    accurate = ("autograd through a plain loop", "torchdiffeq odeint", "reversible")
    runs: dict[str, list[bench.Result]] = {}
    for metered in (True, *[False] * size.rounds):
        for name in (*names_of, *accurate, "torchdiffeq odeint_adjoint"):
            states = int(name.split()[1]) if name in names_of else few
            runs.setdefault(name, []).append(bench.run(name, states, size.steps, size.batch, 64, metered))
    peak = {name: found[0].peak / 2**20 for name, found in runs.items()}
    seconds = {name: statistics.median(r.forward + r.backward for r in found[1:]) for name, found in runs.items()}
    exact = runs["autograd through a plain loop"][0].gradient
    lowest = min(accurate, key=peak.__getitem__)
    theirs, (small, fast) = seconds["torchdiffeq odeint_adjoint"], names_of
    what = f"{size.steps} RK4 steps"
    table = [Claim(f"{what}, {name}: MiB at the peak", peak[name]) for name in runs]
    table += [Claim(f"{what}, {name}: seconds", seconds[name]) for name in runs]
    return [*table,
            Claim(f"{what}, speed: odeint_adjoint / {small}", theirs / seconds[small], "up to 2 over vanilla", PAPER,
                  goal=2.0, more=True),
            Claim(f"{what}, speed: odeint_adjoint / {fast}", theirs / seconds[fast], "up to 2 over vanilla", PAPER,
                  goal=2.0, more=True),
            Claim(f"{what}, memory: {small} / the least of the reverse-accurate ({lowest})", peak[small] / peak[lowest],
                  "lowest", PAPER, goal=1.0),
            Claim(f"{what}: gradient of {small} against autograd, relative (float32)",
                  ((runs[small][0].gradient - exact).norm() / exact.norm()).item(), goal=1e-5),
            Claim("advances that 50 steps in 4 slots take", optimal_advances(50, 4), 144, "closed form", goal=144)]


# Sampling


class Tuned(nn.Module):
    """The start noise and the guidance weight of some samples, to be trained."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__()
        noise = torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(seed))
        self.noise, self.guidance = nn.Parameter(80 * noise), nn.Parameter(torch.tensor(1.0))

    def forward(self, model: ScoreModel, labels: Tensor, steps: int, states: int) -> Tensor:
        """The samples, differentiable in few states."""
        return differentiable_sample(model, self.noise, nfe=steps, condition=labels, guidance=self.guidance,
                                     states=states)

    def by_autograd(self, model: ScoreModel, labels: Tensor, steps: int) -> Tensor:
        """The same by autograd through the plan, which keeps the graph of every evaluation."""
        plan = compile_plan("dpm-solver++-2m", model.schedule, nfe=steps, prediction=model.prediction)
        both = torch.cat([labels, torch.full_like(labels, model.num_classes)])

        def guided(x: Tensor, t: Weight) -> Tensor:
            conditional, free = model(torch.cat([x, x]), t, both).chunk(2)
            return free + self.guidance * (conditional - free)

        return execute(plan, guided, self.noise)


def tuning(size: Size, seed: int) -> list[Claim]:
    """Measure one gradient in 5 states and by autograd, then tune to the classifier's reward."""
    model, net = load("fashion-mnist-edm").eval().requires_grad_(False), classifier()
    labels = torch.arange(size.tuned) % 10
    tuned = Tuned(size.tuned, seed)

    def reward(samples: Tensor) -> Tensor:
        return torch.log_softmax(net(samples.clamp(-1, 1)), 1).gather(1, labels[:, None]).mean()

    reward(tuned(model, labels, 5, 2)).backward()  # what is loaded at first use is not the method's
    tuned.zero_grad()
    measured = []
    for way in (lambda: tuned(model, labels, size.sampling, 5),
                lambda: tuned.by_autograd(model, labels, size.sampling)):
        gc.collect()
        meter = bench.Meter()
        hook = model.network.register_forward_hook(
            lambda module, inputs, output, meter=meter: bench.Look.apply(output, meter))
        began = time.perf_counter()
        gradients = torch.autograd.grad(reward(way()), tuple(tuned.parameters()))
        measured.append((meter.peak / 2**20, time.perf_counter() - began, gradients))
        hook.remove()
    with torch.no_grad():
        before = tuned(model, labels, size.sampling, 5)
    fit(tuned, lambda module, batch: -reward(module(model, labels, size.sampling, 5)), lambda step: None,
        steps=size.tuning, optimizer=lambda parameters: torch.optim.Adam(
            [{"params": [tuned.noise], "lr": 8.0}, {"params": [tuned.guidance], "lr": 0.2}]))
    with torch.no_grad():
        after = tuned(model, labels, size.sampling, 5)
    (small, slow, ours), (large, quick, theirs) = measured
    difference = max(((a - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True))
    what = f"tuning through {size.sampling} steps, {size.tuned} images"
    return [
        Claim(f"{what}: MiB at the peak in 5 states", small, large, "autograd, in this run", goal=large),
        Claim(f"{what}: seconds of a gradient in 5 states", slow, quick, "autograd, in this run"),
        Claim(f"{what}: difference of the gradients, relative (float32)", difference, goal=1e-3),
        Claim(f"{what}: log-probability of the class after {size.tuning} updates", reward(after).item(),
              reward(before).item(), "before", goal=reward(before).item(), more=True),
        Claim(f"{what}: guidance weight after", tuned.guidance.item(), 1.0, "before"),
    ]


def classifier() -> nn.Module:
    """The embedded classifier."""
    from safetensors.torch import load_file

    from eval.classifier import FashionClassifier

    net = FashionClassifier()
    net.load_state_dict(load_file(CLASSIFIER_FOLDER / "model.safetensors"))
    return net.eval().requires_grad_(False)


def draw(file: Path, counts: Sequence[int], errors: dict[str, dict[str, list[float]]]) -> None:
    """Errors of the gradients against the number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for colour, (method, found) in zip(("C0", "C1", "C2"), errors.items(), strict=True):
        for name, line in (("continuous", "o-"), ("discrete", "s--")):
            axis.loglog(counts, np.maximum(found[name], 1e-17), line, color=colour, label=f"{method}, {name} adjoint")
    axis.set(xlabel="steps", ylabel="relative error of the gradient", ylim=(1e-17, 10))
    axis.legend(fontsize=8)
    figure.savefig(file, dpi=80)


def main() -> None:
    """Run, print, save."""
    arguments = parser(__doc__).parse_args()
    size = QUICK if arguments.quick else Size()
    counts = (5, 10, 20, 40, 80)
    errors = {name: gradient_errors(ours, theirs, counts) for name, ours, theirs in (
        ("Euler", "euler", "euler"), ("midpoint", "midpoint", "midpoint"), ("RK4", "rk4", "rk4"))}
    claims = []
    for method, found in errors.items():
        claims += [
            Claim(f"{method}, {counts[0]} steps: error of the gradient by the discrete adjoint", found["discrete"][0],
                  found["continuous"][0], "torchdiffeq's odeint_adjoint, in this run", goal=1e-12),
            Claim(f"{method}, {counts[-1]} steps: the same", found["discrete"][-1], found["continuous"][-1],
                  "torchdiffeq's odeint_adjoint, in this run", goal=1e-12),
            Claim(f"{method}: against finite differences, worst", max(found["finite differences"]), goal=1e-6)]
    claims += robertson_claims(size.robertson, arguments.seed)
    claims += benchmark(size)
    claims += tuning(size, arguments.seed)
    print_claims("PNODE (Zhang & Zhao 2022, arXiv:2206.01298)", claims)
    if arguments.figure is not None:
        draw(arguments.figure, counts, errors)
    write(arguments, claims, gradients=errors, steps=counts)


if __name__ == "__main__":
    main()
