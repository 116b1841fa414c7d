"""Start a plan in its middle, as image-to-image sampling does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from odecore.plan import Plan, Row
from odecore.schemes import Variable, exponential_multistep
from odecore.schemes.variable import Rule
from samplers.dpm_solver import RULES
from samplers.renoise import joined
from samplers.solver import Path, Solver
from samplers.variables import VARIABLES
from scoremodels.schedule import NoiseSchedule


def restart(plan: Plan, begin: int, solver: Solver, schedule: NoiseSchedule, prediction: str) -> tuple[Row, ...]:
    """Make rows for a run that starts at row ``begin`` with a state of that row's time and no history.

    A solver that has no rule is built anew on the times that are left. A stage whose anchor has come to its
    time, as in steps of several stages that add noise, goes on in first order with the noise of its row.

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
    if solver.stochastic and begin > 0 and plan.rows[begin - 1].t_next == plan.rows[begin].t:
        boundary = _next_start(plan.rows, begin)
        return (*(_first_order(row, schedule) for row in plan.rows[begin:boundary]), *plan.rows[boundary:])
    variable = VARIABLES[solver.variable](schedule, prediction)
    rule = RULES[solver.rule.replace("singlestep", "multistep")]
    return _without_history(plan.rows, begin, variable, rule, schedule)


def _without_history(
    rows: tuple[Row, ...], begin: int, variable: Variable, rule: Rule, schedule: NoiseSchedule
) -> tuple[Row, ...]:
    """Replace what reads predictions that were never made.

    Rows that stand on their own are kept. The rows before the next place where a step starts that
    reads nothing older are replaced: by exponential multistep rows at the same times, whose order
    rises with the new history up to the order of the rows they replace. Where the next step starts at
    more noise than the last stage has, noise leads there.
    """
    boundary = _next_start(rows, begin)
    replaced = rows[begin:boundary]
    if not replaced:
        return rows[begin:]
    after = rows[boundary].t if boundary < len(rows) else rows[-1].t_next
    times = [float(t) for t in (*(row.t for row in replaced), min(after, replaced[-1].t))]
    orders = [min(_distinct(times, i), max(1, len(row.anchor) - 2 - row.anchor[2:].count(0.0)))
              for i, row in enumerate(replaced)]
    leg = exponential_multistep(variable, times, orders, rule=rule)
    return (*joined(schedule, [leg], float(after)), *rows[boundary:])


def _distinct(times: Sequence[float], i: int) -> int:
    """How many of the times up to the i-th no other one among them repeats."""
    return next((k for k in range(1, i + 1) if times[i - k] == times[i - k + 1]), i + 1)


def _first_order(row: Row, schedule: NoiseSchedule) -> Row:
    """Give the newest prediction of the data all the weight, and keep the noise, which goes with the state's weight."""
    decay = float(row.anchor[0])
    weight = float(schedule.alpha(float(row.t_next))) - decay * float(schedule.alpha(float(row.t)))
    return replace(row, anchor=(decay, 0.0, weight), point=(1.0,))


def _next_start(rows: tuple[Row, ...], begin: int) -> int:
    """The first row from ``begin`` on at which a step starts that stands alone; their number if there is none."""
    return next((b for b in range(begin, len(rows)) if stands_alone(rows, b)), len(rows))


def stands_alone(rows: tuple[Row, ...], begin: int) -> bool:
    """Whether a step starts at ``begin`` and no row from there on reads a prediction made before it."""
    if begin > 0 and rows[begin - 1].point != (1.0,):
        return False
    return all(max(len(row.anchor), len(row.point)) - 3 <= i for i, row in enumerate(rows[begin:]))
