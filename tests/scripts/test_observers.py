"""The reproduction `observers.py`, end to end at its small size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The claims of a quick run by what they are about."""
    out = tmp_path_factory.mktemp("reproduction") / "out.json"
    command = [sys.executable, ROOT / "scripts" / "reproduce" / "observers.py", "--quick", "--out", out, "--figure",
               out.with_suffix(".png")]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert 0 < out.with_suffix(".png").stat().st_size < 120_000
    return {claim["what"]: claim for claim in json.loads(out.read_text())["claims"]}


@pytest.mark.slow
def test_observers_know_more_than_nothing_after_a_moment_of_training(report: dict[str, dict]) -> None:
    errors = [claim["ours"] for what, claim in report.items() if "error, clean" in what and "equation" not in what]
    assert len(errors) == 5 and all(error < 0.6 for error in errors)


@pytest.mark.slow
def test_the_kalman_filter_that_knows_the_plant_is_nearly_right(report: dict[str, dict]) -> None:
    anchors = [claim["anchor"] for claim in report.values() if "Kalman" in claim["origin"]]
    assert len(anchors) == 8 and all(anchor < 0.05 for anchor in anchors)


@pytest.mark.slow
def test_the_error_by_noise_is_foreseen(report: dict[str, dict]) -> None:
    predicted = [claim for what, claim in report.items() if "predicted" in what]
    assert predicted and all(claim["ours"] == pytest.approx(claim["anchor"], rel=0.1) for claim in predicted)
