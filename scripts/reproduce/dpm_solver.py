"""Reproduce DPM-Solver's claim on the embedded models: `python scripts/reproduce/dpm_solver.py`.

The paper (Lu et al. 2022, arXiv:2206.00927) says that DPM-Solver needs 4 to 16 times fewer
evaluations than earlier training-free samplers. Here: on a discrete- and a continuous-time model,
DPM-Solver at 10, 12, 15 and 20 evaluations against DDIM at 10 to 200 and ancestral sampling at
1000, by the Fréchet distance on the embedded classifier's features and by the error of the
trajectory; then how many evaluations DDIM needs for the same. All samplers start from the same
noise, so most of the sampling error of a finite number of images is common to them; intervals are
90 % bootstrap intervals over the images, drawn for all samplers at once. The default size takes
minutes on two cores; `--num 5000` is a full-size run.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from eval.features import FeatureExtractor, fashion_mnist_features, fashion_mnist_reference
from eval.fid import Moments, Statistics, frechet_distance
from eval.images import from_bytes, to_bytes
from eval.report import surroundings
from eval.speedup import bootstrap_interval, evaluations_for
from eval.sweep import cycled_labels
from eval.trajectory import Reference, reference_solution, trajectory_errors
from samplers import compile_plan, sample
from scoremodels.loaders import load
from scoremodels.model import ScoreModel

SOLVER, SOLVER_NFE = "dpm-solver-3", (10, 12, 15, 20)
BASELINE, BASELINE_NFE = "ddim", (10, 20, 50, 100, 200)
ANCESTRAL, ANCESTRAL_NFE = "ddpm", 1000
REFERENCE_NFE = 128
BASELINE_GRIDS = {"fashion-mnist-ddpm": "time", "fashion-mnist-edm": "karras"}
"""Uniform timesteps are DDIM's own choice; where time is σ, they would be absurd, and Karras' levels are EDM's own."""


@cache
def real_moments() -> Moments:
    """Moments of the features of the 60,000 training images."""
    return fashion_mnist_reference()


@dataclass(frozen=True, slots=True)
class Cell:
    """What one sampler made with one number of evaluations.

    Args:
        solver: its name.
        nfe: evaluations of the network.
        features: of all samples, shape (num, features).
        errors: RMS distances of the first samples from the converged trajectories; None with fresh noise.
    """

    solver: str
    nfe: int
    features: Tensor
    errors: Tensor | None

    def distance(self, chosen: NDArray[np.int64] | slice) -> float:
        """Fréchet distance of the chosen samples from the 60,000 training images."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that few samples bias the distance upwards is said in the output
            return frechet_distance(Statistics.of(self.features[chosen]), real_moments())

    def error(self, chosen: NDArray[np.int64] | slice) -> float:
        """RMS error of the chosen trajectories."""
        assert self.errors is not None
        return self.errors[chosen].square().mean().sqrt().item()


def run_cell(
    model: ScoreModel, solver: str, nfe: int, grid: str | None, num: int, batch: int, extractor: FeatureExtractor,
    reference: Reference | None, advance: Callable[[int], None],
) -> Cell:
    """Draw the samples of one cell and keep their features and errors."""
    plan = compile_plan(solver, model.schedule, nfe=nfe, grid=grid, prediction=model.prediction)
    labels = cycled_labels(model, num)
    parts = []
    for first in range(0, num, batch):
        count = min(batch, num - first)
        parts.append(sample(model, num=count, plan=plan, seed=first, batch=count,
                            condition=None if labels is None else labels[first:first + count],
                            callback=lambda index, row, registers, count=count: advance(count)).samples.cpu())
    samples = torch.cat(parts)
    images = from_bytes(to_bytes(samples, model.value_range))
    features = torch.cat([extractor(part) for part in images.split(256)])
    errors = None
    if reference is not None:
        solution = reference.end_points[float(plan.rows[-1].t_next)]
        errors = trajectory_errors(samples[:len(solution)], solution)
    return Cell(solver, nfe, features, errors)


def run_model(
    name: str, num: int, num_ancestral: int, compared: int, batch: int, progress: Progress
) -> tuple[list[Cell], Cell, Reference]:
    """Run every sampler on one model; return DPM-Solver's and DDIM's cells, ancestral sampling's, and the reference."""
    model, extractor = load(name), fashion_mnist_features()
    grid = BASELINE_GRIDS.get(name)
    evaluations = compared * (REFERENCE_NFE + REFERENCE_NFE // 2) + num_ancestral * ANCESTRAL_NFE + num * sum(
        (*SOLVER_NFE, *BASELINE_NFE))
    task = progress.add_task(name, total=evaluations)

    def advance(count: int) -> None:
        progress.advance(task, count)

    reference = reference_solution(model, num=compared, condition=cycled_labels(model, compared), nfe=REFERENCE_NFE,
                                   batch=batch, on_evaluations=advance)
    cells = [run_cell(model, solver, nfe, own, num, batch, extractor, reference, advance)
             for solver, nfes, own in ((SOLVER, SOLVER_NFE, None), (BASELINE, BASELINE_NFE, grid)) for nfe in nfes]
    ancestral = run_cell(model, ANCESTRAL, ANCESTRAL_NFE, grid, num_ancestral, batch, extractor, None, advance)
    return cells, ancestral, reference


Curve = Mapping[tuple[str, int], float]


def savings(curve: Curve) -> list[float]:
    """How many times fewer evaluations DPM-Solver takes than DDIM for the same value, at each of its numbers."""
    baseline = [curve[BASELINE, nfe] for nfe in BASELINE_NFE]
    return [evaluations_for(BASELINE_NFE, baseline, curve[SOLVER, nfe]) / nfe for nfe in SOLVER_NFE]


def compare(cells: Sequence[Cell], quantity: Callable[[Cell, NDArray[np.int64] | slice], float], count: int) -> dict:
    """Values of all cells and DPM-Solver's savings, each with its bootstrap interval."""
    def statistic(chosen: NDArray[np.int64] | slice) -> list[float]:
        curve = {(cell.solver, cell.nfe): quantity(cell, chosen) for cell in cells}
        return [*curve.values(), *savings(curve)]

    values = statistic(slice(None))
    low, high = bootstrap_interval(statistic, count)
    rows = [dict(value=v, low=float(a), high=float(b)) for v, a, b in zip(values, low, high, strict=True)]
    return {"values": [dict(solver=c.solver, nfe=c.nfe, **row) for c, row in zip(cells, rows, strict=False)],
            "savings": [dict(nfe=n, **row) for n, row in zip(SOLVER_NFE, rows[len(cells):], strict=True)]}


def at_few(cells: Sequence[Cell], ancestral: Cell) -> list[dict[str, float | str]]:
    """Distances at as many samples as ancestral sampling had, since a distance depends on the number."""
    few = slice(len(ancestral.features))
    best = [max((c for c in cells if c.solver == solver), key=lambda c: c.nfe) for solver in (SOLVER, BASELINE)]
    rows = []
    for cell in (*best, ancestral):
        low, high = bootstrap_interval(lambda chosen, cell=cell: [cell.distance(chosen)], len(ancestral.features))
        rows.append(dict(solver=cell.solver, nfe=cell.nfe, value=cell.distance(few), low=float(low[0]),
                         high=float(high[0])))
    return rows


def times(value: float, largest: float) -> str:
    """Write a saving; beyond DDIM's last number of evaluations only a bound is known."""
    return f"> {largest:.1f}" if math.isinf(value) else f"{value:.1f}"


def print_values(rows: Sequence[Mapping]) -> None:
    """Print values of samplers with their intervals."""
    for row in rows:
        print(f"  {row['solver']:>14} {row['nfe']:5d} NFE  {row['value']:9.4g}  [{row['low']:.4g}, {row['high']:.4g}]")


def print_comparison(title: str, result: Mapping[str, list]) -> None:
    """Print one quantity of one model: values, then savings beside the paper's."""
    print(f"\n{title}")
    print_values(result["values"])
    for row in result["savings"]:
        limit = BASELINE_NFE[-1] / row["nfe"]
        value, low, high = (times(row[key], limit) for key in ("value", "low", "high"))
        print(f"  {SOLVER} at {row['nfe']} NFE equals {BASELINE} with {value} times as many  [{low}, {high}]"
              "      paper, other data: 4 to 16")


def report_on(name: str, num: int, num_ancestral: int, compared: int, batch: int, progress: Progress) -> dict:
    """Run one model, print what came out, and return it."""
    cells, ancestral, reference = run_model(name, num, num_ancestral, compared, batch, progress)
    distance, error = compare(cells, Cell.distance, num), compare(cells, Cell.error, compared)
    few = at_few(cells, ancestral)
    converged = max(reference.convergence.values())
    print_comparison(f"{name}: {fashion_mnist_features().metric}, {num} images (a distance depends on "
                     "their number: compare at the same)", distance)
    print_comparison(f"{name}: RMS error of {compared} trajectories (the reference at {reference.nfe} NFE is converged "
                     f"to {converged:.2g})", error)
    print(f"\n{name}: the distance with ancestral sampling, {num_ancestral} images, and the others at as many")
    print_values(few)
    return {"distance": distance, "trajectory_rms": error, "ancestral": few,
            "reference_convergence": {str(t): c for t, c in reference.convergence.items()}}


def finite(value: object) -> object:
    """JSON has no infinity: None stands for a level that DDIM never reached."""
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    """Run both models, print the comparison, and save it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(BASELINE_GRIDS))
    parser.add_argument("--num", type=int, default=132, help="images for each sampler and number of evaluations")
    parser.add_argument("--ancestral", type=int, help="images by ancestral sampling (default: a fifth of --num)")
    parser.add_argument("--compared", type=int, default=32, help="trajectories to compare with converged ones")
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.num < 2 or not 2 <= arguments.compared <= arguments.num:
        parser.error("--num and --compared take at least 2, and --compared at most --num")
    num_ancestral = arguments.ancestral or max(2, arguments.num // 5)
    if not 2 <= num_ancestral <= arguments.num:
        parser.error("--ancestral takes at least 2 and at most --num")
    started = time.perf_counter()
    with Progress(transient=True) as progress:
        models = {name: report_on(name, arguments.num, num_ancestral, arguments.compared, arguments.batch, progress)
                  for name in arguments.models}
    print("\nThe paper: 4 to 16 times fewer evaluations than earlier training-free samplers; FID 4.70 at 10 and 2.87 "
          "at 20 NFE\non CIFAR-10, which are other data and other features. "
          f"{time.perf_counter() - started:.0f} s in all.")
    report = {**surroundings(), "num": arguments.num, "num_ancestral": num_ancestral, "compared": arguments.compared,
              "baseline_grids": BASELINE_GRIDS, "models": models}
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(finite(report), indent=1, allow_nan=False) + "\n")
        print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
