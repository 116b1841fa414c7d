"""Legs of an ODE that are joined by noise: each ends where it will, and noise leads back to where the next starts.

Noise of the forward process takes the marginal at one time to the marginal at a noisier one, and the ODE takes
it back. So a sampler that alternates the two has the right marginals at every time, up to the error of its ODE
steps, however much noise it adds; with an ODE method of order two they are right to order two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from odecore.plan import Row
from scoremodels.schedule import NoiseSchedule

Leg = Sequence[Row]
"""The rows of one ODE step or more; the first is evaluated where it starts."""


def joined(schedule: NoiseSchedule, legs: Sequence[Leg], end: float, *, s_noise: float = 1.0) -> tuple[Row, ...]:
    """Put legs together: where one ends short of the noise that the next starts at, add what is missing.

    ``x_t = (α_t/α_s) x_s + s_noise α_t sqrt(ρ_t² - ρ_s²) z`` from s to the noisier t, in the row that ends at s.

    Args:
        schedule: noise schedule.
        legs: rows without noise.
        end: where the last leg is to lead to.
        s_noise: factor of the noise; only 1 keeps the marginals.
    """
    starts = [float(leg[0].t) for leg in legs[1:]]
    rows: list[Row] = []
    for leg, following in zip(legs, [*starts, end], strict=True):
        rows += [*leg[:-1], _renoised(schedule, leg[-1], following, s_noise)]
    return tuple(rows)


def _renoised(schedule: NoiseSchedule, row: Row, t: float, s_noise: float) -> Row:
    s = float(row.t_next)
    if s == t:
        return row
    assert s < t, "noise leads to noisier times"
    scale = float(schedule.alpha(t)) / float(schedule.alpha(s))
    low, high = float(schedule.ratio(s)), float(schedule.ratio(t))
    noise = s_noise * float(schedule.alpha(t)) * math.sqrt((high - low) * (high + low))
    return replace(row, t_next=t, anchor=tuple(scale * w for w in row.anchor), noise=noise)
