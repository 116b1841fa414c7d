"""Time grids: where the network is evaluated.

A grid function maps ``(schedule, steps, end)`` to ``steps + 1`` decreasing float64 network times
from the noisiest time to ``end``. Where ``end`` lies below ``schedule.t_min`` (the clean end, at
which σ = 0), the first ``steps`` of them run down to ``t_min`` and the last step goes from there.
Parameters are fixed by ``functools.partial``, as in ``partial(karras, rho=5.0)``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from scoremodels.schedule import DiscreteVP, NoiseSchedule, RectifiedFlow

Times = NDArray[np.float64]
Grid = Callable[[NoiseSchedule, int, float], Times]

_LEAST_LOG_SNR = -7.0
"""Where a grid in log-SNR starts if the schedule's first time is pure noise (log-SNR -inf)."""


def _ramp(
    schedule: NoiseSchedule, steps: int, end: float,
    forward: Callable[[Times], Times], inverse: Callable[[Times], Times],
) -> Times:
    """Space times evenly in ``forward(t)``, from ``t_max`` to ``end`` or to ``t_min`` and then ``end``."""
    clean = end < schedule.t_min
    last = schedule.t_min if clean else end
    points = steps if clean else steps + 1
    ends = forward(np.array([schedule.t_max, last]))
    if not np.isfinite(ends[0]):
        ends[0] = forward(np.array([schedule.time_of_log_snr(_LEAST_LOG_SNR)]))[0]
    times = np.asarray(inverse(np.linspace(ends[0], ends[1], points)), dtype=np.float64)
    times[-1] = last
    times[0] = schedule.t_max
    return np.append(times, end) if clean else times


def log_snr(schedule: NoiseSchedule, steps: int, end: float) -> Times:
    """Space log(α/σ) evenly (DPM-Solver, arXiv:2206.00927, section 3.2)."""
    return _ramp(schedule, steps, end, schedule.log_snr, schedule.time_of_log_snr)


def time(schedule: NoiseSchedule, steps: int, end: float) -> Times:
    """Space the network's time evenly."""
    return _ramp(schedule, steps, end, np.asarray, np.asarray)


def sgm_uniform(schedule: NoiseSchedule, steps: int, end: float) -> Times:
    """Space the network's time evenly, and let the last step go on to a clean end without a stop at ``t_min``.

    On a flow it is its training time, before the schedule's own shift, that is spaced evenly.

    Source: Stability AI 2023, generative-models; ComfyUI's "sgm_uniform".
    """
    shift = schedule.shift if isinstance(schedule, RectifiedFlow) else 1.0
    first, last = float(schedule.t_max), max(float(schedule.t_min), end)
    # Times as fractions of the first are shifted by s, and by 1/s back again.
    fractions = np.linspace(1.0, RectifiedFlow(shift=1.0 / shift).shifted(last / first), steps + 1)
    times = first * RectifiedFlow(shift=shift).shifted(fractions)
    return np.concatenate([[first], times[1:-1], [end]])


def quadratic(schedule: NoiseSchedule, steps: int, end: float) -> Times:
    """Space the square root of the time evenly (DDIM, arXiv:2010.02502, appendix D.2)."""
    return _ramp(schedule, steps, end, lambda t: np.sqrt(np.maximum(t, 0.0)), np.square)


def karras(schedule: NoiseSchedule, steps: int, end: float, *, rho: float = 7.0) -> Times:
    """Space ``(σ/α)^(1/ρ)`` evenly, ρ = 7 (EDM, arXiv:2206.00364, equation 5).

    ``partial(karras, rho=5.0)`` sets ρ; a smaller one makes the last steps longer.

    Raises:
        ValueError: ρ is not positive.
    """
    if not rho > 0.0:
        raise ValueError(f"rho={rho!r}: give a positive exponent")
    return _ramp(schedule, steps, end, lambda t: schedule.ratio(t) ** (1 / rho),
                 lambda u: schedule.time_of_ratio(np.maximum(u, 0.0) ** rho))


def exponential(schedule: NoiseSchedule, steps: int, end: float) -> Times:
    """Space log(σ/α) evenly; the same points as :func:`log_snr`, under the name that k-diffusion uses."""
    return log_snr(schedule, steps, end)


def leading(schedule: NoiseSchedule, steps: int, end: float, *, offset: int = 0, dropped: int = 1) -> Times:
    """Multiples of a whole stride, from the largest down: diffusers' "leading" spacing, then ``end``.

    Args:
        schedule: a discrete schedule.
        steps: number of times before ``end``.
        end: last time.
        offset: added to every timestep (diffusers' ``steps_offset``).
        dropped: how many of the least noisy multiples are left out: 1 as in diffusers' DPM-Solver
            schedulers, 0 as in its DDIM and Euler schedulers.
    """
    total = _training_steps(schedule, "leading")
    # A whole stride of zero would repeat one time; with a fractional one all times stay distinct.
    stride = total // (steps + dropped) or total / (steps + dropped)
    return np.append(np.arange(steps + dropped)[::-1][:steps] * float(stride) + offset, end)


def linspace(schedule: NoiseSchedule, steps: int, end: float, *, dropped: int = 1, rounded: bool = True) -> Times:
    """Times spaced evenly from the last training step to 0: diffusers' "linspace" spacing, then ``end``.

    Args:
        schedule: a discrete schedule.
        steps: number of times before ``end``.
        end: last time.
        dropped: how many of the least noisy times are left out, as in :func:`leading`.
        rounded: whether times are rounded to whole training steps.
    """
    times = np.linspace(0.0, _training_steps(schedule, "linspace") - 1, steps + dropped, dtype=np.float64)[::-1][:steps]
    return np.append(_rounded(times) if rounded else times, end)


def trailing(schedule: NoiseSchedule, steps: int, end: float) -> Times:
    """Times counted down from the last training step in even strides: diffusers' "trailing" spacing, then ``end``."""
    total = _training_steps(schedule, "trailing")
    times = total - np.arange(steps, dtype=np.float64) * (total / steps)
    return np.append(_rounded(times) - 1.0, end)


def _rounded(times: Times) -> Times:
    """Round to whole training steps, unless that makes two times one."""
    whole = times.round()
    return times if len(np.unique(whole)) < len(whole) else whole


def _training_steps(schedule: NoiseSchedule, name: str) -> int:
    if not isinstance(schedule, DiscreteVP):
        raise ValueError(f"grid={name!r} counts the training steps of a discrete schedule, and this one is continuous: "
                         "choose 'time', 'log-snr' or 'karras'")
    return int(schedule.t_max) + 1
