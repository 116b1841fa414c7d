"""The reproduction `ndo.py` and the training of its operator, end to end at their small sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from odecore.learn.operators import DerivativeOperator


@pytest.fixture(scope="module")
def report(quick_run: Callable[[str], Any]) -> Any:
    """A quick run."""
    return quick_run("ndo")


@pytest.mark.slow
def test_the_operator_is_far_below_its_parabola_and_below_differences_under_noise(report: Any) -> None:
    rows = {what: claim for what, claim in report.claims.items() if "error of derivatives" in what}
    assert len(rows) == 12
    for what, claim in rows.items():
        peers = dict(part.rsplit(" ", 1) for part in claim["anchor"].split("; "))
        assert claim["ours"] < 0.8 * float(peers["parabola"])
        if "noise 0%" not in what:
            assert claim["ours"] < 0.8 * float(peers["finite differences"])


@pytest.mark.slow
def test_forecasts_and_samplers_have_their_peers(report: Any) -> None:
    assert sum("error of forecasts" in what for what in report.claims) == 2
    assert all("NODE" in claim["anchor"] for what, claim in report.claims.items() if "error of forecasts" in what)
    assert sum("derivative by an operator" in what for what in report.claims) == 1


@pytest.mark.slow
def test_an_operator_can_be_trained_again(run_script: Callable[..., str], tmp_path: Path) -> None:
    run_script("scripts/train/ndo.py", "--steps", 5, "--batch", 50, "--width", 8, "--out", tmp_path)
    assert DerivativeOperator.load(tmp_path).hidden == (8, 8, 8)
    assert "5 steps of 50 windows" in (tmp_path / "README.md").read_text()
