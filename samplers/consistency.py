"""Samplers for distilled models, whose network leads from any noisy state straight to the data: denoise, add noise.

They solve no ODE: on a model that was not distilled they do not converge. So they stand apart from the solvers.
What counts as the data that a network predicts is a choice of the model's training, its *boundary*.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from odecore.plan import Row
from samplers.ddim import Noise, first_order
from samplers.grids import Times
from samplers.solver import Path, Solver
from scoremodels.schedule import DiscreteVP, NoiseSchedule

Boundary = Callable[[NoiseSchedule, str, float], tuple[float, float]]
"""``(schedule, prediction, t) -> (a, b)`` with ``f = a x + b raw`` the datum that the network leads to."""

_SONG = "Song et al. 2023, arXiv:2303.01469"
_LCM = "Luo et al. 2023, arXiv:2310.04378"


def consistency() -> Solver:
    """Build multistep consistency sampling of a network that predicts the datum itself: ``x_s = α_s x0 + σ_s z``.

    So it is for distilled flows (diffusers' ``FlowMatchLCMScheduler``), and for models of any kind whose boundary is
    part of the network.

    Cost: one evaluation a step.

    Source: Song et al. 2023, arXiv:2303.01469, algorithm 1.
    """
    return Solver("consistency", 1, partial(_multistep, boundary=_no_boundary), "data", grid="time", stochastic=True,
                  source=_SONG)


def edm_consistency() -> Solver:
    """Build multistep consistency sampling of a network in EDM's parametrisation.

    ``x_s = α_s f + α_s sqrt(ρ_s² - ρ_min²) z`` with ρ = σ/α. The boundary ``f = c_skip x/α + c_out F`` with
    ``c_skip = σ_d²/((ρ - ρ_min)² + σ_d²)`` and ``c_out = σ_d (ρ - ρ_min)/sqrt(ρ² + σ_d²)`` leaves a state at ρ_min as
    it is. F is the "edm" prediction, to which others are converted; σ_d is the schedule's, or else 1.

    Cost: one evaluation a step.

    Source: Song et al. 2023, arXiv:2303.01469, algorithm 1 and appendix C; diffusers'
        ``CMStochasticIterativeScheduler``.
    """
    build = partial(_multistep, boundary=_edm_boundary, from_minimum=True)
    return Solver("edm-consistency", 1, build, "data", end="minimum", stochastic=True, source=_SONG)


def lcm(timestep_scaling: float = 10.0, sigma_data: float = 0.5) -> Solver:
    """Build the sampler of latent consistency models.

    ``x_s = α_s f + σ_s z`` with ``f = c_skip x + c_out x0``, ``c_skip = σ_d²/((k t)² + σ_d²)`` and
    ``c_out = k t/sqrt((k t)² + σ_d²)``. It was distilled on few timesteps: the usual grid picks them.

    Args:
        timestep_scaling: k, above 0.
        sigma_data: σ_d, above 0.

    Raises:
        ValueError: an argument out of its range.

    Cost: one evaluation a step.

    Source: Luo et al. 2023, arXiv:2310.04378; diffusers' ``LCMScheduler``.
    """
    if not (0.0 < timestep_scaling < math.inf and 0.0 < sigma_data < math.inf):
        raise ValueError(f"timestep_scaling={timestep_scaling}, sigma_data={sigma_data}: give positive finite numbers")
    boundary = partial(_scaled_boundary, timestep_scaling=timestep_scaling, sigma_data=sigma_data)
    return Solver("lcm", 1, partial(_multistep, boundary=boundary), "data", grid="skipping", stochastic=True,
                  source=_LCM)


def tcd(eta: float = 0.3) -> Solver:
    """Build the sampler of trajectory consistency models: DDIM to a time below the next one, and noise up to it.

    ``x_s = (α_s/α_r)(α_r x0 + σ_r ε) + sqrt(σ_s² - (α_s σ_r/α_r)²) z`` with ``r = (1 - γ) s``, a whole timestep where
    they are discrete; the last step adds no noise.

    Args:
        eta: γ, as diffusers calls it, from 0 (DDIM) to 1 (consistency sampling).

    Raises:
        ValueError: eta out of its range.

    Cost: one evaluation a step.

    Source: Zheng et al. 2024, arXiv:2402.19159, algorithm 4; diffusers' ``TCDScheduler``.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta={eta!r}: choose a number from 0 to 1")
    return Solver("tcd", 1, partial(_tcd, eta=eta), "data", grid="skipping", end="minimum", stochastic=eta > 0.0,
                  source="Zheng et al. 2024, arXiv:2402.19159")


def skipping(
    schedule: NoiseSchedule, steps: int, end: float, *, original: int = 50, strength: float = 1.0
) -> Times:
    """Pick times evenly out of the even ones that a consistency model was distilled on, then ``end``.

    Args:
        schedule: noise schedule; its times are whole where they are discrete.
        steps: number of times before ``end``, at most ``original``.
        end: last time.
        original: number of times of the distillation (diffusers' ``original_inference_steps``).
        strength: share of these, from the least noisy on, that may be picked.

    Raises:
        ValueError: more steps than there are times.
    """
    total = int(schedule.t_max) + 1 if isinstance(schedule, DiscreteVP) else None
    known = int(original * strength)
    if not 1 <= steps <= known or (total is not None and original > total):
        raise ValueError(f"grid='skipping' picks nfe={steps} of {known} times, with original={original} and strength="
                         f"{strength} out of {total or 'all'}: ask for fewer evaluations, or take another grid")
    counts = np.arange(known, 0, -1)[np.floor(np.linspace(0, known, steps, endpoint=False)).astype(int)]
    times = counts * (total // original) - 1.0 if total is not None else counts * (schedule.t_max / original)
    return np.append(times, end)


def _multistep(
    path: Path, nfe: int, *, boundary: Boundary, from_minimum: bool = False
) -> tuple[tuple[Row, ...], list[float]]:
    times, schedule = path.times(nfe), path.schedule
    least = _least_ratio(schedule) if from_minimum else 0.0
    rows = []
    for t, s in zip(times[:-1], times[1:], strict=True):
        alpha, ratio = float(schedule.alpha(s)), float(schedule.ratio(s))
        noise = alpha * math.sqrt(max(0.0, (ratio - least) * (ratio + least))) if least else float(schedule.sigma(s))
        rows.append(Row(t, s, boundary(schedule, path.prediction, t), (0.0, 0.0, alpha), noise=noise))
    return tuple(rows), times


def _no_boundary(schedule: NoiseSchedule, prediction: str, t: float) -> tuple[float, float]:
    return schedule.conversion(prediction, "sample", t)


def _scaled_boundary(
    schedule: NoiseSchedule, prediction: str, t: float, *, timestep_scaling: float, sigma_data: float
) -> tuple[float, float]:
    a, b = schedule.conversion(prediction, "sample", t)
    length = math.hypot(timestep_scaling * t, sigma_data)
    skip, out = (sigma_data / length) ** 2, timestep_scaling * t / length
    return skip + out * a, out * b


def _edm_boundary(schedule: NoiseSchedule, prediction: str, t: float) -> tuple[float, float]:
    a, b = schedule.conversion(prediction, "edm", t)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    deviation, excess = float(getattr(schedule, "sigma_data", 1.0)), sigma - alpha * _least_ratio(schedule)
    # Both multiplied through by α, which may be 0: c_skip weighs x/α.
    skip = alpha * deviation**2 / (excess**2 + (alpha * deviation) ** 2)
    out = deviation * excess / math.hypot(sigma, alpha * deviation)
    return skip + out * a, out * b


def _least_ratio(schedule: NoiseSchedule) -> float:
    return float(schedule.ratio(schedule.t_min))


def _tcd(path: Path, nfe: int, *, eta: float) -> tuple[tuple[Row, ...], list[float]]:
    last = path.times(nfe)[-1]

    def share(schedule: NoiseSchedule, t: float, s: float) -> Noise:
        if s == last:
            return Noise(1.0, 0.0)
        below = (1.0 - eta) * s
        below = float(math.floor(below)) if isinstance(schedule, DiscreteVP) else below
        old = float(schedule.ratio(below)) / float(schedule.ratio(s))
        return Noise(old, math.sqrt(max(0.0, (1.0 - old) * (1.0 + old))))

    return first_order(path, nfe, share=share)


DISTILLED = (consistency(), edm_consistency(), lcm(), tcd())
