"""Statistics as data: what is refused, what lies between knots, and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from samplers.model_statistics import ModelStatistics
from samplers.registry import solver_named
from scoremodels.analytic import GaussianModel
from scoremodels.schedule import EDM


def some() -> ModelStatistics:
    values = torch.arange(6.0).reshape(3, 2)
    return ModelStatistics(torch.tensor([-1.0, 0.0, 2.0]), values, -values, values**2, {"model": "none"})


def test_values_are_linear_between_the_knots() -> None:
    linear, slope, constant = some().at(np.array([-1.0, 1.0, 2.0]))
    torch.testing.assert_close(linear, torch.tensor([[0.0, 1.0], [3.0, 4.0], [4.0, 5.0]]).double())
    torch.testing.assert_close(slope, -linear)
    assert constant[1].tolist() == [10.0, 17.0]


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    some().save(tmp_path / "s.safetensors")
    again = ModelStatistics.load(tmp_path / "s.safetensors")
    assert again.about == {"model": "none"}
    for name in ("log_snr", "linear", "slope", "constant"):
        assert torch.equal(getattr(again, name), getattr(some(), name))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    knots, values = torch.tensor([0.0, 1.0]), torch.zeros(2, 3)
    for wrong in ((knots.flip(0), values, values, values), (knots[:1], values[:1], values[:1], values[:1]),
                  (knots, values, values[:, :2], values), (knots, values, values, values / 0.0)):
        with pytest.raises(ValueError, match="log_snr|shape|non-finite"):
            ModelStatistics(*wrong)
    with pytest.raises(ValueError, match="whole way"):
        some().at(np.array([3.0]))
    (tmp_path / "x").write_text("nothing")
    for name in ("x", "missing"):
        with pytest.raises(ValueError, match="holds no model statistics"):
            ModelStatistics.load(tmp_path / name)


def test_statistics_of_another_model_are_refused(tmp_path: Path) -> None:
    model = GaussianModel(torch.zeros(2), torch.eye(2), EDM())
    about = {"model": model.name, "schedule": EDM().to_config()}
    replace(some(), about=about).save(tmp_path / "s.safetensors")
    assert ModelStatistics.load(tmp_path / "s.safetensors", model).about == about
    other = GaussianModel(torch.zeros(2), torch.eye(2), EDM(0.1, 10.0))
    wide = GaussianModel(torch.zeros(3), torch.eye(3), EDM())
    for wrong, word in ((other, "schedule"), (wide, "shape")):
        with pytest.raises(ValueError, match=word):
            ModelStatistics.load(tmp_path / "s.safetensors", wrong)
    with pytest.raises(ValueError, match="model is"):
        replace(some(), about={"model": "another"}).check(EDM(), name="this")


def test_a_name_with_a_file_is_the_solver_with_its_statistics(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    some().save(path)
    solver = solver_named(f"dpm-solver-v3-2@{path}")
    assert (solver.name, solver.order) == ("dpm-solver-v3-2", 2)
    for name in ("dpm-solver-v3-2", f"dpm-solver-v3-4@{path}", "dpm-solver-v3-@x"):
        with pytest.raises(ValueError, match="needs statistics"):
            solver_named(name)
    with pytest.raises(ValueError, match="holds no model statistics"):
        solver_named(f"dpm-solver-v3-2@{tmp_path}/none")
