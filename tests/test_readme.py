"""The README: its examples run and print what it says, and its tables are true of the tree."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", README, re.DOTALL)
"""Python blocks, each with the printed output that stands right below it, if any."""


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """Cells of all table rows below the headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_an_example_runs_and_prints_what_stands_below_it(index: int, tmp_path: Path) -> None:
    code, printed = EXAMPLES[index]
    paths = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    run = subprocess.run([sys.executable, "-c", paths + code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not printed or run.stdout == printed


def test_the_first_example_has_at_most_twelve_lines_and_shows_its_output() -> None:
    code, printed = EXAMPLES[0]
    assert len(code.splitlines()) <= 12 and "load(" in code and printed


def test_the_second_example_swaps_a_scheduler_in_at_most_eight_lines() -> None:
    code, _ = EXAMPLES[1]
    assert len(code.splitlines()) <= 8 and "pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config" in code


def test_both_examples_and_the_picture_come_before_the_first_heading() -> None:
    first_screen = README.split("\n## ")[0]
    assert first_screen.count("```python") == 2 and first_screen.count("![") == 1


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:|#)([^)]+)\)", README))
def test_a_linked_file_exists(target: str) -> None:
    assert (ROOT / target).exists()


def test_thirteen_systems_are_listed() -> None:
    assert [row[0] for row in rows(section("The thirteen source systems"))] == [str(n) for n in range(1, 14)]


@pytest.mark.parametrize("row", rows(section("The thirteen source systems")), ids=lambda row: row[1])
def test_a_system_is_planned_or_its_modules_and_its_script_exist(row: list[str]) -> None:
    assert len(row) == 7 and all(row)
    _, _, modules, _, _, _, command = row
    if command == "planned":
        return
    named, scripts = re.findall(r"`([^`]+)`", modules), re.findall(r"`(scripts/reproduce/[^`]+)`", command)
    assert named and scripts and all((ROOT / path).is_file() for path in (*named, *scripts))


def test_every_command_of_the_readme_is_one_of_the_programs() -> None:
    from typer.main import get_command

    from eval.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert {name for name in re.findall(r"^fewstep (\w+)", README, re.MULTILINE)} <= set(commands)


@pytest.mark.parametrize("folder", re.findall(r"^(\w+/) {2,}", section("Structure"), re.MULTILINE))
def test_a_folder_of_the_map_exists(folder: str) -> None:
    assert (ROOT / folder).is_dir()
