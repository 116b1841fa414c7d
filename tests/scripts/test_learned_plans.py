"""The comparison of learned plans, at its small size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.usefixtures("fashion_mnist_installed")
def test_a_fitted_plan_ends_nearer_to_the_solution_than_a_calibrated_one(quick_run: Callable[[str], Any]) -> None:
    run = quick_run("learned_plans")
    assert run.saved["quick"] and run.claims
    rows = run.saved["table"]["fashion-mnist-edm"]
    assert rows["fitted, 4"]["rms"][0] < rows["training-free, 4"]["rms"][0]
