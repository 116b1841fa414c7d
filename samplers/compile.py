"""From a solver's name to a plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from odecore.plan import Plan, Row
from odecore.schemes import exact_flow
from samplers.auto import AutoSolver
from samplers.grids import Grid
from samplers.registry import grid_named, solver_named
from samplers.solver import AdaptiveSolver, Path, Solver
from samplers.variables import VARIABLES
from scoremodels.prediction import PREDICTIONS
from scoremodels.schedule import EDM, VE, NoiseSchedule


def compile_plan(
    solver: str | Solver,
    schedule: NoiseSchedule,
    *,
    nfe: int,
    grid: str | Grid | Sequence[float] | NDArray[np.float64] | None = None,
    prediction: str = "epsilon",
    end: str | float | None = None,
) -> Plan:
    """Compile a solver on a schedule into a plan of exactly ``nfe`` network evaluations.

    Args:
        solver: a name out of ``SOLVERS``, or a :class:`~samplers.solver.Solver`.
        schedule: noise schedule of the model.
        nfe: network evaluations to spend, at least 1.
        grid: a name out of ``GRIDS``, a grid function, or the network times themselves, from noise
            to data, one more than the solver takes steps; None for the usual one, see :func:`usual_grid`.
        prediction: what the network predicts, one of ``PREDICTIONS``.
        end: "clean" (σ = 0), "minimum" (the least noise that the model was trained at), or a
            network time; None for the solver's usual end. Custom times bring their own end.

    Returns:
        The plan; ``plan.nfe == nfe``.

    Raises:
        ValueError: an argument is unknown, out of range or does not fit the others.

    Cost: host arithmetic only, no network evaluation.
    """
    chosen = solver_named(solver) if isinstance(solver, str) else solver
    if isinstance(chosen, AdaptiveSolver):
        raise ValueError(f"solver={chosen.name!r} chooses its own steps and has no plan: call sample() with it, or "
                         "compile a fixed-grid solver")
    if isinstance(nfe, bool) or not isinstance(nfe, int | np.integer) or nfe < chosen.least_nfe:
        raise ValueError(f"nfe={nfe!r}: solver {chosen.name!r} spends a whole number of evaluations, "
                         f"at least {chosen.least_nfe}")
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction={prediction!r} is unknown: choose one of {', '.join(PREDICTIONS)}")
    if isinstance(chosen, AutoSolver):
        chosen, name, usual = chosen.decide(schedule, int(nfe))
        if grid is not None:
            return compile_plan(chosen, schedule, nfe=nfe, grid=grid, prediction=prediction, end=end)
        plan = compile_plan(chosen, schedule, nfe=nfe, grid=usual, prediction=prediction, end=end)
        return replace(plan, about={**plan.about, "grid": name})
    rule, label, last = _resolve_grid(chosen, schedule, grid, end)
    path = Path(schedule, prediction, rule, last)
    rows, times = chosen.build(path, int(nfe))
    if len(rows) != nfe:
        raise ValueError(f"nfe={nfe}: solver {chosen.name!r} would spend {len(rows)} evaluations")
    about = {"solver": chosen.name, "order": chosen.order, "nfe": int(nfe), "grid": label, "times": times,
             "schedule": schedule.to_config(), "prediction": prediction}
    if chosen.enter is not None:
        return Plan(rows, times[0], None, about, chosen.enter(path, int(nfe)))
    return Plan(rows, times[0], _exact(chosen, schedule, prediction, rows, times), about)


def usual_grid(solver: Solver, schedule: NoiseSchedule) -> str:
    """The grid that a solver takes unless another is asked for.

    Models in σ are published with Karras times, except that third-order extrapolation of the data
    is at odds with their wide first steps, and takes steps of equal log-SNR. On any other schedule
    each solver keeps the grid of its own paper: on flows too, for even times leave the last tenth
    of the noise to a single step.
    """
    return solver.sigma_grid if isinstance(schedule, EDM | VE) else solver.grid


def _resolve_grid(
    solver: Solver, schedule: NoiseSchedule, grid: str | Grid | Sequence[float] | NDArray[np.float64] | None,
    end: str | float | None,
) -> tuple[Grid | NDArray[np.float64], str, float]:
    if grid is None:
        grid = usual_grid(solver, schedule)
    if isinstance(grid, str) or callable(grid):
        last = resolve_end(schedule, solver.end if end is None else end)
        if isinstance(grid, str):
            return grid_named(grid), grid, last
        return grid, getattr(grid, "__name__", "custom"), last
    times = np.asarray(grid, dtype=np.float64)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"grid has shape {times.shape}: give at least two times, from noise to data")
    if end is not None and resolve_end(schedule, end) != times[-1]:
        raise ValueError(f"end={end!r}, but the custom times end at {times[-1]}: leave end out")
    if not np.isfinite(times).all():
        raise ValueError(f"grid={times.tolist()}: all times must be finite")
    if times.max() > schedule.t_max or times.min() < schedule.t_clean:
        raise ValueError(f"grid={times.tolist()}: times must lie between {schedule.t_clean} and {schedule.t_max}")
    return times, "custom", float(times[-1])


def resolve_end(schedule: NoiseSchedule, end: str | float) -> float:
    """The time that "clean", "minimum" or a number stands for.

    Raises:
        ValueError: another word, or a time outside the schedule.
    """
    if end == "clean":
        return float(schedule.t_clean)
    if end == "minimum":
        return float(schedule.t_min)
    if isinstance(end, str) or not (schedule.t_clean <= end < schedule.t_max):
        raise ValueError(f"end={end!r}: choose 'clean', 'minimum', or a time from {schedule.t_clean} up to, but not "
                         f"including, {schedule.t_max}")
    return float(end)


def _exact(
    solver: Solver, schedule: NoiseSchedule, prediction: str, rows: Sequence[Row], times: Sequence[float]
) -> tuple[float, float] | None:
    """What a constant prediction must lead to: the exact flow, or with noise the mean of the process.

    None where the first row, from pure noise, interpolates another prediction than the rest, for a constant
    prediction of noise that is not the noise that the rows add, and for a solver with a variable of its own.
    """
    if solver.variable not in VARIABLES or (solver.stochastic and solver.variable != "data"):
        return None
    if solver.stochastic:
        decay = math.prod(float(row.anchor[0]) for row in rows)
        return decay, float(schedule.alpha(times[-1])) - decay * float(schedule.alpha(times[0]))
    if solver.variable == "plain" and schedule.alpha(times[0]) == 0.0:
        return None
    variable = Path(schedule, prediction, np.asarray(times), times[-1]).variable(solver.variable)
    a, b = exact_flow(variable, times[0], times[-1])
    return float(a), float(b)
