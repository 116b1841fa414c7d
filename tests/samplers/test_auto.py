"""The solver "auto" becomes another one, the same for sampling, sweeps and pipelines."""

from __future__ import annotations

import pytest
import torch

from samplers import compile_plan, sample
from samplers.auto import SIGMA, TABLE, choose
from samplers.candidates import plain_solvers, solver_of
from samplers.diffusers import FewStepScheduler
from samplers.registry import solver_named
from scoremodels.loaders import load
from scoremodels.schedule import EDM, VE, ContinuousVP, NoiseSchedule, RectifiedFlow

SCHEDULES = [EDM(), EDM(sigma_max=10.0), VE(), RectifiedFlow(), ContinuousVP()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
@pytest.mark.parametrize("nfe", [1, 2, 4, 7, 8, 14, 15, 40])
def test_it_spends_what_is_asked_and_says_what_it_became(schedule: NoiseSchedule, nfe: int) -> None:
    prediction = "flow" if isinstance(schedule, RectifiedFlow) else "epsilon"
    plan = compile_plan("auto", schedule, nfe=nfe, prediction=prediction)
    assert plan.nfe == nfe and (plan.about["solver"], plan.about["grid"]) == choose(schedule, nfe)


def test_no_choice_needs_an_analytic_first_step_so_that_pipelines_run_them_all() -> None:
    for choices in TABLE.values():
        assert [most for most, _ in choices] == sorted(most for most, _ in choices)
        assert all(solver_of(choice.solver).enter is None for _, choice in choices)


def test_times_of_ones_own_are_kept() -> None:
    times = [80.0, 4.0, 0.3, 0.0]
    plan = compile_plan("auto", EDM(), nfe=3, grid=times, prediction="sample")
    assert plan.about["times"] == times and plan.about["solver"] == TABLE[SIGMA][0][1].solver


@pytest.mark.parametrize("name", ["fashion-mnist-edm", "fashion-mnist-flow"])
def test_it_samples_as_what_it_became(name: str) -> None:
    model = load(name)
    result = sample(model, num=1, solver="auto", nfe=4)
    solver, grid = choose(model.schedule, 4)
    assert result.nfe == 4 and result.plan is not None and result.plan.about["grid"] == grid
    same = sample(model, num=1, solver=solver, nfe=4, grid=result.plan.about["times"])
    torch.testing.assert_close(result.samples, same.samples)


def test_the_scheduler_of_a_pipeline_takes_solver_and_grid() -> None:
    model = load("fashion-mnist-ddpm")
    scheduler = FewStepScheduler(beta_schedule="linear", solver="auto")
    scheduler.set_timesteps(5)
    x = start = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, float(t)), t, x).prev_sample
    ours = sample(model, x_T=start, solver="auto", nfe=5, end="clean")
    torch.testing.assert_close(x, ours.samples, rtol=1e-4, atol=1e-4)
    assert len(scheduler.timesteps) == 5


def test_it_is_no_candidate_of_calibration_and_takes_no_analytic_first_step() -> None:
    assert "auto" not in plain_solvers()
    with pytest.raises(ValueError, match="auto"):
        solver_named("auto+afs")
    with pytest.raises(ValueError, match="nfe=0"):
        compile_plan("auto", EDM(), nfe=0)
