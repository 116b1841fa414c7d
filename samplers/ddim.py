"""DDIM with any amount of fresh noise, DDPM's ancestral sampling among them."""

from __future__ import annotations

import math
from functools import partial

from odecore.plan import Row
from samplers.solver import Path, Solver


def _ddim(path: Path, nfe: int, *, eta: float) -> tuple[tuple[Row, ...], list[float]]:
    """Rows of ``x_s = α_s x0 + sqrt(σ_s² - n²) ε + n z``, ``n = η σ_s sqrt(1 - ρ_s²/ρ_t²)``.

    In general α and σ the posterior q(x_s | x_t, x0) of the forward process has standard deviation
    ``σ_s sqrt(1 - ρ_s²/ρ_t²)``, with ρ = σ/α; η scales it.
    """
    times = path.times(nfe)
    schedule, to_prediction = path.schedule, path.variable("data").to_prediction
    rows = []
    for t, s in zip(times[:-1], times[1:], strict=True):
        alpha_t, sigma_t = float(schedule.alpha(t)), float(schedule.sigma(t))
        alpha_s, sigma_s = float(schedule.alpha(s)), float(schedule.sigma(s))
        squared_decrease = (sigma_s * alpha_t / (alpha_s * sigma_t)) ** 2
        noise = eta * sigma_s * math.sqrt(max(0.0, 1.0 - squared_decrease))
        decay = math.sqrt(max(0.0, sigma_s**2 - noise**2)) / sigma_t
        rows.append(Row(t, s, to_prediction(t), (decay, 0.0, alpha_s - decay * alpha_t), noise=noise))
    return tuple(rows), times


DDIM = Solver("ddim", 1, partial(_ddim, eta=0.0), "data", grid="time", source="Song et al. 2021, arXiv:2010.02502")
DDPM = Solver("ddpm", 1, partial(_ddim, eta=1.0), "data", grid="time", stochastic=True,
              source="Ho et al. 2020, arXiv:2006.11239")
