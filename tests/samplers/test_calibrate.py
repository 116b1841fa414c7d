"""Calibration: it finds the best of what it tries, says what it cost, and its plan runs anywhere."""

from __future__ import annotations

import pytest
import torch

from odecore.plan import Plan
from samplers import sample
from samplers.calibrate import calibrate
from scoremodels.loaders import load


def error(model: object, plan: Plan, seed: int) -> float:
    start = dict(num=16, seed=seed)
    exact = sample(model, solver="dpm-solver++-3m", grid="log-snr", nfe=100, end="clean", **start).samples
    return float((sample(model, plan=plan, **start).samples - exact).square().mean().sqrt())


def test_the_calibrated_plan_beats_the_default_on_fresh_noises() -> None:
    model = load("fashion-mnist-edm")
    plan = calibrate(model, nfe=6, num=8, solvers=["ddim", "dpm-solver++-2m", "ipndm-3"],
                     grids=["karras", "log-snr", "time"])
    assert plan.nfe == 6
    table = plan.about["calibration"]["table"]
    assert [row["rms"] for row in table] == sorted(row["rms"] for row in table)
    assert (plan.about["solver"], plan.about["grid"]) == (table[0]["solver"], table[0]["grid"])
    default = sample(model, num=1, solver="ddim", nfe=6).plan
    assert error(model, plan, 500) < 0.8 * error(model, default, 500)


def test_a_second_calibration_does_not_pay_for_the_solution_again() -> None:
    model = load("fashion-mnist-flow")
    few = dict(num=4, solvers=["euler"], grids=["time", "log-snr"])
    first, second = (calibrate(model, nfe=n, **few).about["calibration"] for n in (3, 3))
    assert first["evaluations"] - second["evaluations"] == 4 * 128
    assert second["evaluations"] == 3 * (2 * 2 + 2 * 4)


def test_the_plan_survives_json_with_its_table() -> None:
    model = load("fashion-mnist-flow")
    plan = calibrate(model, nfe=2, num=4, solvers=["euler"], grids=["time"])
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(("arguments", "match"), [
    (dict(num=2), "num="), (dict(solvers=["ddpm"]), "adds noise"), (dict(solvers=["nothing"]), "unknown"),
    (dict(grids=["leading"]), "none of the solvers")])
def test_what_cannot_be_tried_is_refused_before_any_evaluation(arguments: dict, match: str) -> None:
    model = load("fashion-mnist-flow")
    model.network = torch.nn.Module()
    with pytest.raises(ValueError, match=match):
        calibrate(model, nfe=5, **arguments)
