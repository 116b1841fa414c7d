"""Start a plan in its middle, as image-to-image sampling does."""

from __future__ import annotations

from odecore.plan import Row
from odecore.schemes import Variable, exponential_multistep
from odecore.schemes.variable import Rule


def restart(rows: tuple[Row, ...], begin: int, variable: Variable, rule: Rule) -> tuple[Row, ...]:
    """Make rows for a run that starts at row ``begin`` with a state of that row's time and no history.

    Rows that stand on their own are kept. The rows before the next place where a step starts that
    reads nothing older are replaced: by exponential multistep rows at the same times, whose order
    rises with the new history up to the order of the rows they replace.

    Args:
        rows: the rows of a plan.
        begin: index of the first row to run.
        variable: the change of variables of the plan's solver.
        rule: its weights.

    Returns:
        ``len(rows) - begin`` rows, evaluated at the same times as the rows they stand for.
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
