"""Move the times of a grid to where a solver ends nearest to the solution: least squares over smooth bends of it.

The end points of a few trajectories are smooth functions of the times at which the network is evaluated, and how far
they lie from the solution is a sum of squares: a problem for Levenberg and Marquardt, with one more run of the plan
for each direction in which the grid may bend.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from odecore.plan import Plan
from samplers.grids import Times
from samplers.halving import Trial
from samplers.lockstep import start_plan
from scoremodels.schedule import NoiseSchedule

BENDS = 8
"""At most so many: cosines over the index of the time, the slowest first. Up to so many free times, all are free."""
DAMPING = (0.01, 0.1, 1.0, 10.0)
"""Multiples of the diagonal of the normal equations; the steps of all are tried side by side."""
_STEP = 0.05
"""Step in log(σ/α) of the difference quotients: end points are good to six digits."""
_MOST = 50.0
"""Of log(σ/α), where pure noise has no finite one."""
_LEAST_GAIN = 0.01
"""A round that lowers the distance by a lesser fraction is the last."""


class Refined(NamedTuple):
    """What :func:`refine` returns.

    Attributes:
        plan: the plan on the times that were found.
        rms: its RMS distance from the solution.
        gain: the distance on the first times less this, as a fraction of the former.
    """

    plan: Plan
    rms: float
    gain: float


def refine(
    trial: Trial, compiled: Callable[[Times], Plan], times: Times, *, rounds: int = 2, noises: int | None = None
) -> Refined:
    """Minimise the RMS distance from the solution over the times between the first and the last.

    With e(c) the end points less the solution, c the amplitudes of cosines that are added to log(σ/α) of the times,
    and J the Jacobian of e by differences, a round tries ``c = -(JᵀJ + μ diag JᵀJ)⁻¹ Jᵀe`` for each damping μ, and
    goes on from the best.

    Args:
        trial: model, noises and solution; what is run is added to ``trial.states``.
        compiled: compiles the solver on times.
        times: where to begin, decreasing.
        rounds: how often to linearise, at most.
        noises: from the first so many noises alone; None for all.

    Returns:
        The best plan that was met, at worst the one on ``times``.

    Raises:
        ValueError: ``compiled`` refuses ``times``.

    Cost: from each noise, one run of the plan, and in each round at most one for each bend and each damping.

    Source: Marquardt 1963, doi:10.1137/0111030.
    """
    schedule, first_ones = trial.model.schedule, slice(0, noises)

    def errors_on(several: list[Times]) -> list[Tensor]:
        plans = [compiled(one) for one in several]
        return trial.errors([start_plan(trial.model, plan) for plan in plans], first_ones)

    (errors,) = errors_on([times])
    first = best = _rms(errors)
    for _ in range(rounds):
        bends = [bend for bend in _bends(schedule, times) if bent(schedule, times, bend) is not None]
        if not bends:
            break
        moved = errors_on([found for bend in bends if (found := bent(schedule, times, bend)) is not None])
        jacobian = torch.stack([(error - errors).flatten() for error in moved])
        amplitudes = _amplitudes(jacobian, errors.flatten())
        tried = [found for c in amplitudes if (found := bent(schedule, times, c @ np.stack(bends))) is not None]
        ends = errors_on(tried)
        ranked = sorted((_rms(error), index) for index, error in enumerate(ends) if error.isfinite().all())
        if not ranked or not ranked[0][0] < best:
            break
        before, (best, index) = best, ranked[0]
        times, errors = tried[index], ends[index]
        if best > (1.0 - _LEAST_GAIN) * before:
            break
    return Refined(compiled(times), best, 1.0 - best / first if first else 0.0)


def bent(schedule: NoiseSchedule, times: Times, bend: Times) -> Times | None:
    """Add ``bend`` to log(σ/α) of the free times; None where they would not decrease any more.

    Free are the times between the first and the last; none falls below the least noise of the training.
    """
    ratios = np.log(schedule.ratio(times[1:-1])) + bend
    if not np.all(ratios < min(math.log(schedule.ratio(schedule.t_max)), _MOST)):
        return None
    moved = np.maximum(schedule.time_of_ratio(np.exp(ratios)), float(schedule.t_min))
    found = np.concatenate([times[:1], moved, times[-1:]])
    return found if np.all(np.diff(found) < 0.0) else None


def _bends(schedule: NoiseSchedule, times: Times) -> list[Times]:
    """Cosines of height ``_STEP``, with the sign that moves the least noisy free time towards noise."""
    free = len(times) - 2
    places = (np.arange(free) + 0.5) / max(free, 1)
    waves = [np.cos(math.pi * k * places) for k in range(min(free, BENDS))]
    return [wave * math.copysign(_STEP, wave[-1]) for wave in waves]


def _amplitudes(jacobian: Tensor, errors: Tensor) -> list[Times]:
    """Steps of Levenberg and Marquardt in units of the bends."""
    normal, slope = jacobian @ jacobian.T, jacobian @ errors
    if not (normal.isfinite().all() and slope.isfinite().all()):
        return []
    diagonal = normal.diagonal().clamp_min(1e-30).diag()
    return [-torch.linalg.solve(normal + damping * diagonal, slope).numpy() for damping in DAMPING]


def _rms(errors: Tensor) -> float:
    return errors.square().mean().sqrt().item()
