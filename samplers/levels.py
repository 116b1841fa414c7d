"""Time grids made of noise levels: published tables, quantiles, and spacings in functions of σ/α.

As in :mod:`samplers.grids` a grid maps ``(schedule, steps, end)`` to ``steps + 1`` decreasing times. Parameters
are fixed by ``functools.partial``, as in ``partial(beta, a=0.5, b=0.7)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from samplers.grids import Times
from scoremodels.schedule import NoiseSchedule

HIGHEST_RATIO = 2.0**12
"""Where levels start if the schedule's first time is pure noise, whose σ/α is infinite; diffusers' number too."""

ALIGN_YOUR_STEPS: dict[str, tuple[float, ...]] = {
    "sd-1.5": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Noise levels σ/α of the ten steps that suit a model best."""


def polyexponential(schedule: NoiseSchedule, steps: int, end: float, *, rho: float = 1.0) -> Times:
    """Let log(σ/α) lie ``u^ρ`` of its way from the end, u from 1 to 0; ρ = 1 is the exponential grid.

    ``partial(polyexponential, rho=2.0)`` sets ρ; more than 1 makes the first steps long.

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

    ``partial(beta, a=0.5, b=0.7)`` sets a and b.

    Raises:
        ValueError: a or b is not positive.

    Source: Lee et al. 2024, arXiv:2407.12173, section 3.3.
    """
    last = max(float(schedule.t_min), end)
    times = last + beta_quantiles(_points(schedule, steps, end), a, b) * (float(schedule.t_max) - last)
    return _closed(schedule, times, end)


def beta_quantiles(count: int, a: float = 0.6, b: float = 0.6) -> Times:
    """Quantiles of Beta(a, b) at ``count`` even probabilities, from 1 down to 0."""
    from scipy.stats import beta as distribution  # here, so that nothing else needs scipy's slow import

    if not (a > 0.0 and b > 0.0):
        raise ValueError(f"a={a!r}, b={b!r}: give positive parameters")
    quantiles: Times = distribution.ppf(np.linspace(1.0, 0.0, count), a, b)
    return quantiles


def arctan(schedule: NoiseSchedule, steps: int, end: float, *, std: float = 1.0) -> Times:
    """Space ``arctan(σ/(α c))`` evenly, c = ``std``: even times of the cosine schedule, whose σ/α is a tangent.

    It is optimal, in the bound of Align Your Steps, for normally distributed data of standard deviation c.
    ``partial(arctan, std=0.5)`` sets c, which is also the shift of a cosine schedule to another resolution.

    Raises:
        ValueError: c is not positive.

    Source: Sabour et al. 2024 (Align Your Steps), arXiv:2404.14507, theorem 3.1; Nichol & Dhariwal 2021,
        arXiv:2102.09672, and with a shift Hoogeboom et al. 2023, arXiv:2301.11093. ComfyUI's "kl_optimal".
    """
    if not std > 0.0:
        raise ValueError(f"std={std!r}: give a positive standard deviation of the data")
    return _of_levels(schedule, steps, end, lambda high, low, count: std * np.tan(
        np.linspace(math.atan(high / std), math.atan(low / std), count)))


def align_your_steps(schedule: NoiseSchedule, steps: int, end: float, *, model: str = "sd-1.5") -> Times:
    """Take the published noise levels of a model, log σ interpolated linearly for other numbers of steps.

    The first and the last level give way to the schedule's first time and to the end, as where they are published.

    Args:
        schedule: the model's schedule.
        steps: number of steps.
        end: last time.
        model: a key of ``ALIGN_YOUR_STEPS``; ``partial(align_your_steps, model="sdxl")`` sets it.

    Raises:
        ValueError: an unknown model, or a schedule that reaches a part of the levels only.

    Source: Sabour et al. 2024, arXiv:2404.14507, and the tables published with it.
    """
    if model not in ALIGN_YOUR_STEPS:
        raise ValueError(f"model={model!r}: choose one of {', '.join(ALIGN_YOUR_STEPS)}")
    table = np.log(ALIGN_YOUR_STEPS[model])
    last = max(float(schedule.t_min), end)
    low, high = float(schedule.ratio(last)), min(float(schedule.ratio(schedule.t_max)), HIGHEST_RATIO)
    if not low < math.exp(table[-2]) or not math.exp(table[1]) < high:
        raise ValueError(f"grid='align-your-steps' of {model!r} has levels from {math.exp(table[1]):.4g} to "
                         f"{math.exp(table[-2]):.4g}, and the way leads from {high:.4g} to {low:.4g}: choose another "
                         "grid")
    table[0], table[-1] = math.log(high), math.log(low)
    levels = np.exp(np.interp(np.linspace(0, len(table) - 1, steps + 1), np.arange(len(table)), table))
    times = schedule.time_of_ratio(levels)
    return np.concatenate([[float(schedule.t_max)], times[1:-1], [end]])


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
    high, low = min(float(schedule.ratio(schedule.t_max)), HIGHEST_RATIO), float(schedule.ratio(last))
    levels = spread(high, low, _points(schedule, steps, end))
    return _closed(schedule, schedule.time_of_ratio(levels), end)
