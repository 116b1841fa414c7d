"""`fewstep fit` writes a plan that `fewstep sample` runs."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from eval import cli
from odecore.plan import Plan


def test_a_fitted_plan_is_written_and_says_how_good_it_is(tmp_path: Path) -> None:
    file = tmp_path / "new" / "plan.json"
    result = CliRunner().invoke(cli.app, [
        "fit", "--model", "fashion-mnist-flow", "--nfe", "2", "--start", "euler", "--num", "2", "--validation", "2",
        "--steps", "2", "--batch", "2", "--cache", str(tmp_path), "--out", str(file)])
    assert result.exit_code == 0, result.output
    assert "RMS to the solution on 2 other noises" in " ".join(result.output.split())
    plan = Plan.from_json(file.read_text())
    assert plan.nfe == 2 and plan.about["fit"]["model"] == "fashion-mnist-flow"


def test_a_wrong_argument_ends_with_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["fit", "--model", "fashion-mnist-flow", "--free", "all", "--out",
                                          str(tmp_path / "plan.json")])
    assert result.exit_code == 2 and "free" in result.output
