"""EDM's stochastic sampler: raise the noise level before each step, and solve the ODE from there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from odecore.explicit.tableaus import EULER, HEUN, Tableau
from odecore.plan import Row
from odecore.schemes import runge_kutta
from samplers.edm import steps_that_spend
from samplers.multistep import from_pure_noise
from samplers.renoise import Leg, joined
from samplers.solver import Path, Solver
from scoremodels.schedule import NoiseSchedule

_SOURCE = "Karras et al. 2022, arXiv:2206.00364"
_LARGEST_GAMMA = math.sqrt(2.0) - 1.0
"""No step adds more noise than there is."""


def edm_churn(
    s_churn: float = 10.0, s_tmin: float = 0.05, s_tmax: float = 50.0, s_noise: float = 1.0, *, order: int = 2
) -> Solver:
    """Build the sampler with churn, on any schedule over y = x/α and ρ = σ/α.

    From ρ_i in [s_tmin, s_tmax] the level is raised to ``ρ̂ = ρ_i (1 + γ)``, ``γ = min(s_churn/N, √2 - 1)``, by
    ``ŷ = y + sqrt(ρ̂² - ρ_i²) s_noise z``; then a step of Heun or Euler leads from ρ̂ to ρ_{i+1}. Two things differ
    from the paper's algorithm: no level is raised beyond the schedule's noisiest, where no network was trained; and the
    first step starts where the run does, for more noise on pure noise is nothing but another start.

    Args:
        s_churn: amount of noise in all, at least 0; 0 is the deterministic sampler. The paper takes 30 to 80 with
            256 steps. While N is below 2.4 s_churn, γ is at its limit.
        s_tmin: least level that is raised.
        s_tmax: largest level that is raised.
        s_noise: factor of the noise; the paper takes 1.003 to 1.007 against a loss of detail. Only 1 keeps the
            marginals.
        order: 2 for Heun's steps, 1 for Euler's.

    Raises:
        ValueError: an argument out of its range.

    Cost: ``order`` evaluations a step. Euler's step with one evaluation leads to σ = 0 and away from pure noise, and
        spends what is left over.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 2.
    """
    churn = _Churn(s_churn, s_tmin, s_tmax, s_noise)
    if order not in (1, 2):
        raise ValueError(f"order={order!r}: choose 1 (Euler) or 2 (Heun)")
    build = partial(_churned, tableaus=(EULER, HEUN)[:order], churn=churn)
    return Solver(f"edm-churn-{'heun' if order == 2 else 'euler'}", order, build, "plain", grid="karras",
                  stochastic=s_churn > 0.0, renoises=s_churn > 0.0, source=_SOURCE)


def late_churn(
    s_churn: float = 10.0, s_tmin: float = 0.0, s_tmax: float = math.inf, s_noise: float = 1.0
) -> Solver:
    """Build Euler's method with churn as diffusers has it: the noise is added after the evaluation.

    Its network sees the state before the noise, at ρ_i, and its output is taken for that at ρ̂. The marginals are
    those of :func:`edm_churn` to first order only. Here for whoever must match
    ``EulerDiscreteScheduler`` (noise prediction) or ``EDMEulerScheduler`` with ``s_churn``; levels beyond the
    schedule's noisiest are not raised.

    Arguments and errors as of :func:`edm_churn`.

    Cost: one evaluation a step.
    """
    churn = _Churn(s_churn, s_tmin, s_tmax, s_noise)
    return Solver("late-churn", 1, partial(_late, churn=churn), "plain", grid="karras",
                  stochastic=s_churn > 0.0, renoises=s_churn > 0.0, source="diffusers 0.42, EDMEulerScheduler")


def ode_leg(path: Path, t: float, s: float, tableau: Tableau) -> Leg:
    """One Runge–Kutta step over ρ; from pure noise Euler's, which is finite over x0, and the same."""
    return from_pure_noise(path, [t, s]) or runge_kutta(path.variable("plain"), [t, s], [tableau])


@dataclass(frozen=True, slots=True)
class _Churn:
    """How much noise is added where, in Karras' words."""

    s_churn: float
    s_tmin: float
    s_tmax: float
    s_noise: float

    def __post_init__(self) -> None:
        if not (0.0 <= self.s_churn < math.inf and 0.0 <= self.s_tmin <= self.s_tmax and 0.0 < self.s_noise < math.inf):
            raise ValueError(f"s_churn={self.s_churn}, s_tmin={self.s_tmin}, s_tmax={self.s_tmax}, s_noise="
                             f"{self.s_noise}: give s_churn of at least 0, 0 ≤ s_tmin ≤ s_tmax, and a positive s_noise")

    def raised(self, schedule: NoiseSchedule, t: float, steps: int) -> float:
        """The time of the raised level, in a run of so many steps."""
        ratio, gamma = float(schedule.ratio(t)), min(self.s_churn / steps, _LARGEST_GAMMA)
        if gamma == 0.0 or not self.s_tmin <= ratio <= self.s_tmax or math.isinf(ratio):
            return t
        highest = float(schedule.ratio(schedule.t_max))
        return max(t, float(schedule.time_of_ratio(min(ratio * (1.0 + gamma), highest))))


def _churned(
    path: Path, nfe: int, *, tableaus: Sequence[Tableau], churn: _Churn
) -> tuple[tuple[Row, ...], list[float]]:
    steps = steps_that_spend(path, nfe, "plain", tableaus)
    times = path.times(len(steps))
    starts = [times[0], *(churn.raised(path.schedule, t, len(steps)) for t in times[1:-1])]
    legs = [ode_leg(path, t, s, step) for t, s, step in zip(starts, times[1:], steps, strict=True)]
    return joined(path.schedule, legs, times[-1], s_noise=churn.s_noise), times


def _late(path: Path, nfe: int, *, churn: _Churn) -> tuple[tuple[Row, ...], list[float]]:
    times = path.times(nfe)
    raised = [churn.raised(path.schedule, t, nfe) for t in times[:-1]]
    steps = zip(times[:-1], raised, times[1:], strict=True)
    return tuple(_late_row(path, t, high, s, churn.s_noise) for t, high, s in steps), times


def _late_row(path: Path, t: float, high: float, s: float, s_noise: float) -> Row:
    """Euler's step over x0, from the state with noise, and with the network's output without."""
    schedule = path.schedule
    alpha, sigma = float(schedule.alpha(high)), float(schedule.sigma(high))
    to_state, to_output = schedule.conversion(path.prediction, "sample", high)
    decay = float(schedule.sigma(s)) / sigma
    rest = float(schedule.alpha(s)) - decay * alpha
    state = decay + rest * to_state
    low, raised = float(schedule.ratio(t)), float(schedule.ratio(high))
    noise = 0.0 if high == t else alpha * math.sqrt((raised - low) * (raised + low))
    scale = 1.0 if high == t else alpha / float(schedule.alpha(t))
    return Row(t, s, anchor=(state * scale, 0.0, rest * to_output), noise=s_noise * abs(state) * noise)


CHURN = (edm_churn(), edm_churn(order=1))
