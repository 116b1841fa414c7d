"""The comparison of searched with fixed grids, end to end at its small size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from odecore.plan import Plan

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_small_run_searches_draws_and_saves_a_plan(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "reproduce" / "searched_grids.py", "--quick",
               "--out", tmp_path / "out.json", "--figure", tmp_path / "figure.png"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    (cell,) = json.loads((tmp_path / "out.json").read_text())["cells"]
    plan = Plan.from_json(cell["plan"])
    assert plan.nfe == cell["nfe"] == 4 and cell["searched"] > 0.0
    assert (tmp_path / "figure.png").stat().st_size > 10_000
