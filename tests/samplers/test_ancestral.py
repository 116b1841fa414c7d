"""DPM-2 and the ancestral samplers: diffusers on a pretrained model, and published formulas on the same noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import KDPM2AncestralDiscreteScheduler, KDPM2DiscreteScheduler
from torch import Tensor

from eval.order import MixtureProblem, solver_order
from odecore.plan import execute
from samplers import Solver, compile_plan
from samplers.ancestral import dpm_2, dpm_solver_plus_plus_2s_ancestral, euler_ancestral
from samplers.registry import SOLVERS
from scoremodels.loaders import load
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, RectifiedFlow

SINGLE = 1e-5
SIGMAS = [80.0, 20.0, 4.0, 0.7, 0.1, 0.0]
FLOW_TIMES = [1.0, 0.8, 0.55, 0.3, 0.1, 0.0]


def give_exact_levels(scheduler: Any, levels: Tensor) -> None:
    """Put noise levels in float64 in place of those that a scheduler has rounded to float32."""
    levels = torch.cat([levels, torch.zeros(1, dtype=torch.float64)])
    following = levels.roll(-1)
    following[-1] = 0.0
    up = following * (1 - (following / levels.clamp(min=1e-300)) ** 2).clamp(min=0.0).sqrt()
    down = (following**2 - up**2).clamp(min=0.0).sqrt()
    ancestral = hasattr(scheduler, "sigmas_down")
    middle = (levels * down).sqrt() if ancestral else (levels * levels.roll(1)).sqrt()
    for name, values in (("sigmas", levels), ("sigmas_up", up), ("sigmas_down", down), ("sigmas_interpol", middle)):
        setattr(scheduler, name, torch.cat([values[:1], values[1:].repeat_interleave(2), values[-1:]]))


@pytest.mark.parametrize(("make", "solver"), [
    (KDPM2DiscreteScheduler, dpm_2()), (KDPM2AncestralDiscreteScheduler, dpm_2(1.0))], ids=["ode", "ancestral"])
def test_dpm_2_equals_diffusers_on_a_pretrained_model(
    make: Any, solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ask the network at our times: diffusers interpolates those between whole timesteps otherwise."""
    model = load("fashion-mnist-ddpm")
    scheduler = make(beta_start=1e-4, beta_end=0.02, timestep_spacing="leading")
    scheduler.set_timesteps(5)
    start, *draws = torch.randn(12, 2, *model.shape, generator=torch.Generator().manual_seed(0)).unbind()
    theirs, ours = iter(draws), iter(draws)
    monkeypatch.setattr("diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete.randn_tensor",
                        lambda *_, **__: next(theirs))
    plan = compile_plan(solver, model.schedule, nfe=9, grid=np.append(np.arange(5)[::-1] * 200.0, -1.0))
    give_exact_levels(scheduler, torch.tensor([float(model.schedule.ratio(t)) for t in np.arange(5)[::-1] * 200.0],
                                             dtype=torch.float64))
    alpha = float(model.schedule.alpha(800.0))
    y = start / alpha
    with torch.no_grad():
        for t, row in zip(scheduler.timesteps, plan.rows, strict=True):
            assert float(t) == pytest.approx(float(row.t), abs=0.1)
            y = scheduler.step(model(scheduler.scale_model_input(y, t).float(), row.t), t, y).prev_sample
        x = execute(plan, model, start, noise=lambda: next(ours))
    assert (x - y).norm() <= SINGLE * y.norm()


def denoised(x: Tensor, t: float) -> Tensor:
    return torch.tanh(1.5 * x / (1 + t))


def normals(count: int = 8) -> tuple[Tensor, ...]:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()


def ours(solver: Solver, schedule: Any, times: list[float], nfe: int, x: Tensor) -> Tensor:
    plan = compile_plan(solver, schedule, nfe=nfe, grid=times, prediction="sample")
    draws = iter(normals())
    return execute(plan, lambda y, t: denoised(y, float(t)), x, noise=lambda: next(draws))


def k_diffusion_split(high: float, low: float, eta: float) -> tuple[float, float]:
    up = min(low, eta * math.sqrt(low**2 * (high**2 - low**2) / high**2))
    return math.sqrt(low**2 - up**2), up


def dpm_2_step(x: Tensor, high: float, down: float) -> Tensor:
    slope = (x - denoised(x, high)) / high
    middle = math.exp((math.log(high) + math.log(down)) / 2)
    between = x + slope * (middle - high)
    return x + (between - denoised(between, middle)) / middle * (down - high)


def two_s_step(x: Tensor, high: float, down: float) -> Tensor:
    t, target = -math.log(high), -math.log(down)
    middle = math.exp(-(t + target) / 2)
    between = middle / high * x - math.expm1(-(target - t) / 2) * denoised(x, high)
    return down / high * x - math.expm1(-(target - t)) * denoised(between, middle)


@pytest.mark.parametrize(("make", "step"), [(dpm_2, dpm_2_step), (dpm_solver_plus_plus_2s_ancestral, two_s_step)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ancestral_samplers_equal_k_diffusion_in_sigma(
    make: Callable[[float], Solver], step: Callable[[Tensor, float, float], Tensor], eta: float
) -> None:
    x = start = 80.0 * normals()[-1]
    for high, low, z in zip(SIGMAS[:-1], SIGMAS[1:], normals(), strict=False):
        if low == 0.0:
            x = denoised(x, high)
            continue
        down, up = k_diffusion_split(high, low, eta)
        x = step(x, high, down) + up * z
    torch.testing.assert_close(ours(make(eta), EDM(), SIGMAS, 9, start), x, rtol=1e-11, atol=1e-11)


def flow_renoised(x: Tensor, down: float, low: float, z: Tensor) -> Tensor:
    """``x = (α_s/α_d) x + sqrt(σ_s² - σ_d² (α_s/α_d)²) z`` with α = 1 - σ."""
    scale = (1 - low) / (1 - down)
    return scale * x + math.sqrt(max(0.0, low**2 - (down * scale) ** 2)) * z


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", ["euler", "dpm-2", "2s"])
def test_ancestral_samplers_of_flows_equal_their_published_formulas(name: str, eta: float) -> None:
    """The sampler "2s" starts with a step of Euler, for λ is infinite there; DPM-2 over τ does not."""
    x = start = normals()[-1]
    for high, low, z in zip(FLOW_TIMES[:-1], FLOW_TIMES[1:], normals(), strict=False):
        down = low * (1 + (low / high - 1) * eta)
        if name == "euler" or low == 0.0 or (name == "2s" and high == 1.0):
            x = down / high * x + (1 - down / high) * denoised(x, high)
        elif name == "dpm-2":
            x = dpm_2_step(x, high, down)
        else:
            log_snr = (math.log((1 - high) / high) + math.log((1 - down) / down)) / 2
            middle = 1 / (1 + math.exp(log_snr))
            between = middle / high * x + (1 - middle / high) * denoised(x, high)
            x = down / high * x + (1 - down / high) * denoised(between, middle)
        x = flow_renoised(x, down, low, z)
    make, nfe = {"euler": (euler_ancestral, 5), "dpm-2": (dpm_2, 9), "2s": (dpm_solver_plus_plus_2s_ancestral, 8)}[name]
    theirs = ours(make(eta, "flow"), RectifiedFlow(), FLOW_TIMES, nfe, start)
    torch.testing.assert_close(theirs, x, rtol=1e-11, atol=1e-11)


def test_an_evaluation_left_over_becomes_a_step_of_euler_before_the_last() -> None:
    plan = compile_plan("dpm-2", EDM(), nfe=6, grid=[80.0, 20.0, 4.0, 0.5, 0.0])
    assert [row.t_next for row in plan.rows] == [80.0, 20.0, 20.0, 4.0, 0.5, 0.0]
    assert [row.t for row in plan.rows] == pytest.approx([80.0, 40.0, 20.0, math.sqrt(80.0), 4.0, 0.5])


@pytest.mark.parametrize("schedule", [DiscreteVP.linear(), EDM(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["dpm-2", "dpm-2-ancestral", "dpm-2-ancestral-flow", "dpm-solver++-2s-ancestral"])
def test_orders_hold_on_every_kind_of_schedule(name: str, schedule: Any) -> None:
    assert solver_order(name, MixtureProblem(schedule)).order == pytest.approx(2.0, abs=0.15)


def test_dpm_2_over_flow_time_is_of_order_two_as_an_ode_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    solver = dpm_2(clock="flow")
    monkeypatch.setitem(SOLVERS, solver.name, solver)  # type: ignore[arg-type]
    assert solver_order(solver.name, MixtureProblem(ContinuousVP())).order == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("make", [euler_ancestral, dpm_2, dpm_solver_plus_plus_2s_ancestral])
def test_arguments_out_of_range_are_refused(make: Callable[..., Solver]) -> None:
    for eta in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="eta="):
            make(eta)
    with pytest.raises(ValueError, match="clock='time'"):
        make(1.0, "time")
