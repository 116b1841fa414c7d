"""Draw samples from a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odecore.plan import Plan
from samplers.batches import AdaptiveRun, Batch, Callback, PlannedRun, Start
from samplers.compile import compile_plan, resolve_end
from samplers.grids import Grid
from samplers.memory import MemoryLimit, halving
from samplers.parts import Handover, hand_over, rows_between
from samplers.plan_files import check_made_for, read_plan
from samplers.registry import solver_named
from samplers.solver import AdaptiveSolver, SelectingSolver, Solver
from samplers.trajectory import Trajectory, joined
from scoremodels.model import ScoreModel


class Result(NamedTuple):
    """What :func:`sample` returns.

    Attributes:
        samples: the samples, of shape ``(num, *model.shape)``, in the model's range.
        nfe: network evaluations spent on each sample, counted as they were made: two branches of guidance in one
            batch are one, two networks are two; of the slowest batch, if the solver is adaptive.
        plan: the plan that was run; None if the solver is adaptive, or its weights depend on the samples.
        passes: forward passes of each sample through a network, on average; every branch of guidance is one.
        trajectory: the states on the way, if they were asked for.
        handover: what another run needs to go on, if this one ended before its plan.
    """

    samples: Tensor
    nfe: int
    plan: Plan | None
    passes: float = 0.0
    trajectory: Trajectory | None = None
    handover: Handover | None = None


@torch.no_grad()
def sample(
    model: ScoreModel,
    *,
    num: int | None = None,
    solver: str | Solver | AdaptiveSolver = "dpm-solver++-2m",
    nfe: int = 10,
    grid: str | Grid | Sequence[float] | NDArray[np.float64] | None = None,
    end: str | float | None = None,
    plan: Plan | str | PathLike[str] | None = None,
    seed: int = 0,
    x_T: Tensor | Result | None = None,  # noqa: N803 (the field's name for the start noise)
    condition: int | Tensor | None = None,
    batch: int | MemoryLimit = 256,
    rtol: float = 0.05,
    atol: float = 0.0078,
    callback: Callback | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
    denoising_start: float = 0.0,
    denoising_end: float = 1.0,
    trajectory: bool = False,
) -> Result:
    """Draw samples with a number of network evaluations that is fixed beforehand.

    Sample i starts from noise drawn with seed ``seed + i``, whatever the batch it is computed in.

    Args:
        model: the pretrained model, or a wrapper that adds guidance, inpainting, previews or mixed precision.
        num: how many; by default as many as ``x_T`` has, or 1.
        solver: a name out of ``SOLVERS`` or a :class:`~samplers.solver.Solver`.
        nfe: evaluations of ``model`` a sample, at least 1; an adaptive solver spends what its tolerances ask for,
            and a wrapper may evaluate more than one network, which the result tells.
        grid: times at which the network is evaluated, see :func:`~samplers.compile.compile_plan`; adaptive
            solvers take none.
        end: where to stop, see :func:`~samplers.compile.compile_plan`.
        plan: a compiled plan to run in place of ``solver``, ``nfe``, ``grid`` and ``end``; or the file of one that was
            made for a model of this schedule and prediction.
        seed: seed of the first sample.
        x_T: start states of shape ``(num, *model.shape)``, in place of drawn noise; or the result of a run that
            ended early, to go on with its plan, its seeds and its history.
        condition: a class label for all samples, or one label a sample.
        batch: how many samples to compute at once; or a memory limit, from which it is found.
        rtol: relative tolerance of the adaptive solvers.
        atol: absolute tolerance of the adaptive solvers, in units of the samples.
        callback: called after each row with its index, the row and the registers of the batch.
        progress: wraps the starting indices of the batches, for instance ``tqdm``.
        denoising_start: fraction of the plan's rows that came before; ``x_T`` is the state there.
        denoising_end: fraction of the rows after which to stop.
        trajectory: whether to return the accepted state after each row, on the CPU.

    Returns:
        samples, the evaluations spent, the plan, and what else was asked for.

    Raises:
        ValueError: an argument is unknown, out of range or of the wrong shape; before any evaluation.

    Cost: ``nfe`` evaluations of the model for each batch; a memory limit takes two more to find the batch, and
        repeats in halves a batch for which the memory was too small all the same.
    """
    given, states = (_handover(x_T, plan), x_T.samples) if isinstance(x_T, Result) else (None, x_T)
    count = _count(model, num, states)
    labels = _labels(model, condition, count)
    if not isinstance(batch, MemoryLimit) and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ValueError(f"batch={batch!r}: give a whole number of samples, at least 1, or a MemoryLimit")
    if plan is not None and not isinstance(plan, Plan):
        plan = read_plan(plan)
    if plan is not None:
        check_made_for(plan, model.schedule, model.prediction)
    plan = plan if given is None else given.plan
    chosen = solver_named(solver) if isinstance(solver, str) else solver
    selecting = chosen if plan is None and isinstance(chosen, SelectingSolver) else None
    if plan is None and isinstance(chosen, AdaptiveSolver) and selecting is None:
        if grid is not None:
            raise ValueError(f"grid={grid!r}, but solver {chosen.name!r} chooses its own times: leave grid out")
        if trajectory or (denoising_start, denoising_end) != (0.0, 1.0):
            raise ValueError(f"solver={chosen.name!r} chooses its own times: leave denoising_start, denoising_end and "
                             "trajectory out, or choose a solver with a plan")
        t_end = resolve_end(model.schedule, "minimum" if end is None else end)
        start = Start(model, seed, states, float(model.schedule.prior_scale(model.schedule.t_max)), 0, labels)
        adaptive = AdaptiveRun(start, chosen.order, rtol, atol, t_end)
        return _gathered(_batches(adaptive, start, count, batch, 3, progress))
    if plan is None:
        fixed = chosen if selecting is None else selecting.base
        assert isinstance(fixed, Solver)
        plan = compile_plan(fixed, model.schedule, nfe=nfe, grid=grid, prediction=model.prediction, end=end)
    rows = rows_between(plan, denoising_start, denoising_end, given)
    if selecting is not None and len(rows) < plan.nfe:
        raise ValueError(f"solver={chosen.name!r} chooses its weights from all that it has seen: leave denoising_start "
                         "and denoising_end out")
    start = Start(model, seed if given is None else given.seed, states, _noise_scale(model, plan, rows, states),
                  0 if given is None else given.draws, labels)
    run = PlannedRun(start, plan, rows, selecting, given, callback, trajectory)
    batches = _batches(run, start, count, batch, plan.depth, progress)
    draws = start.used + (states is None) + sum(plan.rows[i].noisy for i in rows)
    parts = [part.registers for part in batches if part.registers is not None]
    return _gathered(batches)._replace(
        plan=plan if selecting is None else None,
        trajectory=joined(plan, rows, [part.states for part in batches if part.states is not None]),
        handover=hand_over(plan, rows.stop, start.seed, draws, parts) if parts else None)


def _batches(
    run: Callable[[int, int], Batch], start: Start, count: int, batch: int | MemoryLimit, depth: int,
    progress: Callable[[Iterable[int]], Iterable[int]] | None,
) -> list[Batch]:
    """Run all batches, in the order of their samples."""
    label = None if start.labels is None else int(start.labels[0])
    size = batch.batch(start.model, depth=depth, condition=label) if isinstance(batch, MemoryLimit) else batch
    starts = range(0, count, size)
    done: list[Batch] = []
    for first in starts if progress is None else progress(starts):
        last = min(first + size, count)
        done += halving(run, first, last) if isinstance(batch, MemoryLimit) else [run(first, last)]
    return done


def _gathered(batches: Sequence[Batch]) -> Result:
    samples = torch.cat([part.samples for part in batches])
    passes = sum(part.passes for part in batches) / len(samples)
    return Result(samples, max(part.evaluations for part in batches), None, passes)


def _handover(run: Result, plan: Plan | str | PathLike[str] | None) -> Handover:
    if run.handover is None:
        raise ValueError("x_T is a run that has ended: give one that was stopped with denoising_end, or its samples")
    if plan is not None and plan is not run.handover.plan:
        raise ValueError("plan is given, but x_T is a run that goes on with its own: leave plan out, or give "
                         "its samples")
    return run.handover


def _noise_scale(model: ScoreModel, plan: Plan, rows: range, states: Tensor | None) -> float:
    """Standard deviation of the noise to start from, where the plan starts from noise."""
    if states is not None:
        return 0.0
    if rows.start > 0:
        raise ValueError("x_T=None, but denoising_start > 0: give the noisy states there")
    t_start, t_end = float(plan.t_start), float(plan.rows[-1].t_next)
    if float(model.schedule.log_snr(t_start)) > float(model.schedule.log_snr(t_end)):
        raise ValueError("x_T=None, but the plan leads from data to noise: give the data")
    return float(model.schedule.prior_scale(t_start))


def _count(model: ScoreModel, num: int | None, x_T: Tensor | None) -> int:  # noqa: N803
    """How many samples there are to be; checks the start states."""
    if num is not None and (isinstance(num, bool) or not isinstance(num, int) or num < 1):
        raise ValueError(f"num={num!r}: give a whole number of samples, at least 1")
    if x_T is None:
        return 1 if num is None else num
    if x_T.shape[1:] != torch.Size(model.shape) or x_T.ndim != 1 + len(model.shape) or len(x_T) == 0:
        raise ValueError(f"x_T has shape {tuple(x_T.shape)}: give (num, {', '.join(map(str, model.shape))})")
    if num is not None and num != len(x_T):
        raise ValueError(f"num={num}, but x_T has {len(x_T)} states: leave num out")
    if not x_T.is_floating_point():
        raise ValueError(f"x_T has dtype {x_T.dtype}: give floating-point states")
    if not torch.isfinite(x_T).all():
        raise ValueError("x_T holds non-finite values: give finite states")
    return len(x_T)


def _labels(model: ScoreModel, condition: int | Tensor | None, count: int) -> Tensor | None:
    if condition is None:
        return None
    if not model.num_classes:
        raise ValueError(f"condition={condition!r}, but the model is unconditional: leave condition out")
    labels = torch.as_tensor(condition)
    if labels.ndim == 0:
        labels = labels.expand(count)
    if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"condition has shape {tuple(labels.shape)} and dtype {labels.dtype}: give one integer label, "
                         f"or {count} of them")
    if labels.min() < 0 or labels.max() >= model.num_classes:
        raise ValueError(f"condition={labels.tolist()[:10]}: labels lie between 0 and {model.num_classes - 1}")
    return labels.long()
