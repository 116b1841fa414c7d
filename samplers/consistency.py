"""Multistep sampling with models that were distilled to map any noisy state to its datum: LCM and TCD."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from odecore.plan import Row
from samplers.grids import Times
from samplers.solver import Path, Solver
from scoremodels.schedule import DiscreteVP, NoiseSchedule

_LCM = "Luo et al. 2023, arXiv:2310.04378"
_TCD = "Zheng et al. 2024, arXiv:2402.19159"


def lcm(timestep_scaling: float | None = 10.0, sigma_data: float = 0.5) -> Solver:
    """Build the sampler of latent consistency models: denoise, add fresh noise, denoise.

    ``x_s = α_s (c_skip x_t + c_out x0) + σ_s z`` with ``c_skip = σ_d²/((k t)² + σ_d²)`` and
    ``c_out = k t / sqrt((k t)² + σ_d²)``; the last step adds no noise if it ends at σ = 0.

    Args:
        timestep_scaling: k; None for c_skip = 0 and c_out = 1, as of models without boundary scalings.
        sigma_data: σ_d.

    Raises:
        ValueError: a number that is not positive.

    Cost: one evaluation a step.

    Source: Song et al. 2023, arXiv:2303.01469, algorithm 1; Luo et al. 2023, arXiv:2310.04378.
    """
    if (timestep_scaling is not None and not timestep_scaling > 0.0) or not sigma_data > 0.0:
        raise ValueError(f"timestep_scaling={timestep_scaling}, sigma_data={sigma_data}: give positive numbers")
    build = partial(_lcm_rows, scaling=timestep_scaling, sigma_data=sigma_data)
    return Solver("consistency" if timestep_scaling is None else "lcm", 1, build, "plain", grid="time",
                  rule=None, stochastic=True, source=_LCM)


def tcd(eta: float = 0.3) -> Solver:
    """Build the sampler of trajectory consistency models: go below the next time, and add noise up to it.

    With ``r = (1 - η) s``: ``x_s = (α_s/α_r) (α_r x0 + σ_r ε) + sqrt(σ_s² - (α_s σ_r/α_r)²) z``.

    Args:
        eta: share of the next time by which the step goes below it (the paper's γ), between 0 (deterministic) and 1.

    Raises:
        ValueError: eta out of range.

    Cost: one evaluation a step.

    Source: Zheng et al. 2024, arXiv:2402.19159, algorithm 4.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta={eta!r}: give a number between 0 and 1")
    return Solver("tcd", 1, partial(_tcd_rows, eta=eta), "data", grid="time", rule=None,
                  stochastic=eta > 0.0, source=_TCD)


def skipping(schedule: NoiseSchedule, steps: int, end: float, *, original: int = 50) -> Times:
    """Take times evenly out of the ``original`` ones that a consistency model was distilled on, then ``end``.

    Args:
        schedule: a discrete schedule.
        steps: number of times before ``end``, at most ``original``.
        end: last time.
        original: number of times of the distillation (diffusers' ``original_inference_steps``).

    Raises:
        ValueError: a continuous schedule, or more steps than times.
    """
    if not isinstance(schedule, DiscreteVP):
        raise ValueError("grid='skipping' counts the training steps of a discrete schedule: choose 'time'")
    total = int(schedule.t_max) + 1
    if not 1 <= steps <= original <= total:
        raise ValueError(f"nfe={steps}: a model distilled on {original} of {total} times can be evaluated at "
                         f"1 to {original}")
    known = (np.arange(1, original + 1) * (total // original) - 1)[::-1]
    chosen = np.floor(np.linspace(0, original, steps, endpoint=False)).astype(int)
    return np.append(known[chosen].astype(np.float64), end)


def _lcm_rows(
    path: Path, nfe: int, *, scaling: float | None, sigma_data: float
) -> tuple[tuple[Row, ...], list[float]]:
    times = path.times(nfe)
    schedule, to_prediction = path.schedule, path.variable("data").to_prediction
    rows = []
    for t, s in zip(times[:-1], times[1:], strict=True):
        skip, out = 0.0, 1.0
        if scaling is not None:
            skip = sigma_data**2 / ((scaling * t) ** 2 + sigma_data**2)
            out = scaling * t / math.hypot(scaling * t, sigma_data)
        alpha = float(schedule.alpha(s))
        rows.append(Row(t, s, to_prediction(t), (alpha * skip, 0.0, alpha * out), noise=float(schedule.sigma(s))))
    return tuple(rows), times


def _tcd_rows(path: Path, nfe: int, *, eta: float) -> tuple[tuple[Row, ...], list[float]]:
    times = path.times(nfe)
    schedule, to_prediction = path.schedule, path.variable("data").to_prediction
    rows = []
    for t, s in zip(times[:-1], times[1:], strict=True):
        below = s if s <= schedule.t_clean else max((1.0 - eta) * s, float(schedule.t_clean))
        if isinstance(schedule, DiscreteVP) and below >= schedule.t_min:
            below = math.floor(below)  # these models know whole training steps
        below = below if below >= schedule.t_min or s < schedule.t_min else float(schedule.t_min)
        alpha_t, sigma_t = float(schedule.alpha(t)), float(schedule.sigma(t))
        alpha_s, sigma_s = float(schedule.alpha(s)), float(schedule.sigma(s))
        ratio = float(schedule.ratio(below))
        decay = alpha_s * ratio / sigma_t
        noise = math.sqrt(max(0.0, sigma_s**2 - (alpha_s * ratio) ** 2))
        rows.append(Row(t, s, to_prediction(t), (decay, 0.0, alpha_s - decay * alpha_t), noise=noise))
    return tuple(rows), times


CONSISTENCY = (lcm(), lcm(None), tcd())
