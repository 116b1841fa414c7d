"""DEIS: exact integration of a polynomial through predictions of ε; the variable of the polynomial is the choice.

Over ρ = σ/α it is :mod:`samplers.lms`; over log ρ, the exact quadrature of multistep DPM-Solver; over
the time of a variance-preserving process, tAB-DEIS, which the paper recommends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from odecore.plan import Row
from samplers.lms import lms
from samplers.multistep import checked_order, from_pure_noise, multistep, step_orders
from samplers.solver import Path, Solver
from scoremodels.schedule import ContinuousVP, DiscreteVP, NoiseSchedule

Times = NDArray[np.float64]

_SOURCE = "Zhang & Chen 2022, arXiv:2204.13902"
_POINTS = 32
"""Gauss–Legendre points a piece; the integrand is analytic in it."""


def deis(order: int, polynomial: str = "time", *, taper_below: int = 0) -> Solver:
    """Build DEIS with polynomials over one of three variables.

    ``x_{i+1}/α_{i+1} = x_i/α_i + ∫ p dρ`` from ρ_i to ρ_{i+1}, with p the polynomial through the
    ``order`` newest predictions of ε.

    Args:
        order: 1 to 4; 1 is DDIM.
        polynomial: "time" (tAB-DEIS), "ratio" (ρAB-DEIS, which is :func:`samplers.lms.lms`) or
            "log-ratio" (diffusers' ``DEISMultistepScheduler``). On schedules that preserve no variance
            (EDM, VE, flows) "time" is that of the continuous variance-preserving process at the same σ/α;
            over a flow's own time, which hardly moves near pure noise, extrapolation goes astray.
        taper_below: the order falls over the last steps where fewer evaluations than this are spent.

    Raises:
        ValueError: an argument out of its range.

    Cost: one evaluation a step.

    Source: Zhang & Chen 2022, arXiv:2204.13902, equations 14 and 15.
    """
    if polynomial == "ratio":
        return lms(order, taper_below=taper_below)
    if polynomial == "time":
        build = partial(_over_time, order=checked_order(order), taper_below=taper_below)
        return Solver(f"deis-{order}", order, build, "plain", grid="karras", rule=None,
                      source=_SOURCE)
    if polynomial == "log-ratio":
        logarithmic = partial(multistep, variable="noise", order=checked_order(order), taper_below=taper_below)
        return Solver(f"deis-log-{order}", order, logarithmic, "noise", end="minimum", source=_SOURCE)
    raise ValueError(f"polynomial={polynomial!r}: choose 'time', 'ratio' or 'log-ratio'")


def _over_time(path: Path, nfe: int, *, order: int, taper_below: int) -> tuple[tuple[Row, ...], list[float]]:
    times = path.times(nfe)
    orders = step_orders(path, "plain", times, order, taper_below=taper_below)
    plain, process = path.variable("plain"), _process(path.schedule)
    rows = list(from_pure_noise(path, times))
    for i in range(len(rows), nfe):
        start, end = plain.at_time(times[i]), plain.at_time(times[i + 1])
        *past, ahead = _times_of(path.schedule, process, times[i - orders[i] + 1:i + 2])
        weights = time_weights(process, ahead, past[::-1])
        rows.append(Row(start.t, end.t, plain.to_prediction(start.t),
                        (plain.decay(start, end), 0.0, *(end.gain * w for w in weights))))
    return tuple(rows), times


def _process(schedule: NoiseSchedule) -> NoiseSchedule:
    """The process whose time the polynomials are over."""
    return schedule if isinstance(schedule, DiscreteVP | ContinuousVP) else ContinuousVP()


def _times_of(schedule: NoiseSchedule, process: NoiseSchedule, times: Sequence[float]) -> list[float]:
    """Translate times to those of the process at the same σ/α."""
    return list(times) if process is schedule else [
        float(process.time_of_ratio(schedule.ratio(t))) for t in times]


def time_weights(schedule: NoiseSchedule, end: float, nodes: Sequence[float]) -> list[float]:
    """Integrate the Lagrange polynomials on ``nodes`` in t over ρ(t), from the first node to ``end``.

    By parts this is ``[r ℓ_j] - ∫ r ℓ_j' dt`` with r = ρ(t) - ρ(start), which needs no derivative of ρ.
    In ``t = end + v²`` the root that ρ has at the clean end is analytic; the rest is Gauss–Legendre
    quadrature between the places where ρ(t) is not smooth.

    Args:
        schedule: noise schedule.
        end: end of the step, below the first node.
        nodes: times of the predictions, newest first.

    Returns:
        One weight a node; their sum is ρ(end) - ρ(nodes[0]).
    """
    start = nodes[0]
    knots = np.sqrt(_knots(schedule, end, start) - end)
    points, quadrature = _gauss_legendre()
    lengths = np.diff(knots)[:, None]
    v = knots[:-1, None] + lengths * points
    offset, mass = v**2, lengths * quadrature * 2 * v  # rising with t, so that the integral runs from end to start
    travelled = schedule.ratio(end + offset) - schedule.ratio(start)
    weights = []
    for node in nodes:
        others = [other for other in nodes if other != node]
        basis = np.poly1d(np.poly([other - end for other in others]) / math.prod(node - other for other in others))
        inner = float((travelled * mass * basis.deriv()(offset)).sum())
        weights.append(float(basis(0.0)) * (schedule.ratio(end) - schedule.ratio(start)) + inner)
    return weights


def _knots(schedule: NoiseSchedule, low: float, high: float) -> Times:
    """The ends of an interval, and the times in it where the derivative of ρ jumps."""
    inner: Sequence[float] | NDArray[np.integer] = [schedule.t_min]
    if isinstance(schedule, DiscreteVP):
        inner = np.arange(math.floor(low), math.ceil(high) + 1)
    return np.asarray([low, *(float(t) for t in inner if low < t < high), high])


@lru_cache(maxsize=1)
def _gauss_legendre() -> tuple[Times, Times]:
    points, weights = np.polynomial.legendre.leggauss(_POINTS)
    return (points + 1.0) / 2.0, weights / 2.0


DEIS = tuple(deis(k) for k in (2, 3, 4))
