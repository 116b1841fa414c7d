"""A plan that is brought along, calibrated or learned, in place of one that the scheduler compiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from odecore.plan import Plan, Row
from samplers.plan_files import check_made_for
from samplers.restart import stands_alone
from scoremodels.schedule import NoiseSchedule


def fixed_plan(config: Mapping[str, Any], schedule: NoiseSchedule, network: str, *, over_sample: bool) -> Plan | None:
    """Read the plan of a config, which must be made for its model; None if it has none.

    Args:
        config: keys of :class:`samplers.diffusers.FewStepScheduler`.
        schedule: noise schedule of the model.
        network: what the network predicts.
        over_sample: whether the plan is to read the predicted sample, which is clipped, in place of the output.

    Raises:
        ValueError: no valid plan, one of another model, or settings beside it that choose another.
    """
    if config["plan"] is None:
        return None
    if others := [key for key in ("solver", "weights", "grid") if config[key] is not None]:
        raise ValueError(f"{others[0]}={config[others[0]]!r} beside a plan, which has its own solver and grid: leave "
                         "it out, or the plan")
    plan = Plan.from_json(config["plan"])
    check_made_for(plan, schedule, network)
    return replace(plan, rows=_over_sample(plan.rows, schedule, network)) if over_sample else plan


def rows_from(plan: Plan, begin: int) -> tuple[Row, ...]:
    """The rows from one on, of a run that starts there.

    Raises:
        ValueError: a row from there on reads what rows before it predict.
    """
    if not stands_alone(plan.rows, begin):
        starts = [index for index in range(len(plan.rows)) if stands_alone(plan.rows, index)]
        raise ValueError(f"begin_index={begin}: from there on the plan reads predictions made before it; start at one "
                         f"of rows {starts}, or name a solver, which builds a new start")
    return plan.rows[begin:]


def _over_sample(rows: Sequence[Row], schedule: NoiseSchedule, network: str) -> tuple[Row, ...]:
    """Let rows read the predicted sample ``c x + d raw`` where they read the raw output."""
    changed = []
    for row in rows:
        (a, b), (c, d) = row.to_prediction, schedule.conversion(network, "sample", float(row.t))
        changed.append(replace(row, to_prediction=(a - b * c / d, b / d)))
    return tuple(changed)
