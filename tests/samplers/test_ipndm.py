"""iPNDM: equality with diffusers and with a transcription of the paper's update."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import IPNDMScheduler

from odecore.plan import execute
from samplers import compile_plan
from samplers.ipndm import equal_steps, ipndm
from samplers.lms import lms
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

ADAMS_BASHFORTH = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12],
                   4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
SCHEDULES = [DiscreteVP.linear(), ContinuousVP(), EDM(), VE()]


def network(x: torch.Tensor, t: object) -> torch.Tensor:
    """Some ε that depends on state and time."""
    return torch.sin(2 * x) + 0.1 * x + 1e-3 * float(t)  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("h", [0.3, -2.5])
def test_the_weights_are_those_of_adams_and_bashforth_wherever_the_predictions_were_made(order: int, h: float) -> None:
    weights = equal_steps([0.0, -0.1, -7.0, -7.5][:order], h, 0.0)
    np.testing.assert_allclose(weights, h * np.array(ADAMS_BASHFORTH[order]), rtol=1e-13)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_plan_does_what_the_paper_writes(schedule: NoiseSchedule, order: int) -> None:
    plan = compile_plan(ipndm(order), schedule, nfe=7, grid="karras")
    times = plan.about["times"]
    assert isinstance(times, list)
    x = start = torch.linspace(-2, 2, 5, dtype=torch.float64)
    history: list[torch.Tensor] = []
    for t, s in zip(times[:-1], times[1:], strict=True):
        history = [network(x, t), *history][:order]
        weights = ADAMS_BASHFORTH[len(history)]
        mean = sum(w * e for w, e in zip(weights, history, strict=True))
        x0 = (x - schedule.sigma(t) * mean) / schedule.alpha(t)
        x = schedule.alpha(s) * x0 + schedule.sigma(s) * mean
    with torch.no_grad():
        torch.testing.assert_close(execute(plan, network, start), x, rtol=1e-10, atol=1e-10)


def test_the_fourth_order_equals_diffusers_once_its_schedule_is_the_models() -> None:
    """``IPNDMScheduler`` has a schedule of its own, but for ``trained_betas``, which it takes for σ."""
    schedule = ContinuousVP()
    times = np.array([0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.02])
    theirs = IPNDMScheduler(trained_betas=schedule.sigma(times).tolist())
    theirs.set_timesteps(len(times) - 1)
    alphas, sigmas = schedule.alpha(times), schedule.sigma(times)
    theirs.alphas, theirs.betas = torch.from_numpy(alphas), torch.from_numpy(sigmas)
    start = torch.linspace(-2, 2, 5, dtype=torch.float64)
    x = start
    for i, t in enumerate(theirs.timesteps):
        velocity = (network(x, times[i]) - sigmas[i] * x) / alphas[i]
        x = theirs.step(velocity, t, x).prev_sample
    plan = compile_plan(ipndm(4), schedule, nfe=len(times) - 1, grid=times)
    with torch.no_grad():
        torch.testing.assert_close(execute(plan, network, start), x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_on_a_grid_even_in_the_ratio_it_is_the_linear_multistep_method(order: int) -> None:
    grid = np.linspace(80.0, 0.0, 9)
    ours, actual = (compile_plan(s, EDM(), nfe=8, grid=grid) for s in (ipndm(order), lms(order)))
    for one, other in zip(ours.rows, actual.rows, strict=True):
        np.testing.assert_allclose(one.anchor, other.anchor, rtol=1e-10)


@pytest.mark.parametrize("nfe", [1, 2, 3, 8])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), DiscreteVP.linear().zero_terminal_snr()])
def test_pure_noise_is_a_start(schedule: NoiseSchedule, nfe: int) -> None:
    plan = compile_plan(ipndm(4), schedule, nfe=nfe, grid="time", prediction="v_prediction")
    x = execute(plan, lambda x, t: -x.tanh(), torch.linspace(-2, 2, 5, dtype=torch.float64))
    assert float(schedule.alpha(plan.t_start)) == 0.0 and x.isfinite().all()


@pytest.mark.parametrize("order", [0, 5, 2.0, True])
def test_orders_out_of_range_are_refused(order: object) -> None:
    with pytest.raises(ValueError, match="between 1 and 4"):
        ipndm(order)  # type: ignore[arg-type]
