"""The reproductions of Neural SPDEs and of sampling functions, end to end at a small size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
def test_neural_spdes_learn_and_know_no_grid(quick_run: Callable[[str], Any]) -> None:
    figures = quick_run("neural_spde").ours
    assert figures["Ginzburg–Landau, 128 points: test error, learned symbol and plan"] < 0.25
    assert figures["zero-shot error over that at 128 points"] < 1.1
    assert figures["Picard, 12 iterations: difference from the plan, relative"] < 1e-3
    assert figures["Navier–Stokes, 16 x 16 points: test error"] < 2 * figures["error of no change at all"]


@pytest.mark.slow
def test_functions_are_sampled_alike_on_every_grid(quick_run: Callable[[str], Any]) -> None:
    figures = quick_run("function_space").ours
    same = figures["difference of 28 x 28 from 16 x 16 samples, relative"]
    assert same < 0.5 * figures["difference between samples of different seeds"]
