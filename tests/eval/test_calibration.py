"""The command that calibrates, and a sample by the plan it wrote."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from eval import cli
from odecore.plan import Plan


def test_a_calibrated_plan_is_written_and_sampled_from(tmp_path: Path) -> None:
    file, picture = tmp_path / "plan.json", tmp_path / "grid.png"
    result = CliRunner().invoke(cli.app, [
        "calibrate", "--model", "fashion-mnist-flow", "--nfe", "3", "--num", "4", "--solvers", "euler,ipndm-2",
        "--grids", "time,log-snr", "--out", str(file), "--cache", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "4 candidates" in result.output
    plan = Plan.from_json(file.read_text())
    result = CliRunner().invoke(cli.app, ["sample", "--model", "fashion-mnist-flow", "--plan", str(file), "--num", "4",
                                          "--out", str(picture)])
    assert result.exit_code == 0, result.output
    assert f"by {plan.about['solver']} on the {plan.about['grid']} grid, 3 NFE" in " ".join(result.output.split())
    assert picture.exists()


def test_several_numbers_of_evaluations_share_the_solution(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, [
        "calibrate", "--model", "fashion-mnist-flow", "--nfe", "2,3", "--num", "4", "--solvers", "euler",
        "--grids", "time", "--rounds", "0", "--cache", str(tmp_path), "--out", str(tmp_path / "new" / "plan.json")])
    assert result.exit_code == 0, result.output
    plans = [Plan.from_json((tmp_path / "new" / f"plan-{n}.json").read_text()) for n in (2, 3)]
    assert [plan.nfe for plan in plans] == [2, 3]
    assert [plan.about["calibration"]["evaluations"] for plan in plans] == [4 * 128 + 4 * 2, 4 * 3]


def test_a_file_that_holds_no_plan_is_refused(tmp_path: Path) -> None:
    for path, text in ((tmp_path / "none.json", None), (tmp_path / "other.json", "{}")):
        if text is not None:
            path.write_text(text)
        result = CliRunner().invoke(cli.app, ["sample", "--model", "fashion-mnist-flow", "--plan", str(path)])
        assert result.exit_code == 2
        assert "plan" in result.output
