"""DDIM with any amount of fresh noise, and DDPM's ancestral sampling with either of its variances.

All are first-order steps over x0. What noise a step leaves is of two kinds: of the old noise, which the
network has just estimated, and fresh. Euler's method with ancestral noise (k-diffusion's and diffusers'
"Euler ancestral") is DDIM with the same η, written in x/α.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from odecore.plan import Row
from samplers.solver import Path, Solver
from scoremodels.schedule import NoiseSchedule


class Noise(NamedTuple):
    """What noise a step leaves, in units of σ at its end.

    Attributes:
        old: of that which is there.
        fresh: standard deviation of what is drawn. ``old² + fresh² = 1`` keeps the marginals.
    """

    old: float
    fresh: float


Share = Callable[[NoiseSchedule, float, float], Noise]
"""``(schedule, t, s)``: what a step from t to s leaves."""


def ddim(eta: float = 0.0) -> Solver:
    """Build DDIM with ``n = min(1, η sqrt(1 - ρ_s²/ρ_t²)) σ_s`` of fresh noise, ρ = σ/α.

    ``x_s = α_s x0 + sqrt(σ_s² - n²) ε + n z``. In general α and σ the posterior q(x_s | x_t, x0) of the
    forward process has η = 1; η = 0 is the ODE.

    Args:
        eta: η, at least 0.

    Raises:
        ValueError: η is negative or not finite.

    Cost: one evaluation a step.

    Source: Song et al. 2021, arXiv:2010.02502, equations 12 and 16; in x/α ``sample_euler_ancestral`` of k-diffusion.
    """
    return Solver(f"ddim(eta={eta:g})" if eta else "ddim", 1, partial(_ddim, eta=checked_eta(eta)), "data", grid="time",
                  stochastic=eta > 0.0, source="Song et al. 2021, arXiv:2010.02502")


def ddpm(variance: str = "small") -> Solver:
    """Build DDPM's ancestral sampling: the mean of the posterior, and noise of one of two variances.

    "small" is the posterior's, ``σ_s² (1 - ρ_s²/ρ_t²)`` (diffusers' "fixed_small" and "fixed_small_log"), right where
    all data are one point; "large" is ``β = 1 - (α_t/α_s)²`` ("fixed_large"), in general ``σ_t² - (σ_s α_t/α_s)²``,
    right where the data are standard normal. No noise is added at σ = 0.

    Args:
        variance: "small" or "large".

    Raises:
        ValueError: another word.

    Cost: one evaluation a step.

    Source: Ho et al. 2020, arXiv:2006.11239, section 3.2.
    """
    if variance not in _VARIANCES:
        raise ValueError(f"variance={variance!r}: choose one of {', '.join(_VARIANCES)}")
    build = partial(first_order, share=_VARIANCES[variance])
    return Solver("ddpm" if variance == "small" else f"ddpm-{variance}", 1, build, "data", grid="time", stochastic=True,
                  source="Ho et al. 2020, arXiv:2006.11239")


def first_order(path: Path, nfe: int, *, share: Share) -> tuple[tuple[Row, ...], list[float]]:
    """Build rows ``x_s = α_s x0 + σ_s (old ε + fresh z)``."""
    times = path.times(nfe)
    schedule, to_prediction = path.schedule, path.variable("data").to_prediction
    rows = []
    for t, s in zip(times[:-1], times[1:], strict=True):
        noise, sigma = share(schedule, t, s), float(schedule.sigma(s))
        decay = noise.old * sigma / float(schedule.sigma(t))
        weight = float(schedule.alpha(s)) - decay * float(schedule.alpha(t))
        rows.append(Row(t, s, to_prediction(t), (decay, 0.0, weight), noise=noise.fresh * sigma))
    return tuple(rows), times


def posterior(schedule: NoiseSchedule, t: float, s: float, *, eta: float) -> Noise:
    """DDIM's share of fresh noise."""
    relative = float(schedule.ratio(s)) / float(schedule.ratio(t))
    fresh = min(1.0, eta * math.sqrt(max(0.0, (1.0 - relative) * (1.0 + relative))))
    return Noise(math.sqrt(max(0.0, (1.0 - fresh) * (1.0 + fresh))), fresh)


def checked_eta(eta: float) -> float:
    """Refuse an amount of noise that is negative or not finite.

    Raises:
        ValueError: so it is.
    """
    if not 0.0 <= eta < math.inf:
        raise ValueError(f"eta={eta!r}: give a finite number, at least 0; 1 is the noise of the forward process")
    return float(eta)


def _ddim(path: Path, nfe: int, *, eta: float) -> tuple[tuple[Row, ...], list[float]]:
    return first_order(path, nfe, share=partial(posterior, eta=eta))


def _large(schedule: NoiseSchedule, t: float, s: float) -> Noise:
    old, fresh = posterior(schedule, t, s, eta=1.0)
    if float(schedule.sigma(s)) == 0.0:
        return Noise(0.0, 0.0)
    # σ_s² (1 - ρ_s²/ρ_t²) is β (σ_s/σ_t)².
    return Noise(old, fresh * float(schedule.sigma(t)) / float(schedule.sigma(s)))


_VARIANCES: Mapping[str, Share] = {"small": partial(posterior, eta=1.0), "large": _large}
DDIM, DDPM = ddim(), ddpm()
DDPM_LARGE = ddpm("large")
