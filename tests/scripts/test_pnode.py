"""The reproduction `pnode.py`, end to end at its small size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="module")
def report(quick_run: Callable[[str], Any]) -> Any:
    """A quick run."""
    return quick_run("pnode")


@pytest.mark.slow
def test_the_discrete_adjoint_is_exact_where_the_continuous_one_is_not(report: Any) -> None:
    for claim in report.find("error of the gradient by the discrete adjoint"):
        assert claim["ours"] < 1e-12 and claim["anchor"] > 1e-5
    assert all(claim["ours"] < 1e-6 for claim in report.find("against finite differences"))


@pytest.mark.slow
def test_an_explicit_method_cannot_take_the_steps_of_an_implicit_one(report: Any) -> None:
    (implicit,), (explicit,) = report.find("true rates", "Crank"), report.find("true rates", "RK4")
    assert implicit["ours"] < 1e-3 and (explicit["ours"] is None or not math.isfinite(explicit["ours"]))


@pytest.mark.slow
def test_stored_states_bound_the_memory_and_leave_the_gradient_alone(report: Any) -> None:
    (few,), (plain,) = report.find("discrete, 10 states: MiB"), report.find("plain loop: MiB")
    assert few["ours"] < plain["ours"]
    assert all(claim["reached"] for claim in report.find("gradient of discrete"))
    assert all(claim["reached"] for claim in report.find("difference of the gradients"))
    (advances,) = report.find("advances")
    assert advances["ours"] == advances["anchor"]
