"""DPM-Solver-2 in Karras' words, and ancestral samplers: below the next noise level by the ODE, back up by noise.

An ancestral step from t to s solves the ODE down to a time d below s, in one or two evaluations, and adds the
noise that is missing at s. How far below depends on the amount η of fresh noise, and on the clock:

* ratio: over ρ = σ/α, ``ρ_d² = ρ_s² - n²``, ``n = min(1, η sqrt(1 - ρ_s²/ρ_t²)) ρ_s``, as DDIM does it;
* flow: over τ = σ/(α + σ), the time of a rectified flow, ``τ_d = τ_s (1 + η (τ_s/τ_t - 1))``.

With Euler's method the first is DDIM with the same η.

Source: Crowson 2022, k-diffusion, ``sample_dpm_2``, ``sample_dpm_2_ancestral``, ``sample_dpmpp_2s_ancestral``, after
Karras et al. 2022, arXiv:2206.00364, and Lu et al. 2022, arXiv:2211.01095; for flows ComfyUI's variants "RF" of these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from odecore.explicit.tableaus import EULER, MIDPOINT
from odecore.phi import exponential_weights
from odecore.plan import Row, Weight
from odecore.schemes import exponential_singlestep
from samplers.ddim import Noise, Share, checked_eta, first_order, posterior
from samplers.edm import steps_that_spend
from samplers.multistep import from_pure_noise
from samplers.renoise import Leg, joined
from samplers.solver import Path, Solver
from scoremodels.schedule import NoiseSchedule

_SOURCE = "Crowson 2022, k-diffusion"


class _Stages(NamedTuple):
    """Where a step has its inner stage: ``middle(start, end)`` in the clock of a variable."""

    variable: str
    middle: Callable[[float, float], float]


def euler_ancestral(eta: float = 1.0, clock: str = "ratio") -> Solver:
    """Build Euler's method with ancestral noise.

    Args:
        eta: amount of fresh noise, at least 0; 0 is the ODE.
        clock: "ratio", which is :func:`samplers.ddim.ddim`, or "flow".

    Raises:
        ValueError: an argument out of its range.

    Cost: one evaluation a step.
    """
    build = partial(first_order, share=_share(clock, eta))
    return Solver(_named("euler-ancestral", clock), 1, build, "data", grid="time", stochastic=eta > 0.0, source=_SOURCE)


def dpm_2(eta: float = 0.0, clock: str = "ratio") -> Solver:
    """Build the midpoint method with its stage at the geometric mean of the clock's values.

    Over ρ ``y_m = y_t + (ρ_m - ρ_t) ε(y_t)`` and ``y_d = y_t + (ρ_d - ρ_t) ε(y_m)``, with y = x/α and
    ``ρ_m = sqrt(ρ_t ρ_d)``; over τ the same on the velocity, with y = x/(α + σ).

    Args:
        eta: amount of fresh noise, at least 0; 0 is the ODE, 1 the published ancestral sampler.
        clock: "ratio" or "flow".

    Raises:
        ValueError: an argument out of its range.

    Cost: two evaluations a step. Euler's step with one evaluation leads to σ = 0 and (over ρ) away from pure noise,
        and spends what is left over.

    Source: diffusers' ``KDPM2DiscreteScheduler`` and ``KDPM2AncestralDiscreteScheduler``.
    """
    stages = _Stages("plain" if clock == "ratio" else "flow", _geometric)
    return _two_stages("dpm-2-ancestral" if eta else "dpm-2", eta, clock, stages)


def dpm_solver_plus_plus_2s_ancestral(eta: float = 1.0, clock: str = "ratio") -> Solver:
    """Build DPM-Solver++ 2S with ancestral noise: its stage lies midway in log-SNR on the way to d.

    ``x_m = (σ_m/σ_t) x_t + (α_m - α_t σ_m/σ_t) x0(x_t)``, then the same to d with x0(x_m).
    Arguments, errors and cost as of :func:`dpm_2`, with Euler's step away from pure noise over either clock.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithm 1, with k-diffusion's noise.
    """
    return _two_stages("dpm-solver++-2s-ancestral", eta, clock, _Stages("data", _arithmetic))


def newest(offsets: Sequence[float], h: float, rate: Weight) -> tuple[Weight, ...]:
    """Give the newest prediction the weight of a constant one, as a midpoint method does."""
    return *([0.0] * (len(offsets) - 1)), *exponential_weights((0.0,), h, rate)


def _flow(schedule: NoiseSchedule, t: float, s: float, *, eta: float) -> Noise:
    now, target = (1.0 / (1.0 + 1.0 / float(schedule.ratio(u))) if schedule.ratio(u) else 0.0 for u in (t, s))
    share = max(0.0, 1.0 + eta * (target / now - 1.0))
    # ρ_d/ρ_s, of which at σ = 0 the limit.
    old = share * (1.0 - target) / (1.0 - share * target)
    return Noise(old, math.sqrt(max(0.0, (1.0 - old) * (1.0 + old))))


_CLOCKS: Mapping[str, Callable[..., Noise]] = {"ratio": posterior, "flow": _flow}


def _share(clock: str, eta: float) -> Share:
    if clock not in _CLOCKS:
        raise ValueError(f"clock={clock!r}: choose one of {', '.join(_CLOCKS)}")
    return partial(_CLOCKS[clock], eta=checked_eta(eta))


def _two_stages(name: str, eta: float, clock: str, stages: _Stages) -> Solver:
    build = partial(_build, share=_share(clock, eta), stages=stages)
    return Solver(_named(name, clock), 2, build, stages.variable, stochastic=eta > 0.0, renoises=eta > 0.0,
                  source=_SOURCE)


def _named(name: str, clock: str) -> str:
    return name if clock == "ratio" else f"{name}-flow"


def _build(path: Path, nfe: int, *, share: Share, stages: _Stages) -> tuple[tuple[Row, ...], list[float]]:
    steps = steps_that_spend(path, nfe, stages.variable, (EULER, MIDPOINT))
    times = path.times(len(steps))
    legs = [_leg(path, t, _below(path.schedule, s, share(path.schedule, t, s)), stages, two=step is MIDPOINT)
            for step, t, s in zip(steps, times[:-1], times[1:], strict=True)]
    return joined(path.schedule, legs, times[-1]), times


def _below(schedule: NoiseSchedule, s: float, noise: Noise) -> float:
    """The time at which only the old noise is left."""
    return s if noise.old == 1.0 or schedule.sigma(s) == 0.0 else float(
        schedule.time_of_ratio(noise.old * float(schedule.ratio(s))))


def _leg(path: Path, t: float, s: float, stages: _Stages, *, two: bool) -> Leg:
    # From pure noise, and down to σ = 0, a step of order one is finite over x0, and the same.
    if stages.variable == "plain" and path.schedule.alpha(t) == 0.0:
        return from_pure_noise(path, [t, s])
    variable = path.variable(stages.variable)
    start, end = variable.at_time(t), variable.at_time(s)
    if not two or s <= path.schedule.t_clean:
        return exponential_singlestep(variable, [(start, end)])
    middle = variable.at_clock(stages.middle(start.clock, end.clock))
    return exponential_singlestep(variable, [(start, middle, end)], rule=newest)


def _geometric(start: float, end: float) -> float:
    return math.sqrt(start * end)


def _arithmetic(start: float, end: float) -> float:
    return (start + end) / 2.0


ANCESTRAL = (
    euler_ancestral(clock="flow"), dpm_2(), dpm_2(1.0), dpm_2(1.0, "flow"), dpm_solver_plus_plus_2s_ancestral(),
    dpm_solver_plus_plus_2s_ancestral(clock="flow"))
