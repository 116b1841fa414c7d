"""Reproduce Neural SPDEs on our own data: `python scripts/reproduce/neural_spde.py`.

Learned: the map from initial state and noise to the solution of the stochastic Ginzburg–Landau equation
``u_t = u_xx + 3u - u³ + ξ/10`` (128 points, 51 times up to 0.05), then of a Navier–Stokes equation with random
forcing. The data come from exponential integrators of this library. Errors are relative L2 over space
and time, on noise that was not trained on; zero-shot means on a grid four times as fine (twice for
Navier–Stokes), where more modes of the same noise are seen and solved for. `--long FOLDER` trains a larger model on
1000 samples for as many `--steps` as asked, and goes on from what it finds in the folder.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import torch
from claims import Claim, parser, print_claims, write
from torch import Tensor

from odecore.implicit.anderson import Anderson
from odecore.learn.callbacks import cosine_decay, every
from odecore.learn.fit import Callback, Fit, Moment, adam, fit, minibatches
from odecore.learn.mild import FourierKernel, Semigroup
from odecore.learn.spde import Exponential, FixedPoint, MildSolver, NeuralSPDE, Picard, relative_l2
from odecore.spde import SPDE, ginzburg_landau, navier_stokes, smooth_functions, solve_forced, white_noise
from odecore.torus import coefficients, resampled, values

AUTHORS = "authors' saved output, their data"
TEST_SEED = 1_000_000


class Data(NamedTuple):
    """Initial states, noise in units of the horizon, and solutions, on a grid."""

    u0: Tensor
    noise: Tensor
    u: Tensor

    def on(self, points: int) -> Data:
        """The projections on a coarser grid."""
        return Data(*(resampled(part, points, self.u.ndim - 3) for part in self))


@dataclass(frozen=True, slots=True)
class Problem:
    """A data set as a function of the grid.

    Args:
        equation: of the largest wave number.
        start: initial states of seeds and the largest wave number.
        duration: the horizon.
        intervals: of the noise.
        substeps: of the solver in each interval.
    """

    equation: Callable[[int], SPDE]
    start: Callable[[Sequence[int], int], Tensor]
    duration: float
    intervals: int
    substeps: int = 1

    def make(self, seeds: Sequence[int], points: int) -> tuple[Data, float]:
        """Solve for each seed; also the seconds that the solver took."""
        modes = (points - 1) // 2
        equation = self.equation(modes)
        noise = white_noise(seeds, modes, dim=equation.dim, intervals=self.intervals, duration=self.duration)
        start = self.start(seeds, modes)
        began = time.perf_counter()
        solution = solve_forced(equation, start, noise, self.duration, substeps=self.substeps)
        seconds = time.perf_counter() - began
        forcing = math.sqrt(self.duration) * equation.amplitude * noise
        parts = (equation.on_grid(part, points).unsqueeze(1).float() for part in (start, forcing, solution))
        return Data(*parts), seconds


def bump(seeds: Sequence[int], modes: int) -> Tensor:
    """``x (1 - x)`` and a tenth of a random function."""
    x = torch.arange(1024).double() / 1024
    return coefficients(x * (1 - x), modes, 1) + 0.1 * smooth_functions(seeds, modes)


GINZBURG_LANDAU = Problem(lambda modes: ginzburg_landau(modes), bump, 0.05, 50)
NAVIER_STOKES = Problem(
    lambda modes: navier_stokes(modes, viscosity=1e-3, amplitude=0.5),
    lambda seeds, modes: smooth_functions(seeds, modes, dim=2, decay=4.0), 1.0, 20, 2)


class Learned(NamedTuple):
    """A model that was fitted to data of one scale."""

    model: NeuralSPDE
    scale: float
    run: Fit

    def __call__(self, data: Data) -> Tensor:
        """Predict, without gradients, in parts."""
        return predict(self.model, self.scale, data)

    def error(self, data: Data) -> float:
        """Relative error."""
        return relative_l2(self(data), data.u).item()

    def solved_by(self, solver: MildSolver, data: Data) -> tuple[Tensor, float]:
        """The predictions with another solver, and the seconds that they took."""
        own, self.model.solver = self.model.solver, solver
        began = time.perf_counter()
        found = self(data)
        self.model.solver = own
        return found, time.perf_counter() - began


@torch.no_grad()
def predict(model: NeuralSPDE, scale: float, data: Data) -> Tensor:
    """Solve in units of the scale."""
    parts = zip(data.u0.split(20), data.noise.split(20), strict=True)
    return torch.cat([scale * model(u0 / scale, noise / scale) for u0, noise in parts])


def learn(
    name: str, model: NeuralSPDE, train: Data, test: Data, *, steps: int, batch: int, lr: float = 0.02,
    folder: Path | None = None, looks: int = 4,
) -> Learned:
    """Fit a model to the relative error and print how the error on the test data goes."""
    scale = train.u.std().item()

    def loss(module: torch.nn.Module, rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return relative_l2(module(rows[0] / scale, rows[1] / scale), rows[2] / scale)

    def look(moment: Moment) -> None:
        model.eval()
        print(f"  {name}: step {moment.step}, batch {moment.loss.item():.4f}, "
              f"test {relative_l2(predict(model, scale, test), test.u).item():.4f}", flush=True)
        model.train()

    callbacks: list[Callback] = [cosine_decay(steps, warmup=min(10, steps - 1), floor=0.01),
                                 every(max(1, steps // looks), look)]
    run = fit(model, loss, minibatches(*train, size=batch), steps=steps, optimizer=adam(lr), callbacks=callbacks,
              clip=1.0, folder=folder, save_every=100)
    return Learned(model, scale, run)


def compare_solvers(learned: Learned, data: Data) -> list[Claim]:
    """Solve the equation that was learned in other ways."""
    exact, seconds = learned.solved_by(Exponential(), data)
    print(f"  solvers of the learned equation, {len(data.u)} samples: exponential Euler plan {seconds:.2f} s")
    claims = []
    for name, solver in (("Picard, 4 iterations", Picard(4)), ("Picard, 12 iterations", Picard(12)),
                         ("Anderson to 1e-4", FixedPoint(Anderson(tolerance=1e-4, depth=3)))):
        found, seconds = learned.solved_by(solver, data)
        claims.append(Claim(f"{name}: difference from the plan, relative", relative_l2(found, exact).item()))
        print(f"    {name} {seconds:.2f} s")
    return claims


def ginzburg_landau_claims(arguments: argparse.Namespace) -> tuple[list[Claim], Learned, Data]:
    """Train on 128 points, test there and on 512."""
    quick = arguments.quick
    train, _ = GINZBURG_LANDAU.make(range(40 if quick else 400), 128)
    test, fine_seconds = GINZBURG_LANDAU.make(range(TEST_SEED, TEST_SEED + (20 if quick else 200)), 512)
    coarse = test.on(128)
    _, coarse_seconds = GINZBURG_LANDAU.make(range(len(test.u)), 128)
    learned = learn("plan", NeuralSPDE(Semigroup(8, 24), 8, solver=Exponential()), train, coarse,
                    steps=20 if quick else 600, batch=10)
    papers = learn("paper's kernel", NeuralSPDE(FourierKernel(8, 16, 32), 8, solver=Picard(4)), train, coarse,
                   steps=5 if quick else 400, batch=10, lr=0.005)
    error, zero_shot = learned.error(coarse), learned.error(test)
    _, model_seconds = learned.solved_by(Exponential(), coarse)
    kept = values(coefficients(coarse.u, 24, 1), 128, 1)
    claims = [
        Claim("Ginzburg–Landau, 128 points: test error, learned symbol and plan", error, 0.0412,
              f"{AUTHORS}, epoch 25 (.0062 at 500)", goal=0.04),
        Claim("the same zero-shot at 512 points", zero_shot, 0.0058, f"{AUTHORS}, epoch 500"),
        Claim("zero-shot error over that at 128 points", zero_shot / error, 0.94, AUTHORS, goal=1.5),
        Claim("test error of the paper's kernel on low modes of space and time, 4 Picard iterations, 400 steps",
              papers.error(coarse), 0.0412, f"{AUTHORS}, epoch 25: 1250 steps of 20"),
        Claim("what 24 modes can express at best", relative_l2(kept, coarse.u).item()),
        *compare_solvers(learned, Data(*(part[:4 if quick else 20] for part in coarse))),
        Claim("generating solver over model, time at 128 points", coarse_seconds / model_seconds, "up to 1000",
              "abstract, against solvers with finer steps"),
        Claim("generating solver over model, time for 512 points", fine_seconds / learned.solved_by(
            Exponential(), test)[1], "up to 1000", "abstract, against solvers with finer steps")]
    return claims, learned, test


def navier_stokes_claims(arguments: argparse.Namespace) -> tuple[list[Claim], Learned, Data]:
    """Train on 16 x 16 points, test there and on 32 x 32."""
    quick = arguments.quick
    train, _ = NAVIER_STOKES.make(range(10 if quick else 100), 32)
    test, seconds = NAVIER_STOKES.make(range(TEST_SEED, TEST_SEED + (5 if quick else 40)), 32)
    coarse = test.on(16)
    model = NeuralSPDE(Semigroup(8, 7, dim=2, diffusivity=(1e-4, 1e-2)), 8, solver=Exponential())
    learned = learn("Navier–Stokes", model, train.on(16), coarse, steps=5 if quick else 300, batch=5)
    error, zero_shot = learned.error(coarse), learned.error(test)
    still = relative_l2(coarse.u[:, :, :1].expand_as(coarse.u), coarse.u).item()
    _, model_seconds = learned.solved_by(Exponential(), test)
    return [Claim("Navier–Stokes, 16 x 16 points: test error", error),
            Claim("error of no change at all", still),
            Claim("zero-shot error at 32 x 32 points over that at 16 x 16", zero_shot / error, goal=1.5),
            Claim("generating solver over model, time for 32 x 32 points", seconds / model_seconds, "up to 1000",
                  "abstract, against solvers with finer steps")], learned, test


def long(arguments: argparse.Namespace) -> list[Claim]:
    """Train as long as is asked, from where an earlier run stopped."""
    train, _ = GINZBURG_LANDAU.make(range(1000), 128)
    test, _ = GINZBURG_LANDAU.make(range(TEST_SEED, TEST_SEED + 200), 512)
    coarse = test.on(128)
    learned = learn("long", NeuralSPDE(Semigroup(8, 48), 8, solver=Exponential()), train, coarse,
                    steps=arguments.steps, batch=10, folder=arguments.long, looks=40)
    error = learned.error(coarse)
    print(f"  trained for {learned.run.seconds:.0f} s")
    return [Claim(f"Ginzburg–Landau, 1000 samples, {arguments.steps} steps: test error", error, 0.0062,
                  f"{AUTHORS}, epoch 500 of 50 steps", goal=0.0062),
            Claim("the same zero-shot at 512 points", learned.error(test), 0.0058, AUTHORS)]


def draw(path: Path, one: tuple[Learned, Data], two: tuple[Learned, Data]) -> None:
    """Draw a solution of each equation beside what was learned."""
    from matplotlib import pyplot
    from PIL import Image

    figure, axes = pyplot.subplots(2, 3, figsize=(10, 6), layout="constrained")
    for row, (learned, data), name in ((axes[0], one, "Ginzburg–Landau"), (axes[1], two, "Navier–Stokes")):
        data = Data(*(part[:1] for part in data))
        wanted, found = data.u[0, 0], learned(data)[0, 0]
        size = wanted.shape[-1]
        if name == "Navier–Stokes":
            wanted, found = wanted[-1], found[-1]
        largest = (wanted - wanted.mean()).abs().max().item()
        shown = {f"{name}, {size} points: solver": wanted, "neural SPDE, zero-shot": found,
                 "difference, scaled by 5": 5 * (found - wanted) + wanted.mean()}
        for axis, (title, image) in zip(row, shown.items(), strict=True):
            axis.imshow(image.mT.numpy(), origin="lower", aspect="auto", cmap="RdBu_r", extent=(0, 1, 0, 1),
                        vmin=wanted.mean() - largest, vmax=wanted.mean() + largest)
            axis.set(title=title, xlabel="time / horizon" if name == "Ginzburg–Landau" else "x")
        row[0].set_ylabel("x" if name == "Ginzburg–Landau" else "y")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=75)
    pyplot.close(figure)
    Image.open(drawn).convert("RGB").quantize(96).save(path, optimize=True)  # a third of the size


def main() -> None:
    """Train, print, draw."""
    made = parser(__doc__)
    made.add_argument("--long", type=Path, metavar="FOLDER", help="train towards the authors' last figure instead")
    made.add_argument("--steps", type=int, default=2000, help="of the long run")
    arguments = made.parse_args()
    torch.manual_seed(arguments.seed)
    if arguments.long is not None:
        claims = long(arguments)
        print_claims("Neural SPDE, the long run", claims)
        write(arguments, claims)
        return
    first, learned, test = ginzburg_landau_claims(arguments)
    second, flow, flow_test = navier_stokes_claims(arguments)
    print_claims("Neural SPDE", [*first, *second])
    print(f"processor time {time.process_time():.0f} s")
    write(arguments, [*first, *second], losses=learned.run.losses)
    if arguments.figure is not None:
        draw(arguments.figure, (learned, test), (flow, flow_test))


if __name__ == "__main__":
    main()
