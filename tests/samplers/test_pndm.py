"""PNDM and PLMS: equality with diffusers on a pretrained model, and the evaluations that they spend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler
from torch import Tensor

from odecore.plan import execute
from samplers import compile_plan
from samplers.ipndm import ipndm
from scoremodels.loaders import load
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

SCHEDULE = DiscreteVP.linear()
SCHEDULES = [SCHEDULE, ContinuousVP(), EDM(), VE(), RectifiedFlow(), SCHEDULE.zero_terminal_snr()]


def network(x: Tensor, t: object) -> Tensor:
    """Some ε that depends on state and time."""
    return torch.sin(2 * x) + 0.1 * x + 1e-3 * float(t)  # type: ignore[arg-type]


def theirs(scheduler: Any, model: Any, x: Tensor) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(model(x, t.item()), t, x).prev_sample
    return x


def pair(steps: int, skip: bool, end: float) -> tuple[Any, Any]:
    """The scheduler, and a plan on its distinct timesteps."""
    scheduler = PNDMScheduler(skip_prk_steps=skip, set_alpha_to_one=end < 0, steps_offset=0 if end < 0 else 1)
    scheduler.set_timesteps(steps)
    times = np.append(np.sort(scheduler._timesteps)[::-1].astype(float), end)
    plan = compile_plan("plms" if skip else "pndm", SCHEDULE, nfe=len(scheduler.timesteps), grid=times)
    return scheduler, plan


@pytest.mark.parametrize("end", [-1.0, 0.0])
@pytest.mark.parametrize(("steps", "skip"), [(4, False), (5, False), (10, False), (2, True), (3, True), (10, True)])
def test_both_modes_equal_diffusers_in_float64(steps: int, skip: bool, end: float) -> None:
    scheduler, plan = pair(steps, skip, end)
    scheduler.alphas_cumprod = torch.from_numpy(SCHEDULE.alpha(np.arange(1000.0)) ** 2)
    scheduler.final_alpha_cumprod = torch.tensor(float(SCHEDULE.alpha(end)) ** 2, dtype=torch.float64)
    start = torch.linspace(-2, 2, 5, dtype=torch.float64)
    expected = theirs(scheduler, network, start)
    with torch.no_grad():
        torch.testing.assert_close(execute(plan, network, start), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("skip", [False, True])
def test_both_modes_equal_diffusers_on_the_pretrained_model(skip: bool) -> None:
    model = load("fashion-mnist-ddpm")
    scheduler, plan = pair(5, skip, -1.0)
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, expected = execute(plan, model, x), theirs(scheduler, model, x)
    assert (ours - expected).norm() <= 1e-5 * expected.norm()


def test_plms_takes_a_step_less_where_diffusers_spends_an_evaluation_more() -> None:
    scheduler, plan = pair(10, True, -1.0)
    assert len(scheduler.timesteps) == plan.nfe == 11
    ours = compile_plan("plms", SCHEDULE, nfe=10)
    assert ours.nfe == 10 and len(ours.about["times"]) == 10  # type: ignore[arg-type]


@pytest.mark.parametrize("nfe", range(1, 18))
@pytest.mark.parametrize("name", ["pndm", "plms"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_every_number_of_evaluations_can_be_spent_and_none_of_them_without_noise(
    schedule: NoiseSchedule, name: str, nfe: int
) -> None:
    plan = compile_plan(name, schedule, nfe=nfe, prediction="v_prediction", end="clean")
    assert plan.nfe == nfe and all(float(schedule.sigma(float(row.t))) > 0.0 for row in plan.rows)
    x = execute(plan, lambda x, t: -x.tanh(), torch.linspace(-2, 2, 5, dtype=torch.float64))
    assert x.isfinite().all()


@pytest.mark.parametrize(("name", "most"), [("pndm", 4), ("plms", 2)])
def test_with_too_few_evaluations_for_a_start_they_are_ipndm(name: str, most: int) -> None:
    for nfe in range(1, most + 1):
        grid = np.linspace(900.0, 0.0, nfe + 1)
        rows, others = (compile_plan(solver, SCHEDULE, nfe=nfe, grid=grid).rows for solver in (name, ipndm(4)))
        for ours, theirs_ in zip(rows, others, strict=True):
            np.testing.assert_allclose(ours.anchor, theirs_.anchor, rtol=1e-12)
