"""Draw samples from a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odecore.plan import Plan, Registers, Row, Weight, execute
from samplers.adaptive import sample_adaptive
from samplers.compile import compile_plan, resolve_end
from samplers.grids import Grid
from samplers.noise import SampleNoise
from samplers.registry import solver_named
from samplers.solver import AdaptiveSolver, SelectingSolver, Solver
from scoremodels.model import ScoreModel


class Result(NamedTuple):
    """What :func:`sample` returns.

    Attributes:
        samples: the samples, of shape ``(num, *model.shape)``, in the model's range.
        nfe: network evaluations spent on each sample; of the slowest batch, if the solver is adaptive.
        plan: the plan that was run; None if the solver is adaptive, or its weights depend on the samples.
    """

    samples: Tensor
    nfe: int
    plan: Plan | None


@torch.no_grad()
def sample(
    model: ScoreModel,
    *,
    num: int | None = None,
    solver: str | Solver | AdaptiveSolver = "dpm-solver++-2m",
    nfe: int = 10,
    grid: str | Grid | Sequence[float] | NDArray[np.float64] | None = None,
    end: str | float | None = None,
    plan: Plan | None = None,
    seed: int = 0,
    x_T: Tensor | None = None,  # noqa: N803 (the field's name for the start noise)
    condition: int | Tensor | None = None,
    batch: int = 256,
    rtol: float = 0.05,
    atol: float = 0.0078,
    callback: Callable[[int, Row, Registers], None] | None = None,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> Result:
    """Draw samples with a number of network evaluations that is fixed beforehand.

    Sample i starts from noise drawn with seed ``seed + i``, whatever the batch it is computed in.

    Args:
        model: the pretrained model, or a wrapper that adds guidance.
        num: how many; by default as many as ``x_T`` has, or 1.
        solver: a name out of ``SOLVERS`` or a :class:`~samplers.solver.Solver`.
        nfe: network evaluations a sample, at least 1; an adaptive solver spends what its tolerances ask for.
        grid: times at which the network is evaluated, see :func:`~samplers.compile.compile_plan`; adaptive
            solvers take none.
        end: where to stop, see :func:`~samplers.compile.compile_plan`.
        plan: a compiled plan to run in place of ``solver``, ``nfe``, ``grid`` and ``end``.
        seed: seed of the first sample.
        x_T: start states of shape ``(num, *model.shape)``, in place of drawn noise.
        condition: a class label for all samples, or one label a sample.
        batch: how many samples to compute at once.
        rtol: relative tolerance of the adaptive solvers.
        atol: absolute tolerance of the adaptive solvers, in units of the samples.
        callback: called after each row with its index, the row and the registers of the batch.
        progress: wraps the starting indices of the batches, for instance ``tqdm``.

    Returns:
        samples, the evaluations spent, and the plan.

    Raises:
        ValueError: an argument is unknown, out of range or of the wrong shape; before any evaluation.

    Cost: ``nfe`` evaluations of the network for each batch.
    """
    states = _start_states(model, num, x_T)
    count = len(x_T) if x_T is not None else (1 if num is None else num)
    labels = _labels(model, condition, count)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch={batch!r}: give a whole number of samples, at least 1")
    chosen = solver_named(solver) if isinstance(solver, str) else solver
    selecting = chosen if plan is None and isinstance(chosen, SelectingSolver) else None
    adaptive = plan is None and isinstance(chosen, AdaptiveSolver) and selecting is None
    if not adaptive and plan is None:
        fixed = chosen if selecting is None else selecting.base
        assert isinstance(fixed, Solver)
        plan = compile_plan(fixed, model.schedule, nfe=nfe, grid=grid, prediction=model.prediction, end=end)
    if adaptive and grid is not None:
        raise ValueError(f"grid={grid!r}, but solver {chosen.name!r} chooses its own times: leave grid out")
    t_end = resolve_end(model.schedule, "minimum" if end is None else end)
    t_start = float(model.schedule.t_max) if plan is None else float(plan.t_start)
    scale = float(model.schedule.prior_scale(t_start))
    device = model.device
    outputs, spent = [], 0
    starts: Iterable[int] = range(0, count, batch)
    for first in starts if progress is None else progress(starts):
        last = min(first + batch, count)
        noise = SampleNoise(range(seed + first, seed + last), model.shape, device=device)
        x = noise().mul_(scale) if states is None else states[first:last].to(device)
        label = None if labels is None else labels[first:last].to(device)
        if plan is None:
            assert isinstance(chosen, AdaptiveSolver)
            x, evaluations, _ = sample_adaptive(model, x, order=chosen.order, rtol=rtol, atol=atol, condition=label,
                                                t_end=t_end)
        else:
            network = _conditioned(model, label)
            if selecting is not None:
                network = selecting.wrap(network, plan, model.schedule, model.prediction)
            x = execute(plan, network, x, noise=noise, callback=callback)
            evaluations = plan.nfe
        outputs.append(x)
        spent = max(spent, evaluations)
    return Result(torch.cat(outputs), spent, plan if selecting is None else None)


def _conditioned(model: ScoreModel, label: Tensor | None) -> Callable[[Tensor, Weight], Tensor]:
    return lambda x, t: model(x, t, label)


def _start_states(model: ScoreModel, num: int | None, x_T: Tensor | None) -> Tensor | None:  # noqa: N803
    if num is not None and (isinstance(num, bool) or not isinstance(num, int) or num < 1):
        raise ValueError(f"num={num!r}: give a whole number of samples, at least 1")
    if x_T is None:
        return None
    if x_T.shape[1:] != torch.Size(model.shape) or x_T.ndim != 1 + len(model.shape) or len(x_T) == 0:
        raise ValueError(f"x_T has shape {tuple(x_T.shape)}: give (num, {', '.join(map(str, model.shape))})")
    if num is not None and num != len(x_T):
        raise ValueError(f"num={num}, but x_T has {len(x_T)} states: leave num out")
    if not x_T.is_floating_point():
        raise ValueError(f"x_T has dtype {x_T.dtype}: give floating-point states")
    if not torch.isfinite(x_T).all():
        raise ValueError("x_T holds non-finite values: give finite states")
    return x_T


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
