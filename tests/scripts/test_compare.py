"""The comparison with diffusers: what it has computed it does not compute again, and ours are measured as theirs."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

from samplers import sample
from samplers.converged import converged
from scoremodels.loaders import load

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "compare.py"))


def test_a_run_that_was_cut_goes_on_from_its_file(tmp_path: Path) -> None:
    file, runs = tmp_path / "results.jsonl", []

    def compute() -> dict[str, object]:
        runs.append(1)
        return {"rms": 0.5}

    first = SCRIPT["Results"](file).get(("m", 4), compute)
    again = SCRIPT["Results"](file).get(("m", 4), compute)
    assert first == again and len(runs) == 1 and again["key"] == "m/4"
    SCRIPT["Results"](file).get(("m", 5), compute)
    assert len(runs) == 2 and len(file.read_text().splitlines()) == 2


def test_a_plan_is_measured_on_the_reported_noises(tmp_path: Path) -> None:
    model = load("fashion-mnist-flow")
    name, plan = SCRIPT["plan_of"](model, "ipndm-2", "log-snr", 3)
    (row,) = SCRIPT["run_plans"](model, [(name, plan)], 4, tmp_path)["table"]
    exact = converged(model, 4, SCRIPT["REPORTED_SEED"]).samples
    rms = (sample(model, plan=plan, num=4, seed=SCRIPT["REPORTED_SEED"]).samples - exact).square().mean().sqrt()
    assert row["name"] == "ipndm-2 on log-snr" and row["rms"] == pytest.approx(float(rms), rel=1e-4)
    assert torch.isfinite(rms)


def test_calibration_and_report_share_no_noise() -> None:
    assert SCRIPT["REPORTED_SEED"] + 10_000 < SCRIPT["CALIBRATION_SEED"]
