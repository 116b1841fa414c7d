"""EDM's stochastic sampler: its published algorithm, diffusers' version of it, and its bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from torch import Tensor

from odecore.plan import Plan, execute
from samplers import compile_plan
from samplers.churn import edm_churn, late_churn
from scoremodels.loaders import load
from scoremodels.schedule import EDM, DiscreteVP, RectifiedFlow

SINGLE = 1e-5
SIGMAS = [80.0, 30.0, 11.0, 4.0, 1.3, 0.4, 0.1, 0.0]


def algorithm_2(
    denoise: Callable[[Tensor, float], Tensor], sigmas: list[float], x: Tensor, draws: list[Tensor], *, s_churn: float,
    s_tmin: float, s_tmax: float, s_noise: float, heun: bool,
) -> Tensor:
    """Algorithm 2 of Karras et al. 2022, in the paper's symbols."""
    noise = iter(draws)
    for t, t_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        gamma = min(s_churn / (len(sigmas) - 1), math.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0.0
        t_hat = t + gamma * t
        x_hat = x + math.sqrt(t_hat**2 - t**2) * s_noise * next(noise) if gamma > 0 else x
        d = (x_hat - denoise(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if heun and t_next > 0:
            x = x_hat + (t_next - t_hat) * (d + (x - denoise(x, t_next)) / t_next) / 2
    return x


def run(plan: Plan, model: Any, x: Tensor, draws: list[Tensor]) -> Tensor:
    left = iter(draws)
    with torch.no_grad():
        return execute(plan, model, x, noise=lambda: next(left))


@pytest.mark.parametrize("churn", [0.0, 2.0, 40.0])
@pytest.mark.parametrize("order", [1, 2])
def test_the_plan_equals_algorithm_2(order: int, churn: float) -> None:
    draws = list(torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    numbers = dict(s_churn=churn, s_tmin=0.05, s_tmax=50.0, s_noise=1.003)
    x = 80.0 * draws[-1]
    plan = compile_plan(edm_churn(**numbers, order=order), EDM(), nfe=13 if order == 2 else 7, grid=SIGMAS,
                        prediction="sample")
    ours = run(plan, lambda y, t: torch.tanh(y / (1 + float(t))), x, draws)
    theirs = algorithm_2(lambda y, t: torch.tanh(y / (1 + t)), SIGMAS, x, draws, heun=order == 2, **numbers)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("order", [1, 2])
def test_the_plan_equals_algorithm_2_on_a_pretrained_model(order: int) -> None:
    model = load("fashion-mnist-edm")
    label = torch.tensor([3, 7])
    draws = list(torch.randn(8, 2, *model.shape, generator=torch.Generator().manual_seed(0)))
    x = 80.0 * draws[-1]
    numbers = dict(s_churn=3.0, s_tmin=0.05, s_tmax=50.0, s_noise=1.003)
    plan = compile_plan(edm_churn(**numbers, order=order), model.schedule, nfe=13 if order == 2 else 7, grid=SIGMAS,
                        prediction=model.prediction)
    ours = run(plan, lambda y, t: model(y, t, label), x, draws)
    with torch.no_grad():
        theirs = algorithm_2(lambda y, t: model.denoise(y, t, label), SIGMAS, x, draws, heun=order == 2, **numbers)
    assert (ours - theirs).norm() <= SINGLE * theirs.norm()


@torch.no_grad()
def test_late_churn_equals_diffusers_euler(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("fashion-mnist-ddpm")
    scheduler = EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="leading")
    scheduler.set_timesteps(5)
    start, *draws = torch.randn(6, 2, *model.shape, generator=torch.Generator().manual_seed(0)).unbind()
    numbers = dict(s_churn=1.5, s_tmin=0.1, s_tmax=5.0, s_noise=1.01)
    theirs = iter(draws)
    monkeypatch.setattr("diffusers.schedulers.scheduling_euler_discrete.randn_tensor", lambda *_, **__: next(theirs))
    times = scheduler.timesteps.double().numpy()
    y = start / float(model.schedule.alpha(times[0]))
    for t in scheduler.timesteps:
        y = scheduler.step(model(scheduler.scale_model_input(y, t).float(), float(t)), t, y, **numbers).prev_sample
    plan = compile_plan(late_churn(**numbers), model.schedule, nfe=5, grid=np.append(times, -1.0))
    x = run(plan, model, start, draws)
    assert any(row.noise > 0 for row in plan.rows)
    assert (x - y).norm() <= SINGLE * y.norm()


@torch.no_grad()
def test_late_churn_equals_diffusers_edm_euler(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5)
    scheduler.set_timesteps(6)
    start, *draws = torch.randn(7, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    numbers = dict(s_churn=1.5, s_tmin=0.05, s_tmax=50.0, s_noise=1.01)
    theirs = iter(draws)
    monkeypatch.setattr("diffusers.schedulers.scheduling_edm_euler.randn_tensor", lambda *_, **__: next(theirs))

    def raw(scaled: Tensor, sigma: float) -> Tensor:
        return torch.sin(2 * scaled + 0.1 * math.log(sigma))

    y = start * 80.0
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        y = scheduler.step(raw(scheduler.scale_model_input(y, t), float(sigma)), t, y, **numbers).prev_sample
    plan = compile_plan(late_churn(**numbers), EDM(), nfe=6, grid=scheduler.sigmas.tolist(), prediction="edm")
    x = run(plan, lambda z, t: raw(z / math.sqrt(float(t) ** 2 + 0.25), float(t)), start * 80.0, draws)
    assert sum(row.noise > 0 for row in plan.rows) >= 3
    assert (x - y).norm() <= SINGLE * y.norm()


@torch.no_grad()
@pytest.mark.parametrize("solver", ["edm-heun", "churn"])
def test_without_churn_it_is_diffusers_heun(solver: str) -> None:
    model = load("fashion-mnist-ddpm")
    scheduler = HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear",
                                      timestep_spacing="leading")
    scheduler.set_timesteps(5)
    start = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    times = np.append(np.arange(5)[::-1] * 200.0, -1.0)
    y = start / float(model.schedule.alpha(800.0))
    for t in scheduler.timesteps:
        y = scheduler.step(model(scheduler.scale_model_input(y, t).float(), float(t)), t, y).prev_sample
    chosen = edm_churn(0.0) if solver == "churn" else solver
    x = run(compile_plan(chosen, model.schedule, nfe=9, grid=times), model, start, [])
    assert (x - y).norm() <= SINGLE * y.norm()


def test_accepted_times_go_back_where_noise_is_added_and_nowhere_else() -> None:
    plan = compile_plan(edm_churn(), EDM(), nfe=40, prediction="sample")
    accepted = [plan.t_start, *(row.t_next for row in plan.rows)]
    back = [row.noise > 0 for row, before in zip(plan.rows, accepted, strict=False) if row.t_next > before]
    assert back and all(back)


@pytest.mark.parametrize("schedule", [DiscreteVP.linear(), EDM(), RectifiedFlow()], ids=lambda s: type(s).__name__)
def test_no_network_is_asked_beyond_the_noise_of_its_training(schedule: Any) -> None:
    grid = [schedule.t_max * share for share in (1.0, 0.95, 0.9, 0.5)] + [schedule.t_clean]
    nfe = 6 if isinstance(schedule, RectifiedFlow) else 7  # from pure noise the first step is Euler's
    plan = compile_plan(edm_churn(1e3, 0.0, math.inf), schedule, nfe=nfe, grid=grid, prediction="v_prediction")
    assert max(row.t for row in plan.rows) <= schedule.t_max
    assert plan.t_start == schedule.t_max


@pytest.mark.parametrize("bounds", [dict(s_churn=-1.0), dict(s_tmin=2.0, s_tmax=1.0), dict(s_noise=0.0),
                                    dict(s_churn=math.nan)])
def test_bounds_that_cannot_be_are_refused(bounds: dict[str, Any]) -> None:
    for make in (edm_churn, late_churn):
        with pytest.raises(ValueError, match="s_churn="):
            make(**bounds)


def test_other_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="order=3"):
        edm_churn(order=3)
