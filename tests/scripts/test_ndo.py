"""The reproduction `ndo.py` and the training of its operator, end to end at their small sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from odecore.learn.operators import DerivativeOperator

ROOT = Path(__file__).parents[2]


def run(*command: object) -> None:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The claims of a quick run by what they are about."""
    out = tmp_path_factory.mktemp("reproduction") / "out.json"
    run(ROOT / "scripts" / "reproduce" / "ndo.py", "--quick", "--out", out, "--figure", out.with_suffix(".png"))
    assert 0 < out.with_suffix(".png").stat().st_size < 120_000
    return {claim["what"]: claim for claim in json.loads(out.read_text())["claims"]}


@pytest.mark.slow
def test_the_operator_is_far_below_its_parabola_and_below_differences_under_noise(report: dict[str, dict]) -> None:
    rows = {what: claim for what, claim in report.items() if "error of derivatives" in what}
    assert len(rows) == 12
    for what, claim in rows.items():
        peers = dict(part.rsplit(" ", 1) for part in claim["anchor"].split("; "))
        assert claim["ours"] < 0.8 * float(peers["parabola"])
        if "noise 0%" not in what:
            assert claim["ours"] < 0.8 * float(peers["finite differences"])


@pytest.mark.slow
def test_forecasts_and_samplers_have_their_peers(report: dict[str, dict]) -> None:
    assert sum("error of forecasts" in what for what in report) == 2
    assert all("NODE" in claim["anchor"] for what, claim in report.items() if "error of forecasts" in what)
    assert sum("derivative by an operator" in what for what in report) == 1


@pytest.mark.slow
def test_an_operator_can_be_trained_again(tmp_path: Path) -> None:
    run(ROOT / "scripts" / "train" / "ndo.py", "--steps", 5, "--batch", 50, "--width", 8, "--out", tmp_path)
    assert DerivativeOperator.load(tmp_path).hidden == (8, 8, 8)
    assert "5 steps of 50 windows" in (tmp_path / "README.md").read_text()
