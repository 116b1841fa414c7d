"""Time grids made of noise levels: published tables, quantiles, and shifts towards noise.

As in :mod:`samplers.grids` a grid maps ``(schedule, steps, end)`` to ``steps + 1`` decreasing times. Parameters
are fixed with ``functools.partial``, as in ``partial(beta, a=0.5, b=0.7)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from samplers.grids import Grid, Times
from scoremodels.schedule import NoiseSchedule, RectifiedFlow

_HIGHEST = 2.0**12
"""Where levels start if the schedule's first time is pure noise, whose σ/α is infinite."""

ALIGN_YOUR_STEPS: dict[str, tuple[float, ...]] = {
    "sd-1.5": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Noise levels σ/α of the ten steps that suit a model best."""


def polyexponential(schedule: NoiseSchedule, steps: int, end: float, *, rho: float = 1.0) -> Times:
    """Let log(σ/α) fall as ``1 - u^ρ`` of its way, u from 1 to 0; ρ = 1 is the exponential grid.

    Raises:
        ValueError: ρ is not positive.

    Source: k-diffusion (Crowson 2022), ``get_sigmas_polyexponential``.
    """
    if not rho > 0.0:
        raise ValueError(f"rho={rho!r}: give a positive exponent")

    def spread(high: float, low: float, count: int) -> Times:
        ramp = np.linspace(1.0, 0.0, count) ** rho
        return np.exp(ramp * (math.log(high) - math.log(low)) + math.log(low))

    return _of_levels(schedule, steps, end, spread)


def beta(schedule: NoiseSchedule, steps: int, end: float, *, a: float = 0.6, b: float = 0.6) -> Times:
    """Take quantiles of a Beta(a, b) distribution over the network's time: dense at both ends for a, b < 1.

    Raises:
        ValueError: a or b is not positive.

    Source: Lee et al. 2024, arXiv:2407.12173, section 3.3.
    """
    times = float(schedule.t_min) + beta_quantiles(_points(schedule, steps, end), a, b) * (
        float(schedule.t_max) - float(schedule.t_min))
    return _closed(schedule, times, end)


def beta_quantiles(count: int, a: float = 0.6, b: float = 0.6) -> Times:
    """Quantiles of Beta(a, b) at ``count`` even probabilities, from 1 down to 0."""
    from scipy.stats import beta as distribution  # here, so that nothing else needs scipy's slow import

    if not (a > 0.0 and b > 0.0):
        raise ValueError(f"a={a!r}, b={b!r}: give positive parameters")
    quantiles: Times = distribution.ppf(np.linspace(1.0, 0.0, count), a, b)
    return quantiles


def arctan(schedule: NoiseSchedule, steps: int, end: float) -> Times:
    """Space the arc tangent of σ/α evenly: what is optimal for normally distributed data of unit variance.

    Source: Sabour et al. 2024 (Align Your Steps), arXiv:2404.14507, theorem 3.1.
    """
    return _of_levels(schedule, steps, end, lambda high, low, count: np.tan(
        np.linspace(math.atan(high), math.atan(low), count)))


def align_your_steps(schedule: NoiseSchedule, steps: int, end: float, *, model: str = "sd-1.5") -> Times:
    """Take the published noise levels of a model, log σ interpolated linearly for other numbers of steps.

    Args:
        schedule: the model's schedule; levels beyond its ends are cut off there.
        steps: number of steps.
        end: last time.
        model: a key of ``ALIGN_YOUR_STEPS``.

    Raises:
        ValueError: an unknown model, or a schedule that reaches a part of the levels only.

    Source: Sabour et al. 2024, arXiv:2404.14507, and the tables published with it.
    """
    if model not in ALIGN_YOUR_STEPS:
        raise ValueError(f"model={model!r}: choose one of {', '.join(ALIGN_YOUR_STEPS)}")
    table = np.log(ALIGN_YOUR_STEPS[model])
    low, high = float(schedule.ratio(schedule.t_min)), min(float(schedule.ratio(schedule.t_max)), _HIGHEST)
    if not low < math.exp(table[1]) < high or not math.exp(table[-2]) > low:
        raise ValueError(f"grid='align-your-steps' of {model!r} has levels from {math.exp(table[0]):.4g} to "
                         f"{math.exp(table[-1]):.4g}, and the schedule from {high:.4g} to {low:.4g}: choose another "
                         "grid")
    levels = np.exp(np.interp(np.linspace(0, len(table) - 1, _points(schedule, steps, end)),
                              np.arange(len(table)), table))
    return _closed(schedule, schedule.time_of_ratio(np.clip(levels, low, high)), end)


def shifted(grid: Grid, factor: float) -> Grid:
    """Shift a flow's grid towards noise: ``σ → s σ / (1 + (s - 1) σ)``, s = ``factor``.

    The static shift of SD3 is s = 3; the dynamic one of Flux is ``s = e^μ``, μ growing with the number of tokens.

    Args:
        grid: any grid.
        factor: s; more than 1 spends more steps on noise.

    Raises:
        ValueError: a factor that is not positive and finite; on use, a schedule that is no flow.

    Source: Esser et al. 2024, arXiv:2403.03206, equation 23.
    """
    if not 0.0 < factor < math.inf:
        raise ValueError(f"factor={factor!r}: give a positive shift; 1 changes nothing")
    return partial(_shifted, grid=grid, factor=float(factor))


def shifted_levels(sigmas: Times, factor: float) -> Times:
    """``s σ / (1 + (s - 1) σ)``."""
    return factor * sigmas / (1.0 + (factor - 1.0) * sigmas)


def _shifted(schedule: NoiseSchedule, steps: int, end: float, *, grid: Grid, factor: float) -> Times:
    if not isinstance(schedule, RectifiedFlow):
        raise ValueError(f"a shift by {factor} is defined for the noise levels of a flow, and the schedule is "
                         f"{type(schedule).__name__}: pass the grid without it")
    sigmas = shifted_levels(np.asarray(schedule.sigma(grid(schedule, steps, end))), factor)
    last = float(schedule.sigma(end))
    # The end stays where it was asked for; the levels are stretched to reach it.
    times = schedule.time_of_ratio((stretched := 1.0 - (1.0 - sigmas[1:-1]) * (1.0 - last) / (1.0 - sigmas[-1])) / (
        1.0 - stretched))
    return np.concatenate([[float(schedule.t_max)], times, [end]])


def _points(schedule: NoiseSchedule, steps: int, end: float) -> int:
    """How many levels carry noise: where the end is clean, it comes on top of them."""
    return steps if end < schedule.t_min else steps + 1


def _closed(schedule: NoiseSchedule, times: Times, end: float) -> Times:
    """Begin at the noisiest time, and end at ``end``."""
    times = np.array(times, dtype=np.float64)
    times[0] = schedule.t_max
    if end < schedule.t_min:
        return np.append(times, end)
    times[-1] = end
    return times


def _of_levels(schedule: NoiseSchedule, steps: int, end: float, spread: Callable[[float, float, int], Times]) -> Times:
    last = float(schedule.t_min) if end < schedule.t_min else end
    high, low = min(float(schedule.ratio(schedule.t_max)), _HIGHEST), float(schedule.ratio(last))
    levels = spread(high, low, _points(schedule, steps, end))
    return _closed(schedule, schedule.time_of_ratio(levels), end)
