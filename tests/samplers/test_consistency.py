"""Consistency models, LCM and TCD: equality with diffusers on the same noise, and their bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CMStochasticIterativeScheduler, FlowMatchLCMScheduler, LCMScheduler, TCDScheduler
from torch import Tensor

from odecore.plan import Plan, execute
from samplers import compile_plan
from samplers.consistency import DISTILLED, consistency, edm_consistency, lcm, skipping, tcd
from samplers.registry import SOLVERS, solver_named
from samplers.restart import restart
from samplers.solver import Solver
from scoremodels.loaders import load
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

SINGLE = 1e-5
LINEAR = dict(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
SCHEDULES = [DiscreteVP.linear(), ContinuousVP(), EDM(), VE(0.01, 50.0), RectifiedFlow(),
             DiscreteVP.linear().zero_terminal_snr()]


@torch.no_grad()
def assert_equal(
    scheduler: Any, plan: Plan, model: Callable[[Tensor, float], Tensor], start: Tensor, draws: Sequence[Tensor],
    patch: pytest.MonkeyPatch, **arguments: Any,
) -> None:
    theirs, ours = iter(draws), iter(draws)
    patch.setattr(f"{type(scheduler).__module__}.randn_tensor", lambda *_, **__: next(theirs))
    y = start
    for t in scheduler.timesteps:
        point = y if not hasattr(scheduler, "scale_model_input") else scheduler.scale_model_input(y, t)
        y = scheduler.step(model(point, float(t)), t, y, **arguments).prev_sample
    x = execute(plan, model, start, noise=lambda: next(ours))
    assert (x - y).norm() <= SINGLE * y.norm()


def normals(shape: Sequence[int]) -> tuple[Tensor, ...]:
    return torch.randn(8, 2, *shape, generator=torch.Generator().manual_seed(0)).unbind()


@pytest.mark.parametrize(("scaling", "steps"), [(10.0, 4), (0.002, 4), (10.0, 1), (10.0, 7)])
def test_lcm_equals_diffusers_on_a_pretrained_model(
    scaling: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the second scaling the state has a share in the result."""
    model = load("fashion-mnist-ddpm")
    scheduler = LCMScheduler(**LINEAR, timestep_scaling=scaling)
    scheduler.set_timesteps(steps)
    plan = compile_plan(lcm(scaling), model.schedule, nfe=steps)
    assert [row.t for row in plan.rows] == scheduler.timesteps.tolist()
    start, *draws = normals(model.shape)
    assert_equal(scheduler, plan, model, start, draws, monkeypatch)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8, 1.0])
def test_tcd_equals_diffusers_on_a_pretrained_model(eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("fashion-mnist-ddpm")
    scheduler = TCDScheduler(**LINEAR)
    scheduler.set_timesteps(4)
    plan = compile_plan(tcd(eta), model.schedule, nfe=4)
    assert [row.t for row in plan.rows] == scheduler.timesteps.tolist()
    start, *draws = normals(model.shape)
    assert_equal(scheduler, plan, model, start, draws, monkeypatch, eta=eta)


@torch.no_grad()
def test_consistency_equals_diffusers_flow_lcm_on_a_pretrained_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("fashion-mnist-flow")
    scheduler = FlowMatchLCMScheduler()
    scheduler.set_timesteps(5)
    scale = float(model.schedule.t_max)
    times = np.append(scheduler.sigmas[:-1].double().numpy() * scale, 0.0)
    plan = compile_plan(consistency(), model.schedule, nfe=5, grid=times, prediction=model.prediction)
    start, *draws = normals(model.shape)
    label = None if not model.num_classes else torch.tensor([1, 2])
    theirs, ours = iter(draws), iter(draws)
    monkeypatch.setattr("diffusers.schedulers.scheduling_flow_match_lcm.randn_tensor", lambda *_, **__: next(theirs))
    y = start
    for t, time in zip(scheduler.timesteps, times, strict=False):
        y = scheduler.step(model(y, float(time), label), t, y).prev_sample
    x = execute(plan, lambda z, t: model(z, t, label), start, noise=lambda: next(ours))
    assert (x - y).norm() <= SINGLE * y.norm()


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_edm_consistency_equals_diffusers(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = CMStochasticIterativeScheduler(clip_denoised=False)
    scheduler.set_timesteps(steps)
    start, *draws = normals((1, 8, 8))
    theirs, ours = iter(draws), iter(draws)
    module = "diffusers.schedulers.scheduling_consistency_models"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: next(theirs))

    def raw(scaled: Tensor, sigma: float) -> Tensor:
        return torch.sin(2 * scaled + 0.1 * math.log(sigma))

    sigmas = [80.0, *scheduler.sigmas[1:].tolist()]
    y = start * 80.0
    for t, sigma in zip(scheduler.timesteps, sigmas, strict=False):
        y = scheduler.step(raw(scheduler.scale_model_input(y, t), sigma), t, y).prev_sample
    if sigmas[-2] == sigmas[-1]:  # diffusers evaluates at σ_min, where f(x) = x
        sigmas.pop()
    plan = compile_plan(edm_consistency(), EDM(), nfe=len(sigmas) - 1, grid=sigmas, prediction="edm")
    x = execute(plan, lambda z, t: raw(z / math.sqrt(float(t) ** 2 + 0.25), float(t)), start * 80.0,
                noise=lambda: next(ours))
    assert (x - y).norm() <= SINGLE * y.norm()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", DISTILLED, ids=lambda s: s.name)
def test_every_schedule_is_walked_in_any_number_of_evaluations(solver: Solver, schedule: NoiseSchedule) -> None:
    for end in (None, "clean", "minimum"):
        for nfe in range(1, 10):
            plan = compile_plan(solver, schedule, nfe=nfe, prediction="v_prediction", end=end)
            assert plan.nfe == nfe and plan.t_start == schedule.t_max
            assert Plan.from_json(plan.to_json()) == plan


def test_a_perfect_consistency_function_is_returned_whatever_the_noise() -> None:
    for schedule in SCHEDULES:
        plan = compile_plan("consistency", schedule, nfe=3, prediction="sample")
        x = execute(plan, lambda x, t: torch.full_like(x, 0.25), torch.ones(5), noise=lambda: torch.full((5,), 2.0))
        torch.testing.assert_close(x, torch.full((5,), 0.25))


@pytest.mark.parametrize("schedule", [SCHEDULES[0], EDM(), RectifiedFlow()], ids=lambda s: type(s).__name__)
def test_a_state_of_least_noise_is_left_as_it_is(schedule: NoiseSchedule) -> None:
    least = schedule.t_min
    row = compile_plan(edm_consistency(), schedule, nfe=1, grid=[least, schedule.t_clean], prediction="edm").rows[0]
    weight, output = row.to_prediction
    assert output == pytest.approx(0.0, abs=1e-12)
    assert weight * float(schedule.alpha(least)) == pytest.approx(1.0)


def test_tcd_without_noise_is_ddim() -> None:
    times = [999.0, 700.0, 300.0, 0.0]
    first, second = (compile_plan(solver, DiscreteVP.linear(), nfe=3, grid=times) for solver in (tcd(0.0), "ddim"))
    for ours, theirs in zip(first.rows, second.rows, strict=True):
        assert ours.anchor == pytest.approx(theirs.anchor) and ours.noise == 0.0


@pytest.mark.parametrize("solver", DISTILLED, ids=lambda s: s.name)
def test_a_run_in_the_middle_keeps_the_rows_that_are_left(solver: Solver) -> None:
    plan = compile_plan(solver, DiscreteVP.linear(), nfe=5)
    for begin in range(5):
        assert restart(plan, begin, solver, DiscreteVP.linear(), "epsilon") == plan.rows[begin:]


def test_distilled_samplers_are_found_by_name_but_are_no_solvers() -> None:
    for solver in DISTILLED:
        assert solver_named(solver.name) is solver and solver.name not in SOLVERS


def test_the_skipping_grid_refuses_what_the_distillation_did_not_know() -> None:
    with pytest.raises(ValueError, match="nfe=51"):
        skipping(DiscreteVP.linear(), 51, -1.0)
    with pytest.raises(ValueError, match="original=2000"):
        skipping(DiscreteVP.linear(), 4, -1.0, original=2000)
    assert skipping(RectifiedFlow(), 2, 0.0, original=4).tolist() == [1.0, 0.5, 0.0]


def test_numbers_out_of_range_are_refused() -> None:
    for arguments in (dict(timestep_scaling=-1.0), dict(sigma_data=0.0), dict(timestep_scaling=math.inf)):
        with pytest.raises(ValueError, match="timestep_scaling="):
            lcm(**arguments)
    for eta in (1.5, -0.1, math.nan):
        with pytest.raises(ValueError, match="eta="):
            tcd(eta)
