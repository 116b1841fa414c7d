"""The reproduction `neural_ode.py`, end to end at its small size."""

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
    command = [sys.executable, ROOT / "scripts" / "reproduce" / "neural_ode.py", "--quick", "--out", out, "--figure",
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
def test_no_flow_has_a_better_likelihood_than_the_entropy_allows(report: dict[str, dict]) -> None:
    (gap,) = find(report, "KL(data")
    assert gap["ours"] > -4 * gap["error"]


@pytest.mark.slow
def test_evaluations_grow_as_the_tolerance_falls_and_the_classifier_is_smaller(report: dict[str, dict]) -> None:
    (loose,), (tight,) = find(report, "at the loosest"), find(report, "at the tightest")
    assert loose["ours"] < tight["ours"]
    (parameters,) = find(report, "parameters of the ODE")
    assert parameters["ours"] < parameters["anchor"] / 3


@pytest.mark.slow
def test_all_embedded_models_need_fewer_bits_than_bytes_have(report: dict[str, dict]) -> None:
    bits = find(report, "bits/dim")
    assert len(bits) == 3 and all(1.0 < claim["ours"] < 8.0 and math.isfinite(claim["error"]) for claim in bits)
