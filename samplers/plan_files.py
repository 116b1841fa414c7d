"""Plans in files, and whether a plan was made for a model."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from odecore.plan import Plan
from scoremodels.schedule import NoiseSchedule, schedule_from_config

_TOLERANCE = 1e-3
"""How far α/(α + σ) of two schedules may be apart at the plan's times: diffusers keeps its own in float32."""


def read_plan(path: str | PathLike[str]) -> Plan:
    """Read a plan that ``Plan.to_json`` wrote.

    Raises:
        ValueError: there is no such file, or it holds no plan.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"plan={str(path)!r} is no file: write one with Plan.to_json, `fewstep calibrate` or "
                         "`fewstep fit`")
    return Plan.from_json(file.read_text(encoding="utf-8"))


def check_made_for(plan: Plan, schedule: NoiseSchedule, network: str) -> None:
    """Refuse a plan that was made for another schedule or another kind of prediction.

    Raises:
        ValueError: so it is, as far as ``plan.about`` tells.
    """
    about: Mapping[str, Any] = plan.about
    times = np.array([float(row.t) for row in plan.rows])
    if times.max() > schedule.t_last or times.min() < schedule.t_clean:
        raise ValueError(f"plan evaluates the network at times from {times.max()} to {times.min()}, and the schedule "
                         f"of this model has {schedule.t_clean} to {schedule.t_last}: take a plan made for this model")
    if "schedule" in about:
        ours, its = (np.asarray(s.alpha(times)) / (np.asarray(s.alpha(times)) + np.asarray(s.sigma(times)))
                     for s in (schedule, schedule_from_config(about["schedule"])))
        if not np.abs(ours - its).max() <= _TOLERANCE:
            raise ValueError("plan was made for another noise schedule than that of this model: take a plan made for "
                             f"this model; the plan's is {about['schedule'].get('kind')!r}")
    if about.get("prediction", network) != network:
        raise ValueError(f"plan was made for a network that predicts {about['prediction']!r}, and this model's "
                         f"predicts {network!r}: take a plan made for this model")
