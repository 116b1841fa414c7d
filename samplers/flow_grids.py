"""Time grids of rectified flows: noise levels in [0, 1], and their shift towards noise.

Parameters are fixed by ``functools.partial``, as in ``partial(linear_quadratic, threshold=0.05)``. A shift wraps any
grid, as in ``shifted(sgm_uniform, 3.0)``, or ``shifted(sgm_uniform, shift_factor(shift_of_tokens(4096)))`` where it
depends on the resolution.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from samplers.grids import Grid, Times
from scoremodels.schedule import NoiseSchedule, RectifiedFlow

SHIFT_KINDS = ("exponential", "linear")
"""How a dynamic shift's factor follows from μ: ``e^μ``, or μ itself; diffusers' ``time_shift_type``."""


def linear_quadratic(schedule: NoiseSchedule, steps: int, end: float, *, threshold: float = 0.025) -> Times:
    """Walk the first part of the way in short equal steps, half of them, and the rest in steps that grow evenly.

    With N steps, L = ⌊N/2⌋ of them linear, and k = threshold, the signal grows as
    ``1 - σ_i = (k/L) i + (1 - k N/L) (max(i - L, 0)/(N - L))²``, whose slope is continuous.

    Args:
        schedule: of a flow.
        steps: N.
        end: last time; the levels are stretched to end there.
        threshold: k, the signal after the linear steps, positive and below 1/3; ``partial(linear_quadratic,
            threshold=…)`` sets it.

    Raises:
        ValueError: a threshold out of range, or a schedule that is no flow.

    Source: the schedule published with Mochi 1 (Genmo 2024) and LTX-Video (HaCohen et al. 2024, arXiv:2501.00103).
    """
    flow = _flow("linear-quadratic", schedule)
    if not 0.0 < threshold < 1 / 3:
        raise ValueError(f"threshold={threshold!r}: give the signal after the linear steps, between 0 and 1/3")
    linear = steps // 2
    slope = threshold / linear if linear else 0.0
    index = np.arange(steps + 1, dtype=np.float64)
    bend = np.maximum(index - linear, 0.0) / (steps - linear)
    return _to_end(flow, 1.0 - (slope * index + (1.0 - slope * steps) * bend**2), end)


def shifted(grid: Grid, factor: float) -> Grid:
    """Shift a flow's grid towards noise: ``σ → s σ / (1 + (s - 1) σ)``, s = ``factor``.

    Args:
        grid: any grid.
        factor: s; 3 is the static shift of SD3, and more than 1 spends more steps on noise. For a shift that depends
            on the resolution see :func:`shift_factor`.

    Raises:
        ValueError: a factor that is not positive and finite; on use, a schedule that is no flow.

    Source: Esser et al. 2024, arXiv:2403.03206, equation 23.
    """
    if not 0.0 < factor < math.inf:
        raise ValueError(f"factor={factor!r}: give a positive shift; 1 changes nothing")
    return partial(_shifted, grid=grid, factor=float(factor))


def shift_factor(mu: float, kind: str = "exponential") -> float:
    """The factor of a dynamic shift by μ: ``e^μ`` (Flux), or μ itself ("linear").

    Raises:
        ValueError: an unknown kind.
    """
    if kind not in SHIFT_KINDS:
        raise ValueError(f"kind={kind!r} of a shift: choose one of {', '.join(SHIFT_KINDS)}")
    return math.exp(mu) if kind == "exponential" else float(mu)


def shift_of_tokens(
    tokens: int, *, low: tuple[int, float] = (256, 0.5), high: tuple[int, float] = (4096, 1.15)
) -> float:
    """The shift μ that suits a number of latent tokens: the straight line through two (tokens, μ).

    Source: Black Forest Labs 2024, Flux; their constants are the defaults.
    """
    return low[1] + (high[1] - low[1]) * (tokens - low[0]) / (high[0] - low[0])


def shifted_levels(sigmas: Times, factor: float) -> Times:
    """``s σ / (1 + (s - 1) σ)``."""
    return RectifiedFlow(shift=factor).shifted(sigmas)


def _shifted(schedule: NoiseSchedule, steps: int, end: float, *, grid: Grid, factor: float) -> Times:
    flow = _flow("shifted", schedule)
    return _to_end(flow, shifted_levels(np.asarray(flow.sigma(grid(flow, steps, end))), factor), end)


def _flow(name: str, schedule: NoiseSchedule) -> RectifiedFlow:
    if not isinstance(schedule, RectifiedFlow):
        raise ValueError(f"grid={name!r} is made of the noise levels of a flow, and the schedule is "
                         f"{type(schedule).__name__}: choose 'log-snr' or 'karras', or leave the shift out")
    return schedule


def _to_end(flow: RectifiedFlow, sigmas: Times, end: float) -> Times:
    """Stretch levels from 1 on so that the last is that of ``end``."""
    last = float(flow.sigma(end))
    times = flow.scale * (1.0 - (1.0 - sigmas) * (1.0 - last) / (1.0 - sigmas[-1]))
    return np.concatenate([[flow.t_max], times[1:-1], [end]])
