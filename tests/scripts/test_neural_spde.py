"""The reproductions of Neural SPDEs and of sampling functions, end to end at a small size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(name: str, folder: Path, *more: str) -> dict[str, float]:
    """The figures of a script's quick run."""
    command = [sys.executable, ROOT / "scripts" / "reproduce" / f"{name}.py", "--quick", "--out", folder / "out.json",
               "--figure", folder / "out.png", *more]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert (folder / "out.png").stat().st_size < 120_000
    return {claim["what"]: claim["ours"] for claim in json.loads((folder / "out.json").read_text())["claims"]}


@pytest.mark.slow
def test_neural_spdes_learn_and_know_no_grid(tmp_path: Path) -> None:
    figures = run("neural_spde", tmp_path)
    assert figures["Ginzburg–Landau, 128 points: test error, learned symbol and plan"] < 0.25
    assert figures["zero-shot error over that at 128 points"] < 1.1
    assert figures["Picard, 12 iterations: difference from the plan, relative"] < 1e-3
    assert figures["Navier–Stokes, 16 x 16 points: test error"] < 2 * figures["error of no change at all"]


@pytest.mark.slow
def test_functions_are_sampled_alike_on_every_grid(tmp_path: Path) -> None:
    figures = run("function_space", tmp_path)
    same = figures["difference of 28 x 28 from 16 x 16 samples, relative"]
    assert same < 0.5 * figures["difference between samples of different seeds"]
