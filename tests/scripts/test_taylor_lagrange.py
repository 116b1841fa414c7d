"""The reproduction of Taylor–Lagrange neural ODEs, at its small size."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eval.data import DEBIAN_FOLDER

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the script saves."""
    if not (DEBIAN_FOLDER.exists() or "FASHION_MNIST" in os.environ):
        pytest.skip("Fashion-MNIST is not installed")
    folder = tmp_path_factory.mktemp("taylor-lagrange")
    command = [sys.executable, ROOT / "scripts" / "reproduce" / "taylor_lagrange.py", "--quick", "--out",
               folder / "out.json", "--figure", folder / "figure.png"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert (folder / "figure.png").stat().st_size > 1000
    return json.loads((folder / "out.json").read_text())


@pytest.mark.slow
def test_learned_remainders_of_the_stiff_system_are_the_best_ones(report: dict) -> None:
    stiff = [claim for claim in report["claims"] if claim["what"].startswith("stiff system")]
    assert len(stiff) == 6 and all(claim["reached"] for claim in stiff)


@pytest.mark.slow
def test_every_solver_trains_and_has_its_time(report: dict) -> None:
    for runs in report["training"].values():
        assert runs[0]["solver"] == "taylor-lagrange" and len(runs) >= 3
        for run in runs:
            assert run["per_step"] > 0 and math.isfinite(run["quality"][-1]) and run["cost"] > 1


@pytest.mark.slow
def test_the_sampler_stands_beside_its_peers(report: dict) -> None:
    compared = [claim for claim in report["claims"] if "error of a trajectory" in claim["what"]]
    assert len(compared) == 1 and all(claim["anchor"] > 0 and claim["ours"] > 0 for claim in compared)
