"""DPM-2 and the ancestral samplers: diffusers on a pretrained model, published formulas, and exact moments."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from odecore.plan import execute
from samplers import compile_plan
from samplers.ancestral import dpm_2, dpm_solver_plus_plus_2s_ancestral, split_noise
from scoremodels.loaders import load
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

SCHEDULE = DiscreteVP.linear()
NAMES = ("dpm-2", "dpm-2-ancestral", "dpm-solver++-2s-ancestral")


@pytest.mark.parametrize(("name", "cls"), [
    ("dpm-2", "KDPM2DiscreteScheduler"), ("dpm-2-ancestral", "KDPM2AncestralDiscreteScheduler")])
def test_dpm_2_equals_diffusers_on_a_pretrained_model(name: str, cls: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load("fashion-mnist-ddpm")
    scheduler: Any = getattr(diffusers, cls)(beta_start=1e-4, beta_end=0.02, timestep_spacing="leading")
    scheduler.set_timesteps(5)
    generator = torch.Generator().manual_seed(0)
    start, *draws = torch.randn(12, 1, *model.shape, generator=generator).unbind()
    theirs_noise, our_noise = iter(draws), iter(draws)
    module = f"diffusers.schedulers.scheduling_k_dpm_2_{'ancestral_' if 'ancestral' in name else ''}discrete"
    if "ancestral" in name:
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: next(theirs_noise))
    y = start * scheduler.init_noise_sigma
    times = np.append(np.arange(5)[::-1] * 200.0, -1.0)
    plan = compile_plan(name, model.schedule, nfe=9, grid=times)
    x = start * scheduler.init_noise_sigma * float(model.schedule.alpha(times[0]))
    with torch.no_grad():
        for t in scheduler.timesteps:
            y = scheduler.step(model(scheduler.scale_model_input(y, t), float(t)), t, y).prev_sample
        x = execute(plan, model, x, noise=lambda: next(our_noise))
    # The times between training steps differ: diffusers interpolates log σ linearly there, in float32.
    assert (x - y).norm() <= 2e-4 * y.norm()


def test_the_2s_ancestral_sampler_equals_its_published_formulas_on_a_schedule_in_sigma() -> None:
    sigmas = [80.0, 20.0, 4.0, 0.7, 0.0]
    draws = torch.randn(10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()

    def denoise(x: Tensor, sigma: float) -> Tensor:
        return torch.tanh(x / (1 + sigma))

    noise, x = iter(draws), 80.0 * torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    start = x
    for high, low in zip(sigmas[:-1], sigmas[1:], strict=True):
        up = min(low, math.sqrt(low**2 * (high**2 - low**2) / high**2))
        down = math.sqrt(low**2 - up**2)
        x0 = denoise(x, high)
        if down == 0.0:
            x = x0
            continue
        t, target = -math.log(high), -math.log(down)
        middle = math.exp(-(t + target) / 2)
        between = middle / high * x - math.expm1(-(target - t) / 2) * x0
        x = down / high * x - math.expm1(-(target - t)) * denoise(between, middle) + next(noise) * up
    plan = compile_plan("dpm-solver++-2s-ancestral", EDM(), nfe=7, grid=sigmas, prediction="sample")
    noise = iter(draws)
    ours = execute(plan, lambda x, t: denoise(x, float(t)), start, noise=lambda: next(noise))
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("schedule", [SCHEDULE, EDM(), ContinuousVP(), RectifiedFlow(), SCHEDULE.zero_terminal_snr()])
@pytest.mark.parametrize("end", ["clean", "minimum"])
@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_evaluations_is_spent_exactly(name: str, end: str, schedule: NoiseSchedule) -> None:
    for nfe in range(1, 12):
        assert compile_plan(name, schedule, nfe=nfe, end=end, prediction="v_prediction").nfe == nfe


@pytest.mark.parametrize("solver", [dpm_2(1.0), dpm_2(0.4), dpm_solver_plus_plus_2s_ancestral()])
def test_normal_data_get_their_variance_as_the_steps_shrink(solver: Any) -> None:
    """With D(x) = x/(1 + σ²) all is linear, so the variance of the result follows from two runs and the noise."""
    errors = []
    for nfe in (40, 160):
        plan = compile_plan(solver, EDM(), nfe=nfe, prediction="sample", end="minimum")
        variance, states = 0.0, torch.zeros(nfe + 1, dtype=torch.float64)
        states[0] = plan.t_start
        added = iter(range(1, nfe + 1))

        def noise(added: Any = added, nfe: int = nfe) -> Tensor:
            unit = torch.zeros(nfe + 1, dtype=torch.float64)
            unit[next(added)] = 1.0
            return unit

        states = execute(plan, lambda x, t: x / (1 + float(t) ** 2), states, noise=noise)
        variance = float(states.square().sum())
        errors.append(abs(variance - 1 - float(plan.rows[-1].t_next) ** 2))
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.05


def test_noise_splits_into_two_levels_whose_squares_add_up() -> None:
    down, up = split_noise(3.0, 2.0, 1.0)
    assert math.hypot(down, up) == pytest.approx(2.0)
    assert split_noise(3.0, 2.0, 0.0) == (2.0, 0.0)


@pytest.mark.parametrize("eta", [-0.1, math.inf, math.nan])
def test_an_amount_of_noise_that_cannot_be_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="eta="):
        dpm_2(eta)
