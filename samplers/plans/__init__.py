"""Plans that were fitted to the embedded models, by scripts/fit_plans.py."""

from __future__ import annotations

from pathlib import Path

from odecore.plan import Plan
from samplers.plan_files import check_made_for, read_plan
from scoremodels.model import ScoreModel

FOLDER = Path(__file__).parent
"""Where they lie."""


def file_of(name: str, nfe: int) -> str:
    """Name of the file with the plan of an embedded model."""
    return f"{name}-{nfe}.json"


def fitted(model: ScoreModel, nfe: int) -> Plan:
    """Read the plan that was fitted to an embedded model, by the model's name.

    Args:
        model: such a model.
        nfe: evaluations of the plan.

    Raises:
        ValueError: there is no such plan, or the model has another schedule or prediction than that which it is for.
    """
    path = FOLDER / file_of(model.name, nfe)
    if not path.is_file():
        there = sorted(p.stem for p in FOLDER.glob("*.json"))
        raise ValueError(f"there is no fitted plan for model {model.name!r} at nfe={nfe}: there are "
                         f"{', '.join(there)}; fit one with samplers.fit_plan.fit_plan or `fewstep fit`")
    plan = read_plan(path)
    check_made_for(plan, model.schedule, model.prediction)
    return plan
