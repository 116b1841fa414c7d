"""The solver "auto": it becomes the solver and grid that did best on models with the same kind of schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from odecore.plan import Row
from samplers.grids import Grid
from samplers.solver import Path, Solver
from scoremodels.schedule import EDM, VE, NoiseSchedule, RectifiedFlow


class Choice(NamedTuple):
    """What "auto" becomes.

    Attributes:
        solver: name of a solver that needs no analytic first step, so that a pipeline can run it too.
        grid: name of a grid, as calibration knows it.
    """

    solver: str
    grid: str


SIGMA, FLOW, VARIANCE_PRESERVING = "sigma", "flow", "variance-preserving"
"""Kinds of schedules: EDM and VE, rectified flows, and the rest."""

MANY = 1 << 30
"""More evaluations than anybody spends."""

TABLE: Mapping[str, tuple[tuple[int, Choice], ...]] = {
    SIGMA: ((MANY, Choice("ipndm-3", "align-your-steps:svd")),),
    FLOW: ((9, Choice("flow-ab-2", "time:shift-3:early")), (14, Choice("ipndm-2", "align-your-steps:svd")),
           (MANY, Choice("ipndm-3", "log-snr"))),
    VARIANCE_PRESERVING: ((5, Choice("unipc-3", "linspace")), (14, Choice("unipc-2", "align-your-steps:svd")),
                          (MANY, Choice("ipndm-4", "align-your-steps:svd"))),
}
"""For each kind, up to so many evaluations: the best in trials on few noises, see docs/comparison.md."""

OTHERWISE = "log-snr:early"
"""A grid that every schedule has: models of latents, for one, reach less noise than the published levels do."""


@dataclass(frozen=True, slots=True)
class AutoSolver(Solver):
    """A solver that is decided by the schedule and the evaluations, when a plan is compiled.

    Args:
        decide: ``(schedule, nfe) -> (solver, name of the grid, grid)``.
    """

    decide: Callable[[NoiseSchedule, int], tuple[Solver, str, Grid]] = field(kw_only=True)


def choose(schedule: NoiseSchedule, nfe: int) -> Choice:
    """Name solver and grid: those of ``TABLE``, with another grid where the schedule lacks a part of its levels.

    Args:
        schedule: of the model.
        nfe: evaluations to spend.
    """
    from samplers.candidates import grid_of  # here, as it looks names up in the registry

    kind = SIGMA if isinstance(schedule, EDM | VE) else (
        FLOW if isinstance(schedule, RectifiedFlow) else VARIANCE_PRESERVING)
    choice = next(choice for most, choice in TABLE[kind] if nfe <= most)
    try:
        grid_of(choice.grid)(schedule, nfe, float(schedule.t_clean))
    except ValueError:
        return choice._replace(grid=OTHERWISE)
    return choice


def _decide(schedule: NoiseSchedule, nfe: int) -> tuple[Solver, str, Grid]:
    from samplers.candidates import grid_of, solver_of  # here for the same reason

    solver, grid = choose(schedule, nfe)
    return solver_of(solver), grid, grid_of(grid)


def _build(path: Path, nfe: int) -> tuple[tuple[Row, ...], list[float]]:
    """Build rows on a path that is given: what is left of a run that starts in the middle."""
    return _decide(path.schedule, nfe)[0].build(path, nfe)


AUTO = AutoSolver("auto", 2, _build, "data", grid="auto", rule=None, source="docs/comparison.md", decide=_decide)
"""For models that nobody has calibrated on."""
