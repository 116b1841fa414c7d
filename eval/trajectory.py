"""How far a sampler ends from the exact solution of the probability-flow ODE with the same start noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from odecore.plan import Registers, Row
from samplers import compile_plan, sample
from scoremodels.fingerprint import fingerprint as fingerprint
from scoremodels.model import ScoreModel

REFERENCE_SOLVER = "dpm-solver++-3m"
REFERENCE_GRID = "log-snr"


class Reference(NamedTuple):
    """A converged solution.

    Attributes:
        end_points: the solution by network time: where the training ends (``t_min``) and without noise (``t_clean``).
        convergence: RMS distance to the solution with half the evaluations, by the same times. The error of
            the reference itself is smaller than that.
        nfe: network evaluations of the finer solution.
        about: solver, grid, seed and number of samples, for reports.
    """

    end_points: Mapping[float, Tensor]
    convergence: Mapping[float, float]
    nfe: int
    about: Mapping[str, object]


def rms(difference: Float[Tensor, "batch ..."]) -> float:
    """Root of the mean square over samples and their elements, in float64."""
    return difference.double().square().mean().sqrt().item()


def trajectory_errors(samples: Float[Tensor, "batch ..."], reference: Float[Tensor, "batch ..."]) -> Tensor:
    """RMS distance of each sample from the reference, in units of the samples.

    ``e_i = sqrt(mean_j (x_ij - r_ij)²)``. For one number over all samples take the root of the mean
    of the squares, for a typical one the median: a few samples that end in another mode dominate
    the former.

    Args:
        samples: end points of a sampler.
        reference: end points of the reference from the same start noise.

    Returns:
        Shape (batch,), float64.

    Raises:
        ValueError: the shapes differ.
    """
    if samples.shape != reference.shape:
        raise ValueError(f"samples have shape {tuple(samples.shape)} and reference {tuple(reference.shape)}: "
                         "compare as many, from the same seeds")
    return (samples.detach().cpu().double() - reference.cpu().double()).flatten(1).square().mean(1).sqrt()


_CACHE: WeakKeyDictionary[ScoreModel, dict[tuple[object, ...], Reference]] = WeakKeyDictionary()


def reference_solution(
    model: ScoreModel,
    *,
    num: int,
    seed: int = 0,
    condition: Tensor | None = None,
    nfe: int = 128,
    batch: int = 256,
    on_evaluations: Callable[[int], None] | None = None,
) -> Reference:
    """Solve the probability-flow ODE with many evaluations, at two resolutions.

    The result is kept as long as the model is; a second call with the same arguments and unchanged
    weights costs nothing.

    Args:
        model: the pretrained model, or a wrapper that adds guidance.
        num: number of samples.
        seed: sample i starts from noise drawn with seed ``seed + i``, as in :func:`samplers.sample`.
        condition: one label a sample.
        nfe: evaluations of the finer resolution; the coarser takes half.
        batch: how many samples to compute at once.
        on_evaluations: called with the number of samples after each evaluation of the network.

    Returns:
        The solution and its distance from the coarser one.

    Raises:
        ValueError: an argument is out of range.

    Cost: ``nfe + nfe // 2`` evaluations of the network for each sample.
    """
    if nfe < 8:
        raise ValueError(f"nfe={nfe}: a reference takes at least 8 evaluations, and 100 to be worth its name")
    labels = None if condition is None else tuple(condition.tolist())
    key = (fingerprint(model), num, seed, labels, nfe)
    kept = _CACHE.setdefault(model, {})
    if key not in kept:
        coarse, fine = (
            _end_points(model, num=num, seed=seed, condition=condition, nfe=n, batch=batch,
                        on_evaluations=on_evaluations) for n in (nfe // 2, nfe))
        convergence = {t: rms(fine[t] - coarse[t]) for t in fine}
        kept[key] = Reference(fine, convergence, nfe, {
            "solver": REFERENCE_SOLVER, "grid": REFERENCE_GRID, "nfe": nfe, "num": num, "seed": seed})
    return kept[key]


def _end_points(
    model: ScoreModel, *, num: int, seed: int, condition: Tensor | None, nfe: int, batch: int,
    on_evaluations: Callable[[int], None] | None,
) -> dict[float, Tensor]:
    """Solve once; the last step goes from ``t_min`` to ``t_clean``, so both end points come from one run."""
    schedule = model.schedule
    plan = compile_plan(REFERENCE_SOLVER, schedule, nfe=nfe, grid=REFERENCE_GRID, prediction=model.prediction,
                        end="clean")
    times = sorted({float(schedule.t_min), float(schedule.t_clean)})
    found: dict[float, list[Tensor]] = {t: [] for t in times}
    for first in range(0, num, batch):
        count = min(batch, num - first)

        def keep(index: int, row: Row, registers: Registers, count: int = count) -> None:
            assert isinstance(row.t_next, float)
            if row.t_next in found:
                found[row.t_next].append(registers.anchor.detach().cpu().clone())
            if on_evaluations is not None:
                on_evaluations(count)

        sample(model, num=count, plan=plan, seed=seed + first, batch=count, callback=keep,
               condition=None if condition is None else condition[first:first + count])
    return {t: torch.cat(parts) for t, parts in found.items() if parts}
