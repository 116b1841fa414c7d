"""A plan that is brought along: run as it is, saved with the scheduler, refused for another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from odecore.plan import Plan, execute
from samplers.compile import compile_plan
from samplers.diffusers import FewStepScheduler
from samplers.first_step import analytic_first_step
from samplers.registry import solver_named
from scoremodels.schedule import DiscreteVP, RectifiedFlow
from tests.samplers.tiny_pipelines import build, call

SHAPE = (2, 3, 8, 8)


def network(x: Tensor, t: float | Tensor) -> Tensor:
    return torch.tanh(0.9 * x) * (0.5 + torch.as_tensor(t, dtype=torch.float32) / 2000)


def normal(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def a_plan(solver: str = "dpm-solver++-3m", grid: str = "karras", **arguments: Any) -> Plan:
    return compile_plan(solver, DiscreteVP.linear(), nfe=6, grid=grid, **arguments)


def run(scheduler: FewStepScheduler, x: Tensor) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


@pytest.mark.parametrize("as_text", (False, True))
def test_a_given_plan_is_run_as_it_is(as_text: bool) -> None:
    plan = a_plan()
    ours = FewStepScheduler(plan=plan.to_json() if as_text else plan)
    ours.set_timesteps(6)
    assert ours.plan == plan
    torch.testing.assert_close(run(ours, normal()), execute(plan, network, normal()), rtol=1e-5, atol=1e-5)


def test_a_plan_is_saved_with_the_scheduler_to_the_last_bit(tmp_path: Path) -> None:
    ours = FewStepScheduler.from_config(DDPMScheduler(clip_sample=False), plan=a_plan())
    ours.save_pretrained(tmp_path)
    for again in (FewStepScheduler.from_pretrained(tmp_path), FewStepScheduler.from_config(ours.config)):
        again.set_timesteps(6)
        assert again.plan == a_plan()


def test_a_pipeline_runs_a_plan() -> None:
    tiny = build("ddpm", Path())
    tiny.pipe.scheduler = FewStepScheduler.from_config(tiny.pipe.scheduler, solver="dpm-solver++-3m", grid="karras")
    expected = call(tiny, 6)
    plan = a_plan(end="clean")
    tiny.pipe.scheduler = FewStepScheduler.from_config(tiny.pipe.scheduler.config, plan=plan, solver=None, grid=None)
    assert tiny.pipe.scheduler.config.clip_sample  # the plan then reads the clipped sample
    torch.testing.assert_close(call(tiny, 6), expected, rtol=1e-5, atol=1e-5)


def test_the_levels_that_a_flow_pipeline_gives_do_not_change_a_plan(tmp_path: Path) -> None:
    tiny = build("flux", tmp_path)
    plan = compile_plan("dpm-solver++-2m", RectifiedFlow(scale=1000.0), nfe=6, prediction="flow")
    tiny.pipe.scheduler = FewStepScheduler.from_config(tiny.pipe.scheduler, plan=plan)
    assert torch.isfinite(call(tiny, 6)).all()
    assert tiny.pipe.scheduler.timesteps.tolist() == pytest.approx([row.t for row in plan.rows])


def test_a_plan_whose_first_step_is_known_scales_the_start() -> None:
    plan = compile_plan(analytic_first_step(solver_named("dpm-solver++-2m")), DiscreteVP.linear(), nfe=6)
    ours = FewStepScheduler(plan=plan)
    ours.set_timesteps(6)
    result = run(ours, normal() * ours.init_noise_sigma)
    torch.testing.assert_close(result, execute(plan, network, normal()), rtol=1e-5, atol=1e-5)


def test_a_run_may_begin_where_the_rest_of_a_plan_stands_alone() -> None:
    ours = FewStepScheduler(plan=a_plan("edm-heun"))
    ours.set_timesteps(6)
    ours.set_begin_index(2)
    ours.step(normal(1), ours.timesteps[2], normal())
    ours.set_timesteps(6)
    ours.set_begin_index(3)
    with pytest.raises(ValueError, match=r"begin_index=3.*start at one of rows \[0, 2, 4"):
        ours.step(normal(1), ours.timesteps[3], normal())


@pytest.mark.parametrize(("arguments", "message"), [
    ({"plan": "{"}, "not valid JSON"),
    ({"solver": "ddim"}, "solver='ddim' beside a plan"),
    ({"grid": "karras"}, "grid='karras' beside a plan"),
    ({"prediction_type": "v_prediction"}, "predicts 'epsilon'"),
    ({"beta_schedule": "scaled_linear"}, "another noise schedule"),
    ({"num_train_timesteps": 500}, "times from 999"),
    ({"conventions": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "another noise schedule"),
])
def test_a_plan_of_another_model_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewStepScheduler(**{"plan": a_plan(), **arguments})


@pytest.mark.parametrize("asked", [{"num_inference_steps": 8}, {"timesteps": [999, 500]}, {"sigmas": [3.0, 1.0]}])
def test_another_number_of_evaluations_than_the_plan_has_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="plan spends 6"):
        FewStepScheduler(plan=a_plan()).set_timesteps(**asked)


def test_the_number_of_evaluations_may_be_left_to_the_plan() -> None:
    ours = FewStepScheduler(plan=a_plan())
    ours.set_timesteps()
    assert ours.num_inference_steps == 6
    assert FewStepScheduler.from_config(FlowMatchEulerDiscreteScheduler()).config.plan is None
