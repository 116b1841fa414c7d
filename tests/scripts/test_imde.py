"""The reproduction of inverse modified equations, end to end at its small size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_quick_run_prints_every_kind_of_figure_and_draws(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "reproduce" / "imde.py", "--quick", "--out", tmp_path / "out.json",
               "--figure", tmp_path / "figure.png"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    claims = {claim["what"]: claim["ours"] for claim in json.loads((tmp_path / "out.json").read_text())["claims"]}
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    (ratio,) = [value for what, value in claims.items() if "|net - f_h| / |net - f|" in what]
    assert ratio < 1  # even a short training comes nearer to f_h than to f
    (through_euler,) = [value for what, value in claims.items() if "through Euler" in what]
    (through_midpoint,) = [value for what, value in claims.items() if "through implicit midpoint" in what]
    assert abs(through_midpoint) < abs(through_euler)
