"""DPM-Solver-2 in Karras' words, and samplers that go below the next noise level and add noise to reach it.

All of them step y = x/α over ρ = σ/α, where ``dy/dρ = ε``. An ancestral step to ρ_s solves the ODE down to
``ρ_d = sqrt(ρ_s² - ρ_u²)`` and adds noise of standard deviation ``ρ_u = min(ρ_s, η ρ_s sqrt(1 - ρ_s²/ρ_t²))``.
With Euler's method that is DDIM with the same η, which therefore has no second name here.

Source: k-diffusion (Crowson 2022), ``sample_dpm_2``, ``sample_dpm_2_ancestral``, ``sample_dpmpp_2s_ancestral``.
"""

from __future__ import annotations

import math
from functools import partial

from odecore.plan import Row
from samplers.multistep import from_pure_noise
from samplers.solver import Path, Solver

_SOURCE = "Karras et al. 2022, arXiv:2206.00364; Crowson 2022, k-diffusion"


def dpm_2(eta: float = 0.0) -> Solver:
    """Build the midpoint method over ρ with its stage at the geometric mean ``sqrt(ρ_t ρ_d)``.

    ``y_m = y_t + (ρ_m - ρ_t) ε(y_t)``, then ``y_d = y_t + (ρ_d - ρ_t) ε(y_m)`` and ``y_s = y_d + ρ_u z``.

    Args:
        eta: amount of noise, 0 for the ODE; 1 is the published ancestral sampler.

    Raises:
        ValueError: a negative or infinite eta.

    Cost: two evaluations a step; the step to σ = 0, one from pure noise, and one more if the number of
        evaluations leaves it over, are Euler's.
    """
    return _solver("dpm-2", eta, 2, "plain")


def dpm_solver_plus_plus_2s_ancestral(eta: float = 1.0) -> Solver:
    """Build DPM-Solver++ 2S with ancestral noise: the stage lies midway in log-SNR on the way to ρ_d.

    ``y_m = (ρ_m/ρ_t) y_t + (1 - ρ_m/ρ_t) x0(y_t)``, then ``y_d = (ρ_d/ρ_t) y_t + (1 - ρ_d/ρ_t) x0(y_m)`` and
    ``y_s = y_d + ρ_u z``.

    Arguments, errors and cost as of :func:`dpm_2`.
    """
    return _solver("dpm-solver++-2s", eta, 2, "data")


def split_noise(ratio: float, target: float, eta: float) -> tuple[float, float]:
    """Split the noise level ``target`` into (ρ_d, ρ_u): what the ODE goes down to, and what is added to it."""
    up = min(target, eta * target * math.sqrt(max(0.0, 1.0 - (target / ratio) ** 2)))
    return math.sqrt(max(0.0, target**2 - up**2)), up


def _solver(name: str, eta: float, order: int, variable: str) -> Solver:
    if not 0.0 <= eta < math.inf:
        raise ValueError(f"eta={eta!r}: give a number of at least 0; 1 is the published amount of noise")
    build = partial(_build, eta=eta, variable=variable)
    return Solver(f"{name}-ancestral" if eta else name, order if not eta else 1, build, variable, grid="log-snr",
                  sigma_grid="karras", stochastic=eta > 0.0, source=_SOURCE)


def _build(path: Path, nfe: int, *, eta: float, variable: str) -> tuple[tuple[Row, ...], list[float]]:
    clean = int(path.end < path.schedule.t_min)
    first = path.schedule.t_max if callable(path.grid) else float(path.grid[0])
    entered = int(path.schedule.alpha(float(first)) == 0.0 and nfe > clean)
    double, single = divmod(nfe - clean - entered, 2)
    times = path.times(entered + double + single + clean if nfe > clean else nfe)
    rows: list[Row] = []
    for index, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        rows += _step(path, t, s, eta, variable, two=entered <= index < entered + double)
    return tuple(rows), times


def _step(path: Path, t: float, s: float, eta: float, variable: str, *, two: bool) -> list[Row]:
    """One step over y, in one or two evaluations."""
    schedule, to_prediction = path.schedule, path.variable(variable).to_prediction
    now, alpha_t, alpha_s = float(schedule.ratio(t)), float(schedule.alpha(t)), float(schedule.alpha(s))
    if math.isinf(now):
        return list(from_pure_noise(path, [t, s]))
    down, up = split_noise(now, float(schedule.ratio(s)), eta)

    def reach(ratio: float, alpha: float) -> tuple[float, float, float]:
        """Weights of the state, the point and the prediction in the state at a noise level below."""
        if variable == "plain":
            return alpha / alpha_t, 0.0, alpha * (ratio - now)
        return alpha / alpha_t * ratio / now, 0.0, alpha * (1.0 - ratio / now)

    noise = alpha_s * up
    end = reach(down, alpha_s)
    if not two or down == 0.0:
        return [Row(t, s, to_prediction(t), end, noise=noise)]
    middle = math.sqrt(now * down)
    between = float(schedule.time_of_ratio(middle))
    return [Row(t, t, to_prediction(t), point=reach(middle, float(schedule.alpha(between)))),
            Row(between, s, to_prediction(between), end, noise=noise)]


ANCESTRAL = (dpm_2(), dpm_2(1.0), dpm_solver_plus_plus_2s_ancestral())
