"""The comparison of learned plans, at its small size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.data import DEBIAN_FOLDER

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_fitted_plan_ends_nearer_to_the_solution_than_a_calibrated_one(tmp_path: Path) -> None:
    if not (DEBIAN_FOLDER.exists() or "FASHION_MNIST" in os.environ):
        pytest.skip("Fashion-MNIST is not installed")
    command = [sys.executable, ROOT / "scripts" / "reproduce" / "learned_plans.py", "--quick", "--out",
               tmp_path / "out.json", "--figure", tmp_path / "figure.png"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figure.png").stat().st_size > 1000
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["quick"] and report["claims"]
    rows = report["table"]["fashion-mnist-edm"]
    assert rows["fitted, 4"]["rms"][0] < rows["training-free, 4"]["rms"][0]
