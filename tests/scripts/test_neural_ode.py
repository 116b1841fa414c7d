"""The reproduction `neural_ode.py`, end to end at its small size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def report(quick_run: Callable[[str], Any]) -> Any:
    """A quick run."""
    return quick_run("neural_ode")


@pytest.mark.slow
def test_no_flow_has_a_better_likelihood_than_the_entropy_allows(report: Any) -> None:
    (gap,) = report.find("KL(data")
    assert gap["ours"] > -4 * gap["error"]


@pytest.mark.slow
def test_evaluations_grow_as_the_tolerance_falls_and_the_classifier_is_smaller(report: Any) -> None:
    (loose,), (tight,) = report.find("at the loosest"), report.find("at the tightest")
    assert loose["ours"] < tight["ours"]
    (parameters,) = report.find("parameters of the ODE")
    assert parameters["ours"] < parameters["anchor"] / 3


@pytest.mark.slow
def test_all_embedded_models_need_fewer_bits_than_bytes_have(report: Any) -> None:
    bits = report.find("bits/dim")
    assert len(bits) == 3 and all(1.0 < claim["ours"] < 8.0 and math.isfinite(claim["error"]) for claim in bits)
