"""The reproductions of learned physics, at their small sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
def test_symmetries_by_construction_are_exact_and_the_others_are_not(quick_run: Callable[[str], Any]) -> None:
    violations = {what: value for what, value in quick_run("physics_informed").ours.items() if "violation" in what}
    assert [value is not None and value < 1e-6 for value in violations.values()] == [False, False, True]


@pytest.mark.slow
def test_a_composition_is_passive_however_little_it_was_trained(quick_run: Callable[[str], Any]) -> None:
    figures = quick_run("port_hamiltonian").ours
    assert all(value is not None and value < 1e-9 for what, value in figures.items()
               if "passivity" in what or "rise of H" in what)


@pytest.mark.slow
def test_a_learned_error_improves_the_forecast_of_a_wrong_model(quick_run: Callable[[str], Any]) -> None:
    figures = quick_run("model_error").ours
    alone, hybrid = figures["ε=0.05: f0 alone"], figures["ε=0.05: f0 + m"]
    assert alone is not None and hybrid is not None and hybrid > 5 * alone
    assert figures["x with noise, ensemble filter: b"] == pytest.approx(28.0, abs=1.0)


@pytest.mark.slow
def test_constraints_make_the_force_of_a_floor_miss_them_less(quick_run: Callable[[str], Any]) -> None:
    figures = quick_run("physics_informed_contact").ours
    for name in ("pushes", "off the floor"):
        free, kept = (figures[f"{level}: mean violation, {name}"] for level in ("structure", "structure + constraints"))
        assert free is not None and kept is not None and kept < free


@pytest.mark.slow
def test_the_two_scale_system_and_its_closures_run_to_the_end(quick_run: Callable[[str], Any]) -> None:
    figures = quick_run("model_error_lorenz96").ours
    assert all(value is not None and value >= 0 for value in figures.values())
