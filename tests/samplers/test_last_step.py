"""Denoising to zero: what DPM-Solver's published code does at its end, as one of the evaluations asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from odecore.plan import execute
from samplers import SOLVERS, Solver, compile_plan
from samplers.last_step import denoise_to_zero
from scoremodels.loaders import load
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

SCHEDULES = [DiscreteVP.linear(), EDM(), RectifiedFlow()]


def network(x: Tensor, t: object) -> Tensor:
    """Some prediction that depends on state and time."""
    return torch.tanh(x / 3.0) + 0.1 * x + 1e-3 * float(t)  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", [s for s in SOLVERS.values() if isinstance(s, Solver)], ids=lambda s: s.name)
def test_it_is_the_solver_down_to_the_least_noise_and_then_the_predicted_sample(
    solver: Solver, schedule: NoiseSchedule
) -> None:
    prediction = "flow" if isinstance(schedule, RectifiedFlow) else "v_prediction"
    options = {"prediction": prediction, "grid": "karras"}
    try:
        before = compile_plan(solver, schedule, nfe=6, end="minimum", **options)
    except ValueError:
        pytest.skip("the solver itself refuses this schedule")
    plan = compile_plan(denoise_to_zero(solver), schedule, nfe=7, **options)
    start = float(schedule.prior_scale(plan.t_start)) * torch.linspace(-2, 2, 5, dtype=torch.float64)
    noise = torch.linspace(-1, 1, 5, dtype=torch.float64)
    with torch.no_grad():
        last = execute(before, network, start, noise=lambda: noise)
        a, b = schedule.conversion(prediction, "sample", schedule.t_min)
        expected = a * last + b * network(last, schedule.t_min)
        result = execute(plan, network, start, noise=lambda: noise)
    assert plan.nfe == 7 and [row.t for row in plan.rows][-1] == schedule.t_min
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)


def test_on_dpm_solver_plus_plus_it_is_the_usual_end() -> None:
    rows, others = (compile_plan(s, EDM(), nfe=20).rows for s in ("dpm-solver++-2m+denoise", "dpm-solver++-2m"))
    assert rows == others


def test_it_equals_denoising_the_result_on_a_pretrained_model() -> None:
    model = load("fashion-mnist-ddpm")
    start = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    plan = compile_plan("dpm-solver-3m+denoise", model.schedule, nfe=6)
    with torch.no_grad():
        last = execute(compile_plan("dpm-solver-3m", model.schedule, nfe=5), model, start)
        expected = model.denoise(last, float(model.schedule.t_min))
        assert (execute(plan, model, start) - expected).norm() <= 1e-5 * expected.norm()


def test_custom_times_end_without_noise() -> None:
    grid = np.array([0.9, 0.5, 0.1, 0.0])
    plan = compile_plan("lms-2+denoise", ContinuousVP(), nfe=3, grid=grid)
    assert plan.about["times"] == grid.tolist() and [row.t for row in plan.rows] == [0.9, 0.5, 0.1]


@pytest.mark.parametrize(("options", "match"), [
    ({"nfe": 4, "end": "minimum"}, "removes all noise"), ({"nfe": 1}, "at least 2"),
    ({"nfe": 2, "grid": [0.9, 0.5, 0.1]}, "removes all noise")])
def test_an_end_with_noise_and_a_single_evaluation_are_refused(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        compile_plan("lms-2+denoise", ContinuousVP(), **options)
