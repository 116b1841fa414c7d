"""Calibration: it finds the best of what it tries, says what it cost, and its plan runs anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from odecore.plan import Plan
from samplers import sample
from samplers.calibrate import FIRST, calibrate
from samplers.halving import LEAST
from scoremodels.analytic import MixtureModel
from scoremodels.loaders import load
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM, RectifiedFlow

SOLVERS = ["ddim", "dpm-solver++-2m", "ipndm-3", "ipndm-3+afs"]


def mixture(schedule: EDM | RectifiedFlow) -> ScoreModel:
    means = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(3))
    return MixtureModel(means, torch.full((5,), 0.2), torch.ones(5), schedule)


def error(model: ScoreModel, plan: Plan, seed: int) -> float:
    exact = sample(model, num=64, seed=seed, solver="dpm-solver++-3m", grid="log-snr", nfe=100, end="clean").samples
    return float((sample(model, plan=plan, num=64, seed=seed).samples - exact).square().mean().sqrt())


def test_the_calibrated_plan_beats_the_default_on_fresh_noises() -> None:
    model = mixture(EDM())
    plan = calibrate(model, nfe=6, num=32, solvers=SOLVERS, grids=["karras", "log-snr", "time"])
    assert plan.nfe == 6
    table = plan.about["calibration"]["table"]
    assert [row["rms"] for row in table] == sorted(row["rms"] for row in table)
    assert plan.about["solver"] in {row["solver"] for row in table}
    default = sample(model, num=1, nfe=6).plan
    assert error(model, plan, 500) < 0.8 * error(model, default, 500)


def test_the_score_is_the_distance_to_the_solution_with_the_labels_given() -> None:
    model, labels = load("fashion-mnist-edm"), torch.tensor([1, 7, 7, 2])
    plan = calibrate(model, nfe=4, num=4, seed=70, solvers=["ddim"], grids=["karras"], condition=labels, rounds=0)
    start = dict(num=4, seed=70, condition=labels)
    exact = sample(model, solver="dpm-solver++-3m", grid="log-snr", nfe=128, end="clean", **start).samples
    rms = (sample(model, plan=plan, **start).samples - exact).square().mean().sqrt().item()
    assert plan.about["calibration"]["table"][0]["rms"] == pytest.approx(rms, rel=1e-5)


def test_a_second_calibration_does_not_pay_for_the_solution_again(tmp_path: Path) -> None:
    few = dict(num=4, solvers=["euler", "ipndm-2"], grids=["time", "log-snr"], rounds=0, cache=tmp_path)
    model = mixture(RectifiedFlow())
    first, second, other = (calibrate(m, nfe=3, **few).about["calibration"] for m in (
        model, model, mixture(RectifiedFlow())))
    assert first["evaluations"] - second["evaluations"] == 4 * 128
    assert second["evaluations"] == 3 * 4 * 4, "four candidates, each of which meets each noise once"
    assert other["evaluations"] == second["evaluations"], "found on disk"


def test_only_the_better_solvers_meet_every_grid_and_only_the_better_pairs_all_noises() -> None:
    model, seen = mixture(RectifiedFlow()), []
    solvers = [f"{name}-{k}" for name in ("ipndm", "lms", "deis", "flow-ab") for k in (2, 3, 4)]
    calibrate(model, nfe=4, num=4, solvers=solvers, grids=["time", "karras", "arctan"],
              progress=lambda name, done, total: seen.append((name, total)))
    # Of the solvers of the same order some are the same plan with so few evaluations.
    (first, tried), (second, further), (third, middle), (fourth, last) = dict(seen).items()
    assert (first, second, third, fourth) == ("solvers", "grids", "2 noises", "4 noises") and FIRST == 1
    assert further == LEAST and middle == last == LEAST < tried


def test_moving_the_times_lowers_the_distance_that_it_says() -> None:
    model = mixture(EDM())
    few = dict(nfe=5, num=128, solvers=["ddim", "dpm-solver++-2m"], grids=["karras", "log-snr"])
    named, moved = (calibrate(model, rounds=rounds, **few) for rounds in (0, 3))
    (before, after) = (plan.about["calibration"] for plan in (named, moved))
    assert (before["gain"], before["rms"]) == (0.0, before["table"][0]["rms"])
    assert after["gain"] > 0.1 and str(moved.about["grid"]).endswith(", moved")
    assert after["rms"] == pytest.approx((1.0 - after["gain"]) * before["rms"])
    assert error(model, moved, 500) < error(model, named, 500)


def test_the_plan_survives_json_with_its_table() -> None:
    model = mixture(RectifiedFlow())
    plan = calibrate(model, nfe=2, num=4, solvers=["euler"], grids=["time"])
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(("arguments", "match"), [
    (dict(num=2), "num="), (dict(rounds=-1), "rounds="),
    (dict(solvers=["ddpm"]), "adds noise"), (dict(solvers=["nothing"]), "unknown"),
    (dict(grids=["nowhere"]), "unknown"), (dict(grids=["leading"]), "none of the solvers")])
def test_what_cannot_be_tried_is_refused_before_any_evaluation(arguments: dict, match: str) -> None:
    model = load("fashion-mnist-flow")
    model.network = torch.nn.Module()
    with pytest.raises(ValueError, match=match):
        calibrate(model, nfe=5, **arguments)
