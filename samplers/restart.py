"""Start a plan in its middle, as image-to-image sampling does."""

from __future__ import annotations

import numpy as np

from odecore.plan import Plan, Row
from odecore.schemes import Variable, exponential_multistep
from odecore.schemes.variable import Rule
from samplers.dpm_solver import RULES
from samplers.solver import Path, Solver
from samplers.variables import VARIABLES
from scoremodels.schedule import NoiseSchedule


def restart(plan: Plan, begin: int, solver: Solver, schedule: NoiseSchedule, prediction: str) -> tuple[Row, ...]:
    """Make rows for a run that starts at row ``begin`` with a state of that row's time and no history.

    A solver that has no rule is built anew on the times that are left.

    Args:
        plan: the plan of the whole run.
        begin: index of the first row to run.
        solver: what the plan was compiled from, with its schedule and prediction.
        schedule: noise schedule.
        prediction: what the network predicts.

    Returns:
        ``plan.nfe - begin`` rows, evaluated at the same times as the rows they stand for.
    """
    if solver.rule is None:
        times = np.asarray(plan.about["times"])[begin:]
        return solver.build(Path(schedule, prediction, times, float(times[-1])), plan.nfe - begin)[0]
    variable = VARIABLES[solver.variable](schedule, prediction)
    return _without_history(plan.rows, begin, variable, RULES[solver.rule.replace("singlestep", "multistep")])


def _without_history(rows: tuple[Row, ...], begin: int, variable: Variable, rule: Rule) -> tuple[Row, ...]:
    """Replace what reads predictions that were never made.

    Rows that stand on their own are kept. The rows before the next place where a step starts that
    reads nothing older are replaced: by exponential multistep rows at the same times, whose order
    rises with the new history up to the order of the rows they replace.
    """
    boundary = next((b for b in range(begin, len(rows)) if _stands_alone(rows, b)), len(rows))
    replaced = rows[begin:boundary]
    if not replaced:
        return rows[begin:]
    after = rows[boundary].t if boundary < len(rows) else rows[-1].t_next
    orders = [min(i + 1, max(1, len(row.anchor) - 2)) for i, row in enumerate(replaced)]
    times = [float(t) for t in (*(row.t for row in replaced), after)]
    return (*exponential_multistep(variable, times, orders, rule=rule), *rows[boundary:])


def _stands_alone(rows: tuple[Row, ...], begin: int) -> bool:
    """Whether a step starts at ``begin`` and no row from there on reads a prediction made before it."""
    if begin > 0 and rows[begin - 1].point != (1.0,):
        return False
    return all(max(len(row.anchor), len(row.point)) - 3 <= i for i, row in enumerate(rows[begin:]))
