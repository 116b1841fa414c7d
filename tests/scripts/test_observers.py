"""The reproduction `observers.py`, end to end at its small size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def report(quick_run: Callable[[str], Any]) -> Any:
    """A quick run."""
    return quick_run("observers")


@pytest.mark.slow
def test_observers_know_more_than_nothing_after_a_moment_of_training(report: Any) -> None:
    errors = [claim["ours"] for claim in report.find("error, clean") if "equation" not in claim["what"]]
    assert len(errors) == 5 and all(error < 0.6 for error in errors)


@pytest.mark.slow
def test_the_kalman_filter_that_knows_the_plant_is_nearly_right(report: Any) -> None:
    anchors = [claim["anchor"] for claim in report.claims.values() if "Kalman" in claim["origin"]]
    assert len(anchors) == 8 and all(anchor < 0.05 for anchor in anchors)


@pytest.mark.slow
def test_the_error_by_noise_is_foreseen(report: Any) -> None:
    predicted = [claim for what, claim in report.claims.items() if "predicted" in what]
    assert predicted and all(claim["ours"] == pytest.approx(claim["anchor"], rel=0.1) for claim in predicted)
