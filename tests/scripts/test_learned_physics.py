"""The reproductions of learned physics, at their small sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def ours(name: str, folder: Path) -> dict[str, float | None]:
    """The figures that a script saves."""
    command = [sys.executable, str(ROOT / "scripts" / "reproduce" / f"{name}.py"), "--quick", "--out",
               str(folder / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return {claim["what"]: claim["ours"] for claim in json.loads((folder / "out.json").read_text())["claims"]}


@pytest.mark.slow
def test_symmetries_by_construction_are_exact_and_the_others_are_not(tmp_path: Path) -> None:
    violations = {what: value for what, value in ours("physics_informed", tmp_path).items() if "violation" in what}
    assert [value is not None and value < 1e-6 for value in violations.values()] == [False, False, True]


@pytest.mark.slow
def test_a_composition_is_passive_however_little_it_was_trained(tmp_path: Path) -> None:
    figures = ours("port_hamiltonian", tmp_path)
    assert all(value is not None and value < 1e-9 for what, value in figures.items()
               if "passivity" in what or "rise of H" in what)


@pytest.mark.slow
def test_a_learned_error_improves_the_forecast_of_a_wrong_model(tmp_path: Path) -> None:
    figures = ours("model_error", tmp_path)
    alone, hybrid = figures["ε=0.05: f0 alone"], figures["ε=0.05: f0 + m"]
    assert alone is not None and hybrid is not None and hybrid > 5 * alone
    assert figures["x with noise, ensemble filter: b"] == pytest.approx(28.0, abs=1.0)


@pytest.mark.slow
def test_constraints_make_the_force_of_a_floor_miss_them_less(tmp_path: Path) -> None:
    figures = ours("physics_informed_contact", tmp_path)
    for name in ("pushes", "off the floor"):
        free, kept = (figures[f"{level}: mean violation, {name}"] for level in ("structure", "structure + constraints"))
        assert free is not None and kept is not None and kept < free


@pytest.mark.slow
def test_the_two_scale_system_and_its_closures_run_to_the_end(tmp_path: Path) -> None:
    figures = ours("model_error_lorenz96", tmp_path)
    assert all(value is not None and value >= 0 for value in figures.values())
