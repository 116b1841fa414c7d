"""The command `fewstep search`: it writes a plan, says what it found, and refuses what it does not know."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from eval.cli import app
from samplers.plan_files import read_plan


def test_the_command_writes_a_plan_with_its_evidence(tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    run = CliRunner().invoke(app, ["search", "-m", "fashion-mnist-flow", "--solver", "ddim", "--nfe", "2", "--num", "4",
                                   "--method", "refinement", "--grids", "time", "--device", "cpu", "--out", str(out)])
    assert run.exit_code == 0, run.output
    plan = read_plan(out)
    assert plan.nfe == 2 and plan.about["solver"] == "ddim" and plan.about["search"]["fixed"] == "time"
    assert f"{plan.about['search']['validation']['fixed']:.4f}" in run.output


def test_an_unknown_method_is_refused(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["search", "-m", "fashion-mnist-flow", "--method", "luck",
                                   "--out", str(tmp_path / "plan.json")])
    assert run.exit_code == 2 and "method='luck' is unknown" in run.output
