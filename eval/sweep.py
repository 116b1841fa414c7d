"""Quality and cost of many solvers at many numbers of evaluations, on one model."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from eval.features import FeatureExtractor
from eval.fid import Moments, Statistics, frechet_distance
from eval.images import from_bytes, to_bytes
from eval.trajectory import Reference, reference_solution, trajectory_errors
from odecore.plan import Plan, Registers, Row
from samplers import SOLVERS, AdaptiveSolver, compile_plan, sample
from samplers.registry import solver_named
from scoremodels.model import ScoreModel

SHOWN = 100
"""How many samples of each cell are kept for its picture."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One solver at one number of evaluations.

    Args:
        solver: its name.
        grid: name of the time grid; "adaptive" for a solver that chooses its own steps.
        nfe: network evaluations to spend; None for an adaptive solver.
        plan: what will be run; None for an adaptive solver.
    """

    solver: str
    grid: str
    nfe: int | None
    plan: Plan | None

    @property
    def stochastic(self) -> bool:
        """Whether fresh noise is added on the way, so that no trajectory can be compared."""
        return self.plan is not None and any(row.noisy for row in self.plan.rows)


class Measurement(NamedTuple):
    """What came out of one cell.

    Attributes:
        solver, grid: as asked.
        nfe: network evaluations spent on each sample.
        distance: Fréchet distance to the reference images; None if not measured or not finite.
        trajectory_rms: RMS distance from the reference solution over all compared samples; None if there is none.
        trajectory_median: median over the samples of their own RMS distances.
        seconds_per_image: sampling alone, without features and files.
        images: the first samples, 8-bit.
        note: what was out of the ordinary.
    """

    solver: str
    grid: str
    nfe: int
    distance: float | None
    trajectory_rms: float | None
    trajectory_median: float | None
    seconds_per_image: float
    images: Tensor
    note: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the samples of every cell are drawn.

    Args:
        num: samples a cell.
        seed: sample i starts from noise drawn with seed ``seed + i``.
        batch: how many to compute at once; they do not depend on it.
        compared: how many of them, the first, are compared with the reference solution; 0 for none.
        reference_nfe: network evaluations of that solution.

    Raises:
        ValueError: a number out of range.
    """

    num: int = 1000
    seed: int = 0
    batch: int = 250
    compared: int = 64
    reference_nfe: int = 128

    def __post_init__(self) -> None:
        if self.num < 2:
            raise ValueError(f"num={self.num}: statistics take at least 2 samples")
        if not 0 <= self.seed < 2**62:
            raise ValueError(f"seed={self.seed}: give a whole number from 0 to 2^62")
        if self.batch < 1:
            raise ValueError(f"batch={self.batch}: give at least 1")
        if self.compared < 0:
            raise ValueError(f"compared={self.compared}: give the number of samples to compare, or 0 for none")
        if self.compared and self.reference_nfe < 8:
            raise ValueError(f"reference_nfe={self.reference_nfe}: a reference solution takes at least 8 evaluations")


def plan_cells(
    model: ScoreModel, solvers: Sequence[str], nfes: Sequence[int], grids: Sequence[str | None] = (None,)
) -> tuple[Cell, ...]:
    """Compile every combination, so that whatever is wrong shows before the first evaluation.

    An adaptive solver takes its own steps and makes one cell, whatever ``nfes`` and ``grids``.

    Args:
        model: the pretrained model.
        solvers: names out of ``SOLVERS``.
        nfes: network evaluations.
        grids: names out of ``GRIDS``; None stands for each solver's usual grid.

    Raises:
        ValueError: an unknown name, or a number of evaluations that a solver cannot spend on a grid.
    """
    if not solvers:
        raise ValueError(f"solvers=(): name at least one of {', '.join(SOLVERS)}")
    if not nfes:
        raise ValueError("nfe=(): give at least one number of evaluations")
    cells: list[Cell] = []
    for name in dict.fromkeys(solvers):
        if isinstance(solver_named(name), AdaptiveSolver):
            cells.append(Cell(name, "adaptive", None, None))
            continue
        for grid in dict.fromkeys(grids):
            for nfe in dict.fromkeys(nfes):
                plan = compile_plan(name, model.schedule, nfe=nfe, grid=grid, prediction=model.prediction)
                cells.append(Cell(name, str(plan.about["grid"]), nfe, plan))
    return tuple(cells)


def cycled_labels(model: ScoreModel, num: int) -> Tensor | None:
    """Label ``i mod classes`` for sample i, as even a mix as the data's; None for an unconditional model."""
    return torch.arange(num) % model.num_classes if model.num_classes else None


def solve_reference(
    model: ScoreModel, sampling: Sampling, *, on_evaluations: Callable[[int], None] | None = None
) -> Reference | None:
    """Solve the samples that are compared; None if there are none."""
    num = min(sampling.compared, sampling.num)
    if num == 0:
        return None
    return reference_solution(model, num=num, seed=sampling.seed, condition=cycled_labels(model, num),
                              nfe=sampling.reference_nfe, batch=sampling.batch, on_evaluations=on_evaluations)


def measure(
    model: ScoreModel,
    cell: Cell,
    sampling: Sampling,
    *,
    extractor: FeatureExtractor | None = None,
    target: Moments | None = None,
    reference: Reference | None = None,
    on_evaluations: Callable[[int], None] | None = None,
) -> Measurement:
    """Draw the samples of one cell, batch by batch, and measure them.

    Args:
        model: the pretrained model, or a wrapper that adds guidance.
        cell: what to run.
        sampling: how many samples, and from which seeds.
        extractor: features for the Fréchet distance; None measures none.
        target: moments of those features over real images.
        reference: solution to compare the first samples with.
        on_evaluations: called with the number of samples after each evaluation of the network; an
            adaptive solver reports a batch when it is done.

    Returns:
        The measurements. Samples that are not finite give a note, not an exception.
    """
    labels = cycled_labels(model, sampling.num)
    compared = 0 if reference is None else len(next(iter(reference.end_points.values())))
    statistics = None if extractor is None else Statistics.empty(extractor.dimension)
    seconds, nfe, finite = 0.0, 0, True
    kept: list[Tensor] = []
    pictures: list[Tensor] = []
    for first in range(0, sampling.num, sampling.batch):
        last = min(first + sampling.batch, sampling.num)

        def advance(index: int, row: Row, registers: Registers, count: int = last - first) -> None:
            if on_evaluations is not None:
                on_evaluations(count)

        started = time.perf_counter()
        result = sample(model, num=last - first, solver=cell.solver, plan=cell.plan, seed=sampling.seed + first,
                        condition=None if labels is None else labels[first:last], batch=sampling.batch,
                        callback=advance)
        if result.samples.is_cuda:
            torch.cuda.synchronize(result.samples.device)
        seconds += time.perf_counter() - started
        nfe = max(nfe, result.nfe)
        if cell.plan is None and on_evaluations is not None:
            on_evaluations((last - first) * result.nfe)
        samples = result.samples.detach().cpu()
        kept.append(samples[:max(compared - first, 0)])
        finite = finite and bool(samples.isfinite().all())
        low, high = model.value_range
        images = to_bytes(samples.nan_to_num(low, high, low), model.value_range)
        pictures.append(images[:max(SHOWN - first, 0)])
        if statistics is not None and extractor is not None and finite:
            statistics = statistics.merge(Statistics.of(extractor(from_bytes(images))))
    distance = None
    if statistics is not None and target is not None and finite:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once for the whole sweep
            distance = frechet_distance(statistics, target)
    root, median = _compare(cell, model, torch.cat(kept), reference)
    return Measurement(cell.solver, cell.grid, nfe, distance, root, median, seconds / sampling.num,
                       torch.cat(pictures), "" if finite else "samples are not finite: the solver diverged")


def _compare(
    cell: Cell, model: ScoreModel, samples: Tensor, reference: Reference | None
) -> tuple[float | None, float | None]:
    """Compare at the time where the plan ends, which may be short of all noise removed."""
    if reference is None or cell.stochastic or not samples.isfinite().all():
        return None, None
    end = float(model.schedule.t_min) if cell.plan is None else float(cell.plan.rows[-1].t_next)
    if end not in reference.end_points:
        return None, None
    errors = trajectory_errors(samples, reference.end_points[end])
    return errors.square().mean().sqrt().item(), errors.median().item()
