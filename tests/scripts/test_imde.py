"""The reproduction of inverse modified equations, end to end at its small size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
def test_what_is_learned_is_nearer_to_theory_than_to_the_field(quick_run: Callable[[str], Any]) -> None:
    run = quick_run("imde")
    (ratio,) = run.find("|net - f_h| / |net - f|")
    assert ratio["ours"] < 1
    (euler,), (midpoint,) = run.find("through Euler"), run.find("through implicit midpoint")
    assert abs(midpoint["ours"]) < abs(euler["ours"])
