"""The analytic first step: what a network would predict from pure noise is known, and need not be evaluated.

At the first time the state is all but noise, ``x_T ≈ sqrt(α² + σ²) z`` for data of unit variance, and its predicted
noise is that z. The first row of a plan is then linear in x_T, and so is the prediction that later rows read: it is
folded into their weights, and an evaluation is saved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from odecore.plan import Row, Weight
from samplers.solver import Path, Solver
from samplers.variables import VARIABLES


def analytic_first_step(solver: Solver) -> Solver:
    """Take the first prediction of a solver for known, ``ε = x / sqrt(α² + σ²)``, in place of an evaluation.

    With n evaluations it takes the steps that the solver takes with n + 1. The plan starts at the solver's first
    time, and ``Plan.entry`` takes the state there to the first point of evaluation. A later row that reads the
    known prediction reads the states that it went into instead: with ``m_0 = u x_i + Σ_j v_j h_j`` over the
    accepted state and the later predictions, and ``x_{i+1} = a x_i + Σ_j b_j h_j``, it is
    ``m_0 = (u/a) x_{i+1} + Σ_j (v_j - (u/a) b_j) h_j`` a row later.

    The error of the first step remains, and with it an error of order one: of use with few evaluations.

    Args:
        solver: any fixed-grid solver without noise, also one with inner stages or a corrector.

    Returns:
        The solver, one evaluation cheaper.

    Raises:
        ValueError: a solver that adds noise, or has an analytic first step; once it is compiled, one whose steps
            start from anything but the last accepted state while the known prediction is in use.

    Cost: one evaluation less than the solver's own for the same steps.

    Source: Dockhorn et al. 2022 (GENIE), arXiv:2210.05475, section 4; with that ε, AMED-Solver, Zhou et al. 2024,
        arXiv:2312.00094.
    """
    if solver.stochastic or solver.enter is not None:
        raise ValueError(f"solver={solver.name!r} adds noise or has an analytic first step: choose another")
    if solver.variable not in VARIABLES:
        raise ValueError(f"solver={solver.name!r} predicts a quantity of its own, which is not known beforehand: "
                         f"choose a solver over one of {', '.join(VARIABLES)}")
    return replace(solver, name=f"{solver.name}+afs", order=1, build=partial(_build, solver=solver),
                   enter=partial(_enter, solver=solver), rule=None, least_nfe=max(1, solver.least_nfe - 1))


def known_prediction(path: Path, variable: str, t: float) -> float:
    """Give k of the prediction ``k x`` in a variable, at a time of all but noise; finite where α = 0."""
    alpha, sigma = float(path.schedule.alpha(t)), float(path.schedule.sigma(t))
    radius = math.hypot(alpha, sigma)
    noise, data = 1.0 / radius, alpha / (radius * (radius + sigma))  # the latter is (1 - σ/r)/α
    if variable == "flow":
        return noise - data
    return data if variable == "data" or (variable == "plain" and alpha == 0.0) else noise


def _build(path: Path, nfe: int, *, solver: Solver) -> tuple[tuple[Row, ...], list[float]]:
    rows, times = solver.build(path, nfe + 1)
    anchor, point, known = _first(path, solver, rows[0], times[0])
    return _folded(rows[1:], anchor / point, known / point), times


def _enter(path: Path, nfe: int, *, solver: Solver) -> float:
    rows, times = solver.build(path, nfe + 1)
    return _first(path, solver, rows[0], times[0]).point


def _first(path: Path, solver: Solver, row: Row, t: float) -> _First:
    """Run the first row on the start state 1."""
    known = known_prediction(path, solver.variable, t)
    (before, at, m), _ = _without(row.anchor, 3)
    anchor = before + at + m * known
    (before, at, m), _ = _without(row.point, 3)
    return _First(anchor, before * anchor + at + m * known, known)


class _First(NamedTuple):
    """What the first row leads to, as multiples of the start state."""

    anchor: float
    point: float
    known: float


@dataclass
class _Known:
    """``m_0 = of_anchor · anchor + Σ_j of_history[j] h_j`` before a row, whose history has m_0 at ``place``."""

    of_anchor: float
    of_history: list[float]

    @property
    def place(self) -> int:
        """Index of m_0 among the registers (anchor, point, prediction, h_1, h_2, …)."""
        return 3 + len(self.of_history)


def _folded(rows: Sequence[Row], anchor: float, known: float) -> tuple[Row, ...]:
    """Rows that read no prediction before their own.

    Both registers start at the point; ``anchor`` times it is the accepted state, ``known`` times it the prediction.
    """
    last = max((i for i, row in enumerate(rows) if _reads(row, i)), default=0)
    folded, prediction, together = [], _Known(known, []), True
    for index, row in enumerate(rows[:last + 1]):
        weights, share = _without(row.anchor, prediction.place)
        if index == 0:
            weights[0] *= anchor
        weights[0] += share * prediction.of_anchor
        for j, weight in enumerate(prediction.of_history):
            weights[3 + j] += share * weight
        point, share = _without(row.point, prediction.place)
        if index < last or share != 0.0:
            prediction = _advanced(prediction, weights, together)
            point[0] += share * prediction.of_anchor
            for j, weight in enumerate(prediction.of_history):
                point[2 + j] += share * weight
        together = row.point == (1.0,)
        folded.append(replace(row, anchor=tuple(weights), point=tuple(point)))
    return (*folded, *rows[last + 1:])


def _advanced(known: _Known, weights: Sequence[float], together: bool) -> _Known:
    """Express m_0 after a row with those weights of its new anchor; its prediction is then h_1."""
    from_state = weights[0] + (weights[1] if together else 0.0)
    if from_state == 0.0 or (weights[1] != 0.0 and not together):
        raise ValueError("the known first prediction cannot be folded into steps that do not start from the last "
                         "accepted state: choose another solver for an analytic first step")
    ratio = known.of_anchor / from_state
    history = [0.0, *known.of_history]
    return _Known(ratio, [v - ratio * weight for v, weight in zip(history, weights[2:], strict=True)])


def _reads(row: Row, index: int) -> bool:
    """Whether a row has a weight on the prediction before the first row."""
    place = 3 + index
    return any(len(weights) > place and weights[place] != 0.0 for weights in (row.anchor, row.point))


def _without(weights: Sequence[Weight], place: int) -> tuple[list[float], float]:
    """All weights but the one at ``place``, padded with zeros, and that one."""
    padded = [*map(float, weights), *[0.0] * (place + 1 - len(weights))]
    return padded[:place], padded[place]
