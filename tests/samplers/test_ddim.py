"""DDIM, DDPM and Euler ancestral: equality with diffusers on the same noise, and exact variances."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerAncestralDiscreteScheduler
from torch import Tensor

from eval.order import MixtureProblem, uniform
from eval.order_weak import moment_errors, weak_order
from odecore.plan import execute
from samplers import Solver, compile_plan
from samplers.ddim import DDIM, DDPM, ddim, ddpm
from scoremodels.loaders import load
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

LINEAR = DiscreteVP.linear()
SCHEDULES = [LINEAR, ContinuousVP(), EDM(), VE(0.01, 50.0), RectifiedFlow(), LINEAR.zero_terminal_snr()]
SINGLE = 1e-5
"""Bound in float32. With another number of steps DDIMScheduler's "trailing" steps end beside its timesteps."""
STEPS = 5


def draws(count: int = STEPS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 1, 28, 28, generator=generator) for _ in range(count + 1)]


@torch.no_grad()
def difference(scheduler: Any, solver: Solver, step: Callable[..., Tensor], last: float = -1.0) -> float:
    """Relative distance of our samples from a scheduler's, of the same start and noise, on its timesteps."""
    model = load("fashion-mnist-ddpm")
    scheduler.set_timesteps(STEPS)
    start, *noise = draws()
    x = start
    for t, z in zip(scheduler.timesteps, noise, strict=True):
        x = step(scheduler, model, t, x, z)
    times = np.append(scheduler.timesteps.numpy().astype(float), last)
    plan = compile_plan(solver, model.schedule, nfe=STEPS, grid=times)
    left = iter(noise)
    ours = execute(plan, model, start, noise=lambda: next(left))
    return float((ours - x).norm() / x.norm())


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_equals_diffusers(eta: float, spacing: str) -> None:
    def step(scheduler: Any, model: Any, t: Tensor, x: Tensor, z: Tensor) -> Tensor:
        return scheduler.step(model(x, float(t)), int(t), x, eta=eta, variance_noise=z).prev_sample

    theirs = DDIMScheduler(clip_sample=False, timestep_spacing=spacing, steps_offset=0)
    assert difference(theirs, ddim(eta), step) <= SINGLE


@pytest.mark.parametrize(("name", "variance"), [
    ("fixed_small", "small"), ("fixed_small_log", "small"), ("fixed_large", "large")])
def test_ddpm_equals_diffusers_with_each_fixed_variance(
    name: str, variance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(scheduler: Any, model: Any, t: Tensor, x: Tensor, z: Tensor) -> Tensor:
        monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: z)
        return scheduler.step(model(x, float(t)), int(t), x).prev_sample

    theirs = DDPMScheduler(clip_sample=False, variance_type=name)
    assert difference(theirs, ddpm(variance), step) <= SINGLE


def test_ddim_with_eta_1_is_diffusers_euler_ancestral(monkeypatch: pytest.MonkeyPatch) -> None:
    """That scheduler counts in x/α, of which its start is a multiple."""
    module = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"

    def step(scheduler: Any, model: Any, t: Tensor, x: Tensor, z: Tensor) -> Tensor:
        monkeypatch.setattr(module, lambda *_, **__: z)
        index = int((scheduler.timesteps == t).nonzero())
        alphas = (1 + scheduler.sigmas.double() ** 2).rsqrt()
        raw = model(scheduler.scale_model_input(x / alphas[index], t).float(), float(t))
        return scheduler.step(raw, t, x / alphas[index]).prev_sample * alphas[index + 1]

    theirs = EulerAncestralDiscreteScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    assert difference(theirs, DDPM, step) <= SINGLE


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.4])
def test_ddim_is_k_diffusions_euler_ancestral_with_the_same_eta(eta: float) -> None:
    sigmas = [80.0, 20.0, 4.0, 0.7, 0.0]
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()
    x = 80.0 * noise[-1]
    plan = compile_plan(ddim(eta), EDM(), nfe=4, grid=sigmas, prediction="sample")
    left = iter(noise)
    ours = execute(plan, lambda y, t: torch.tanh(y / (1 + float(t))), x, noise=lambda: next(left))
    for high, low, z in zip(sigmas[:-1], sigmas[1:], noise, strict=False):
        up = min(low, eta * math.sqrt(low**2 * (high**2 - low**2) / high**2))
        down = math.sqrt(low**2 - up**2)
        slope = (x - torch.tanh(x / (1 + high))) / high
        x = x + slope * (down - high) + up * z
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("end", ["clean", "minimum"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_point_mass_keeps_its_marginals_with_any_amount_of_noise(
    schedule: NoiseSchedule, eta: float, end: str
) -> None:
    plan = compile_plan(ddim(eta), schedule, nfe=5, prediction="sample", end=end)
    assert max(map(abs, moment_errors(plan, schedule, std=1e-9))) < 1e-9


@pytest.mark.parametrize("schedule", [LINEAR, ContinuousVP()], ids=lambda s: type(s).__name__)
def test_the_large_variance_is_right_where_data_are_standard_normal(schedule: NoiseSchedule) -> None:
    """x0 is then α x, and each step takes variance 1 to variance 1."""
    plan = compile_plan(ddpm("large"), schedule, nfe=5, prediction="sample", end="minimum")
    small = compile_plan(ddpm("small"), schedule, nfe=5, prediction="sample", end="minimum")
    assert abs(moment_errors(plan, schedule, mean=0.0, std=1.0).variance) < 1e-9
    assert moment_errors(small, schedule, mean=0.0, std=1.0).variance < -1e-3


@pytest.mark.parametrize("solver", [ddim(0.4), ddim(1.0), ddpm("large")], ids=lambda s: s.name)
def test_the_variance_of_normal_data_converges_with_order_one(solver: Solver) -> None:
    problem = MixtureProblem(ContinuousVP())
    end = float(problem.schedule.time_of_log_snr(problem.end))
    assert weak_order(solver, problem.schedule, problem.grid(uniform), end).order == pytest.approx(1.0, abs=0.15)


def test_only_what_adds_noise_is_called_stochastic() -> None:
    flags: Sequence[bool] = [solver.stochastic for solver in (ddim(), ddim(0.2), ddpm(), ddpm("large"))]
    assert flags == [False, True, True, True] and (DDIM.name, DDPM.name) == ("ddim", "ddpm")


@pytest.mark.parametrize("eta", [-0.1, math.inf, math.nan])
def test_amounts_of_noise_out_of_range_are_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="eta="):
        ddim(eta)


def test_unknown_variances_are_refused() -> None:
    with pytest.raises(ValueError, match="variance='learned'"):
        ddpm("learned")
