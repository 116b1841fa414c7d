"""A recipe remembers the last plans that it compiled, and nothing of their runs."""

from __future__ import annotations

import copy

import pytest

from samplers.diffusers import FewStepScheduler


def test_the_same_wish_is_compiled_once() -> None:
    scheduler = FewStepScheduler(solver="unipc-3")
    scheduler.set_timesteps(10)
    first = scheduler.plan
    scheduler.set_timesteps(11)
    assert scheduler.plan is not first
    scheduler.set_timesteps(10)
    assert scheduler.plan is first


def test_custom_times_and_shifts_are_told_apart() -> None:
    scheduler = FewStepScheduler(solver="unipc-3")
    plans = []
    for times in ([900, 500, 100], [900, 500, 101], [900.0, 500.0, 100.0]):
        scheduler.set_timesteps(timesteps=times)
        plans.append(scheduler.plan)
    scheduler.set_timesteps(sigmas=[9.0, 1.0, 0.1])
    assert plans[0] is plans[2] and plans[0] != plans[1] and scheduler.plan not in plans
    flow = FewStepScheduler(conventions="FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True,
                            prediction_type="flow_prediction")
    flow.set_timesteps(4, mu=0.5)
    first = flow.timesteps
    flow.set_timesteps(4, mu=1.0)
    assert not first.equal(flow.timesteps)
    flow.set_timesteps(4, mu=0.5)
    assert first.equal(flow.timesteps)


def test_a_remembered_plan_does_not_let_a_wrong_count_pass() -> None:
    scheduler = FewStepScheduler()
    scheduler.set_timesteps(1)
    for wrong in (True, 1.0):
        with pytest.raises(ValueError, match="nfe="):
            scheduler.set_timesteps(wrong)  # type: ignore[arg-type]


def test_only_the_last_eight_are_kept() -> None:
    scheduler = FewStepScheduler(solver="ddim")
    for count in range(1, 30):
        scheduler.set_timesteps(count)
    assert len(scheduler._recipe.compiled) == 8
    assert copy.deepcopy(scheduler).plan == scheduler.plan
