"""The reproduction of Taylor–Lagrange neural ODEs, at its small size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def report(quick_run: Callable[[str], Any]) -> Any:
    """A quick run."""
    return quick_run("taylor_lagrange")


@pytest.mark.slow
@pytest.mark.usefixtures("fashion_mnist_installed")
def test_learned_remainders_of_the_stiff_system_are_the_best_ones(report: Any) -> None:
    stiff = [claim for claim in report.claims.values() if claim["what"].startswith("stiff system")]
    assert len(stiff) == 6 and all(claim["reached"] for claim in stiff)


@pytest.mark.slow
@pytest.mark.usefixtures("fashion_mnist_installed")
def test_every_solver_trains_and_has_its_time(report: Any) -> None:
    for runs in report.saved["training"].values():
        assert runs[0]["solver"] == "taylor-lagrange" and len(runs) >= 3
        for run in runs:
            assert run["per_step"] > 0 and math.isfinite(run["quality"][-1]) and run["cost"] > 1


@pytest.mark.slow
@pytest.mark.usefixtures("fashion_mnist_installed")
def test_the_sampler_stands_beside_its_peers(report: Any) -> None:
    compared = [claim for claim in report.claims.values() if "error of a trajectory" in claim["what"]]
    assert len(compared) == 1 and all(claim["anchor"] > 0 and claim["ours"] > 0 for claim in compared)
