"""The reproduction `pnode.py`, end to end at its small size."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """The claims of a quick run by what they are about."""
    out = tmp_path_factory.mktemp("reproduction") / "out.json"
    command = [sys.executable, ROOT / "scripts" / "reproduce" / "pnode.py", "--quick", "--out", out, "--figure",
               out.with_suffix(".png")]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert 0 < out.with_suffix(".png").stat().st_size < 120_000
    return {claim["what"]: claim for claim in json.loads(out.read_text())["claims"]}


def find(report: dict[str, dict], *words: str) -> list[dict]:
    """The claims whose names hold all the words, one at least."""
    found = [claim for what, claim in report.items() if all(word in what for word in words)]
    assert found, f"no claim with {words}"
    return found


@pytest.mark.slow
def test_the_discrete_adjoint_is_exact_where_the_continuous_one_is_not(report: dict[str, dict]) -> None:
    for claim in find(report, "error of the gradient by the discrete adjoint"):
        assert claim["ours"] < 1e-12 and claim["anchor"] > 1e-5
    assert all(claim["ours"] < 1e-6 for claim in find(report, "against finite differences"))


@pytest.mark.slow
def test_an_explicit_method_cannot_take_the_steps_of_an_implicit_one(report: dict[str, dict]) -> None:
    (implicit,), (explicit,) = find(report, "true rates", "Crank"), find(report, "true rates", "RK4")
    assert implicit["ours"] < 1e-3 and (explicit["ours"] is None or not math.isfinite(explicit["ours"]))


@pytest.mark.slow
def test_stored_states_bound_the_memory_and_leave_the_gradient_alone(report: dict[str, dict]) -> None:
    (few,), (plain,) = find(report, "discrete, 10 states: MiB"), find(report, "plain loop: MiB")
    assert few["ours"] < plain["ours"]
    assert all(claim["reached"] for claim in find(report, "gradient of discrete"))
    assert all(claim["reached"] for claim in find(report, "difference of the gradients"))
    (advances,) = find(report, "advances")
    assert advances["ours"] == advances["anchor"]
