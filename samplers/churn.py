"""EDM's stochastic sampler: raise the noise level before each step, and solve the ODE from there."""

from __future__ import annotations

import math
from functools import partial

from odecore.plan import Row
from samplers.multistep import from_pure_noise
from samplers.solver import Path, Solver


def edm_churn(
    s_churn: float = 40.0, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.003, *, heun: bool = True
) -> Solver:
    """Build the sampler with churn, over y = x/α and ρ = σ/α.

    From ρ_i in [s_min, s_max] the level is raised to ``ρ̂ = ρ_i (1 + γ)``, ``γ = min(s_churn/N, √2 - 1)``, by
    ``ŷ = y + sqrt(ρ̂² - ρ_i²) s_noise z``; then a step of Heun (or Euler) leads from ρ̂ to ρ_{i+1}. The first level
    is not raised beyond the schedule's noisiest time.

    Args:
        s_churn: amount of noise in all, at least 0; 0 is the deterministic sampler.
        s_min: least level that is raised.
        s_max: largest level that is raised.
        s_noise: factor of the fresh noise.
        heun: whether steps are Heun's (two evaluations) or Euler's (one).

    Raises:
        ValueError: a number out of range.

    Cost: two evaluations a step with Heun, one for the step to σ = 0 and for what is left over.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2; the defaults are those for ImageNet in its table 5.
    """
    if not (0.0 <= s_churn < math.inf and 0.0 <= s_min <= s_max and 0.0 < s_noise < math.inf):
        raise ValueError(f"s_churn={s_churn}, s_min={s_min}, s_max={s_max}, s_noise={s_noise}: give s_churn of at "
                         "least 0, 0 ≤ s_min ≤ s_max, and a positive s_noise")
    build = partial(_build, s_churn=s_churn, s_min=s_min, s_max=s_max, s_noise=s_noise, heun=heun)
    return Solver(f"edm-churn-{'heun' if heun else 'euler'}", 1, build, "plain", grid="karras",
                  stochastic=s_churn > 0.0, source="Karras et al. 2022, arXiv:2206.00364")


def _build(
    path: Path, nfe: int, *, s_churn: float, s_min: float, s_max: float, s_noise: float, heun: bool
) -> tuple[tuple[Row, ...], list[float]]:
    clean = int(path.end < path.schedule.t_min)
    first = path.schedule.t_max if callable(path.grid) else float(path.grid[0])
    entered = int(path.schedule.alpha(float(first)) == 0.0 and nfe > clean)
    double, single = divmod(nfe - clean - entered, 2) if heun else (0, nfe - clean - entered)
    times = path.times(entered + double + single + clean if nfe > clean else nfe)
    steps = len(times) - 1
    raised = [times[0], *(_raised(path, t, min(s_churn / steps, math.sqrt(2.0) - 1.0), s_min, s_max)
                          for t in times[1:-1]), times[-1]]
    rows: list[Row] = []
    for index in range(steps):
        *inner, last = _step(path, raised[index], times[index + 1], two=entered <= index < entered + double)
        rows += [*inner, _raise(path, last, times[index + 1], raised[index + 1], s_noise)]
    return tuple(rows), times


def _raised(path: Path, t: float, gamma: float, s_min: float, s_max: float) -> float:
    """The time of the raised level; never noisier than the schedule knows."""
    ratio = float(path.schedule.ratio(t))
    if not s_min <= ratio <= s_max or gamma == 0.0:
        return t
    return min(float(path.schedule.time_of_ratio(ratio * (1.0 + gamma))), float(path.schedule.t_max))


def _raise(path: Path, row: Row, t: float, raised: float, s_noise: float) -> Row:
    """Let a row that arrives at t go on to a noisier time, by noise alone."""
    if raised == t:
        return row
    schedule = path.schedule
    alpha, higher = float(schedule.alpha(t)), float(schedule.alpha(raised))
    added = math.sqrt(float(schedule.ratio(raised)) ** 2 - float(schedule.ratio(t)) ** 2)
    anchor = tuple(float(w) * higher / alpha for w in row.anchor)
    return Row(row.t, raised, row.to_prediction, anchor, noise=higher * s_noise * added)


def _step(path: Path, t: float, s: float, *, two: bool) -> list[Row]:
    """A step of Euler or Heun over y; the second evaluation of Heun's is made at its end."""
    schedule, to_prediction = path.schedule, path.variable("plain").to_prediction
    if float(schedule.alpha(t)) == 0.0:
        return list(from_pure_noise(path, [t, s]))
    scale, gain = float(schedule.alpha(s)) / float(schedule.alpha(t)), float(schedule.alpha(s))
    h = float(schedule.ratio(s)) - float(schedule.ratio(t))
    euler = (scale, 0.0, gain * h)
    if not two:
        return [Row(t, s, to_prediction(t), euler)]
    return [Row(t, t, to_prediction(t), point=euler),
            Row(s, s, to_prediction(s), (scale, 0.0, gain * h / 2, gain * h / 2))]


CHURN = (edm_churn(), edm_churn(heun=False))
