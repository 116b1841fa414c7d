"""Classical Runge–Kutta methods on ``d(x/α)/dρ = ε``, ρ = σ/α: Euler, and the Heun method of EDM."""

from __future__ import annotations

from odecore.plan import Row
from odecore.schemes import runge_kutta
from odecore.tableaus import EULER, HEUN
from samplers.solver import Path, Solver


def _euler(path: Path, nfe: int) -> tuple[tuple[Row, ...], list[float]]:
    times = path.times(nfe)
    return runge_kutta(path.variable("plain"), times, [EULER] * nfe), times


def _heun(path: Path, nfe: int) -> tuple[tuple[Row, ...], list[float]]:
    """Heun steps, and Euler for the last one to σ = 0, where no slope can be had.

    An even number of evaluations to the clean end leaves one over: one more Euler step before the
    last. An odd number to another end: the last step is an Euler step.
    """
    to_clean = path.end < path.schedule.t_min
    euler_steps = (1 if nfe % 2 else 2) if to_clean else nfe % 2
    tableaus = [HEUN] * ((nfe - euler_steps) // 2) + [EULER] * euler_steps
    times = path.times(len(tableaus))
    return runge_kutta(path.variable("plain"), times, tableaus), times


EULER_SOLVER = Solver("euler", 1, _euler, "plain", grid="karras", source="Karras et al. 2022, arXiv:2206.00364")
EDM_HEUN = Solver("edm-heun", 2, _heun, "plain", grid="karras", source="Karras et al. 2022, arXiv:2206.00364")
