"""The reproduction of GoTube, end to end at its small size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
def test_the_quick_run_makes_a_tight_tube_that_holds_fresh_samples(quick_run: Callable[[str], Any]) -> None:
    run = quick_run("gotube")
    assert {claim["reached"] for claim in run.claims.values()} <= {True, None}
    (spread,) = run.find("5 evaluations")
    assert 0 < spread["ours"] < 1
