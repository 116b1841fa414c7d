from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce" / "claims.py"


@pytest.fixture(scope="module")
def claims() -> ModuleType:
    spec = importlib.util.spec_from_file_location("claims", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["claims"] = module
    spec.loader.exec_module(module)
    return module


def test_a_goal_is_reached_from_its_own_side(claims: ModuleType) -> None:
    assert claims.Claim("error", 1.0, goal=1.0).reached is True
    assert claims.Claim("error", 1.1, goal=1.0).reached is False
    assert claims.Claim("speed", 1.1, goal=1.0, more=True).reached is True
    assert claims.Claim("error", math.nan, goal=1.0).reached is False
    assert claims.Claim("error", 1.0).reached is None


def test_a_run_is_saved_with_what_made_it(claims: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = claims.parser("x").parse_args(["--quick", "--out", str(tmp_path / "out.json")])
    made = [claims.Claim("an error", math.inf, 0.5, "the abstract", goal=1.0)]
    claims.print_claims("Title", made)
    claims.write(arguments, made, more=[1.0])
    printed = capsys.readouterr().out
    assert "missed" in printed and "the abstract" in printed and "quick" in printed
    saved = json.loads((tmp_path / "out.json").read_text())
    assert saved["claims"][0]["ours"] is None and saved["claims"][0]["reached"] is False
    assert saved["more"] == [1.0] and saved["torch"]
