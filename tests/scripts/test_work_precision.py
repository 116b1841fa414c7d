"""The work-precision script on small problems: all methods reach what they are asked for, and the picture is drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict], Path]:
    """What the script prints, saves and draws."""
    folder = tmp_path_factory.mktemp("work_precision")
    command = [sys.executable, ROOT / "scripts" / "work_precision.py", "--quick", "--out", folder / "out.json",
               "--figure", folder / "out.png"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "out.json").read_text()), folder / "out.png"


@pytest.mark.slow
def test_every_method_reaches_errors_near_its_tolerance(run: tuple[str, list[dict], Path]) -> None:
    assert {point["problem"] for point in run[1]} == {"Robertson", "HIRES", "Van der Pol", "Kuramoto–Sivashinsky"}
    for point in run[1]:
        assert point["error"] <= 50 * point["rtol"] and point["nfe"] > 0, point


@pytest.mark.slow
def test_our_radau_spends_at_most_three_times_the_evaluations_of_scipys(run: tuple[str, list[dict], Path]) -> None:
    spent = {(p["problem"], p["method"], p["rtol"]): p["nfe"] for p in run[1]}
    ours = {key: nfe for key, nfe in spent.items() if key[1] == "Radau 5"}
    assert len(ours) == 6
    for (problem, _, rtol), nfe in ours.items():
        assert nfe <= 3 * spent[problem, "SciPy Radau", rtol]


@pytest.mark.slow
def test_the_table_and_the_picture_are_there(run: tuple[str, list[dict], Path]) -> None:
    assert run[0].count("least for an error of") == 4 and 0 < run[2].stat().st_size <= 150_000
