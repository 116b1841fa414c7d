"""The reproduction of GoTube, end to end at its small size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_quick_run_makes_a_tight_tube_that_holds_fresh_samples(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "reproduce" / "gotube.py", "--quick", "--out", tmp_path / "out.json",
               "--figure", tmp_path / "figure.png"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    claims = json.loads((tmp_path / "out.json").read_text())["claims"]
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert {claim["reached"] for claim in claims} <= {True, None}
    (radius,) = [claim["ours"] for claim in claims if "5 evaluations" in claim["what"]]
    assert 0 < radius < 1
