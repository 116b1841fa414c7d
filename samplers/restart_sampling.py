"""Restart: Heun's steps down, and now and then back up by noise, to walk over a part of the way again.

Noise contracts the errors that earlier steps have made, and the ODE makes few of its own. Restart adds much noise
at a time, where an SDE adds a little at each step. (For a run that starts in its middle see :mod:`samplers.restart`.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from odecore.explicit.tableaus import EULER, HEUN
from odecore.plan import Row
from samplers.churn import ode_leg
from samplers.edm import steps_that_spend
from samplers.renoise import Leg, joined
from samplers.solver import Path, Solver
from scoremodels.schedule import NoiseSchedule

_RHO = 7.0
"""Exponent of the noise levels within an interval, as in EDM."""

_EVALUATIONS_A_STEP = 20
"""Evaluations of a run to each step of an interval, where their number is not given."""

_LEAST = 4
"""Evaluations of a main run that has two steps in any case."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A part of the way that is walked again.

    Args:
        low: noise-to-signal ratio σ/α from which noise leads back up; the run's nearest inner time is taken.
        high: ratio up to which it leads, or the noisiest of the schedule.
        repeats: how many times, K.
        steps: Heun's steps from ``high`` down again, each time; None for one to every 20 evaluations of the run, which
            is the paper's share.

    Raises:
        ValueError: a number out of its range.
    """

    low: float = 0.06
    high: float = 0.3
    repeats: int = 2
    steps: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.low < self.high < math.inf:
            raise ValueError(f"low={self.low}, high={self.high}: give 0 < low < high < inf")
        for name, count, least in (("repeats", self.repeats, 0), ("steps", self.steps, 1)):
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < least):
                raise ValueError(f"{name}={count!r}: give a whole number, at least {least}")


def restart_heun(*intervals: Interval) -> Solver:
    """Build Restart with Heun's method over ρ = σ/α.

    Where the main run comes to ``low``, it takes ``repeats`` times noise up to ``high``,
    ``y_high = y_low + sqrt(ρ_high² - ρ_low²) z``, and ``steps`` steps down to ``low`` again.

    While the repeats would leave fewer than four evaluations to the main run, the last interval loses one.

    Args:
        intervals: by falling noise; by default the one of the paper for CIFAR-10 with EDM, which of 43
            evaluations leaves 35 to the main run.

    Raises:
        ValueError: something that is no :class:`Interval`.

    Cost: two evaluations a step; Euler's step with one leads to σ = 0 and away from pure noise, and spends what is
        left over.

    Source: Xu et al. 2023, arXiv:2306.14878, algorithm 1 and section 3.
    """
    chosen = intervals or (Interval(),)
    for interval in chosen:
        if not isinstance(interval, Interval):
            raise ValueError(f"intervals={intervals!r}: give samplers.restart_sampling.Interval objects")
    return Solver("restart", 2, partial(_restarted, intervals=chosen), "plain", grid="karras", stochastic=True,
                  renoises=True, source="Xu et al. 2023, arXiv:2306.14878")


def _restarted(path: Path, nfe: int, *, intervals: Sequence[Interval]) -> tuple[tuple[Row, ...], list[float]]:
    chosen = _affordable(intervals, nfe)
    steps = steps_that_spend(path, nfe - sum(parts.nfe for parts in chosen), "plain", (EULER, HEUN))
    times = path.times(len(steps))
    places = [_nearest(path.schedule, times[1:-1], parts.low) for parts in chosen]
    legs: list[Leg] = []
    for t, s, step in zip(times[:-1], times[1:], steps, strict=True):
        legs.append(ode_leg(path, t, s, step))
        for parts in (p for p, place in zip(chosen, places, strict=True) if place == s):
            down = _way_down(path.schedule, s, parts)
            legs += [ode_leg(path, a, b, HEUN) for a, b in pairwise(down)] * parts.repeats
    return joined(path.schedule, legs, times[-1]), times


class _Parts(NamedTuple):
    """An interval, and how it is walked in a run of so many evaluations."""

    low: float
    high: float
    repeats: int
    steps: int

    @property
    def nfe(self) -> int:
        return 2 * self.repeats * self.steps


def _affordable(intervals: Sequence[Interval], nfe: int) -> list[_Parts]:
    """Drop repeats until the main run can take the two steps between which to restart."""
    usual = nfe // _EVALUATIONS_A_STEP
    kept = [_Parts(i.low, i.high, i.repeats, usual if i.steps is None else i.steps) for i in intervals]
    kept = [parts for parts in kept if parts.nfe]
    while kept and nfe - sum(parts.nfe for parts in kept) < _LEAST:
        last = kept.pop()
        kept += [last._replace(repeats=last.repeats - 1)] if last.repeats > 1 else []
    return kept


def _nearest(schedule: NoiseSchedule, times: Sequence[float], ratio: float) -> float:
    return min(times, key=lambda t: abs(float(schedule.ratio(t)) - ratio))


def _way_down(schedule: NoiseSchedule, end: float, parts: _Parts) -> list[float]:
    """Times from the interval's upper end to one near its lower end; a coarse grid may lie above both, and moves it."""
    low = float(schedule.ratio(end))
    high = parts.high if low < parts.high else low * parts.high / parts.low
    high = min(high, float(schedule.ratio(schedule.t_max)))
    ratios = np.linspace(high ** (1 / _RHO), low ** (1 / _RHO), parts.steps + 1)[:-1] ** _RHO
    return [*(float(schedule.time_of_ratio(float(ratio))) for ratio in ratios), end]


RESTART = (restart_heun(),)
