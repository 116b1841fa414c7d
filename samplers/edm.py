"""Classical Runge–Kutta methods on ``d(x/α)/dρ = ε``, ρ = σ/α: Euler, and the Heun method of EDM."""

from __future__ import annotations

import math
from collections.abc import Sequence

from odecore.explicit.tableaus import EULER, HEUN, Tableau
from odecore.plan import Row
from odecore.schemes import exponential_multistep, runge_kutta
from samplers.solver import Path, Solver


def _euler(path: Path, nfe: int) -> tuple[tuple[Row, ...], list[float]]:
    times = path.times(nfe)
    return _walk(path, times, [EULER] * nfe), times


def _heun(path: Path, nfe: int) -> tuple[tuple[Row, ...], list[float]]:
    """Heun steps, and Euler for the last one to σ = 0 and the first one from ρ = ∞, where no slope can be had.

    If the number of Heun evaluations left is odd, there is one more Euler step before the last.
    """
    ends = int(path.end < path.schedule.t_min) + int(_starts_at_pure_noise(path))
    euler_first = int(_starts_at_pure_noise(path)) if nfe > 1 else 0
    euler_last = min(nfe, ends) - euler_first
    heun_steps, left_over = divmod(nfe - euler_first - euler_last, 2)
    tableaus = [EULER] * euler_first + [HEUN] * heun_steps + [EULER] * (left_over + euler_last)
    times = path.times(len(tableaus))
    return _walk(path, times, tableaus), times


def _starts_at_pure_noise(path: Path) -> bool:
    first = path.schedule.t_max if callable(path.grid) else float(path.grid[0])
    return math.isinf(path.schedule.ratio(float(first)))


def _walk(path: Path, times: Sequence[float], tableaus: Sequence[Tableau]) -> tuple[Row, ...]:
    """Runge–Kutta rows; an Euler step from ρ = ∞ is taken in the data variable, where it is finite and the same."""
    if not math.isinf(path.schedule.ratio(times[0])):
        return runge_kutta(path.variable("plain"), times, tableaus)
    first = exponential_multistep(path.variable("data"), times[:2], [1])
    return first + runge_kutta(path.variable("plain"), times[1:], tableaus[1:])


EULER_SOLVER = Solver("euler", 1, _euler, "plain", grid="karras", source="Karras et al. 2022, arXiv:2206.00364")
EDM_HEUN = Solver("edm-heun", 2, _heun, "plain", grid="karras", source="Karras et al. 2022, arXiv:2206.00364")
