"""The comparison of searched with fixed grids, end to end at its small size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from odecore.plan import Plan


@pytest.mark.slow
def test_the_small_run_searches_and_saves_a_plan(quick_run: Callable[[str], Any]) -> None:
    (cell,) = quick_run("searched_grids").saved["cells"]
    plan = Plan.from_json(cell["plan"])
    assert plan.nfe == cell["nfe"] == 4 and cell["searched"] > 0.0
