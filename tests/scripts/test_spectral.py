"""The spectral script on small grids: orders, an independent solution, and the picture."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from odecore.plan import execute

PATH = Path(__file__).parents[2] / "scripts" / "spectral.py"


@pytest.fixture(scope="module")
def spectral() -> ModuleType:
    specification = importlib.util.spec_from_file_location("spectral", PATH)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["spectral"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "order"), [("Krogstad", 4), ("Hochbruck–Ostermann", 4), ("ETD-RK2", 2)])
def test_a_wave_on_a_line_is_solved_at_the_order_of_the_scheme(spectral: ModuleType, name: str, order: int) -> None:
    equation = spectral.kuramoto_sivashinsky(32, end=2.0, steps=(16, 23, 32, 45))
    errors = [error for _, error in spectral.measure(equation, [name], 180)[name]]
    assert abs(-np.polyfit(np.log(equation.steps), np.log(errors), 1)[0] - order) < 0.15


@pytest.mark.parametrize("name", ["Krogstad", "exponential Adams 4"])
def test_a_flow_in_the_plane_is_solved_at_the_order_of_the_scheme(spectral: ModuleType, name: str) -> None:
    equation = spectral.navier_stokes(16, end=1.0, steps=(32, 45, 64, 91))
    errors = [error for _, error in spectral.measure(equation, [name], 360)[name]]
    assert abs(-np.polyfit(np.log(equation.steps), np.log(errors), 1)[0] - 4) < 0.15


@pytest.mark.parametrize("make", ["kuramoto_sivashinsky", "swift_hohenberg", "navier_stokes"])
def test_plans_agree_with_scipy(spectral: ModuleType, make: str) -> None:
    equation = getattr(spectral, make)(16, end=0.5)
    plan = spectral.compile_plan(equation, spectral.SCHEMES["Krogstad"][1], 100)
    with torch.no_grad():
        planned = execute(plan, equation.nonlinear, equation.start)

    def right(t: float, y: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(y.copy()).reshape(equation.start.shape)
        return (equation.symbol * state + equation.nonlinear(state, t)).flatten().numpy()

    solved = solve_ivp(right, (0, 0.5), equation.start.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-9)
    wanted = torch.from_numpy(solved.y[:, -1].copy()).reshape(equation.start.shape)
    assert (planned - wanted).norm() <= 1e-6 * wanted.norm()


def test_the_picture_is_drawn(spectral: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectral, "history", lambda equation, steps, end: equation.physical(equation.start))
    monkeypatch.setattr(spectral, "PICTURES", {
        name: (lambda equation: (torch.zeros(4, 4), "u", (0, 1, 0, 1))) for name in spectral.PICTURES})
    equations = [spectral.swift_hohenberg(8, end=0.1, steps=(2, 4, 8))]
    found = {equations[0].name: spectral.measure(equations[0], ["Krogstad"], 16)}
    spectral.print_table(equations[0], found[equations[0].name])
    spectral.draw([*equations] * 2, found, tmp_path / "new" / "spectral.png")
    assert (tmp_path / "new" / "spectral.png").stat().st_size > 10_000
