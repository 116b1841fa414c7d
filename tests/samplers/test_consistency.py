"""LCM and TCD: equality with diffusers on a pretrained model's outputs, and their bounds."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from odecore.plan import execute
from samplers import compile_plan
from samplers.consistency import lcm, skipping, tcd
from scoremodels.loaders import load
from scoremodels.schedule import EDM, DiscreteVP


def both(name: str, monkeypatch: pytest.MonkeyPatch, solver: Any, times: Any, **arguments: Any) -> tuple[Any, Any]:
    model = load("fashion-mnist-ddpm")
    scheduler: Any = getattr(diffusers, f"{name.upper()}Scheduler")(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(4)
    start, *draws = torch.randn(6, 1, *model.shape, generator=torch.Generator().manual_seed(0)).unbind()
    theirs, ours = iter(draws), iter(draws)
    monkeypatch.setattr(f"diffusers.schedulers.scheduling_{name}.randn_tensor", lambda *_, **__: next(theirs))
    plan = compile_plan(solver, model.schedule, nfe=4, grid=times(scheduler))
    assert [row.t for row in plan.rows] == scheduler.timesteps.tolist()
    y = start
    with torch.no_grad():
        for t in scheduler.timesteps:
            y = scheduler.step(model(y, float(t)), t, y, **arguments).prev_sample
        return execute(plan, model, start, noise=lambda: next(ours)), y


def test_lcm_equals_diffusers_on_a_pretrained_model(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = both("lcm", monkeypatch, "lcm", lambda _: skipping)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.8])
def test_tcd_equals_diffusers_on_a_pretrained_model(monkeypatch: pytest.MonkeyPatch, eta: float) -> None:
    ours, theirs = both("tcd", monkeypatch, tcd(eta),
                        lambda scheduler: np.append(scheduler.timesteps.numpy().astype(float), 0.0), eta=eta)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_a_perfect_consistency_function_is_returned_whatever_the_noise() -> None:
    plan = compile_plan("consistency", EDM(), nfe=3, prediction="sample")
    x = execute(plan, lambda x, t: torch.full_like(x, 0.25), torch.randn(5), noise=lambda: torch.randn(5))
    torch.testing.assert_close(x, torch.full((5,), 0.25))


def test_the_skipping_grid_refuses_what_the_distillation_did_not_know() -> None:
    with pytest.raises(ValueError, match="nfe=51"):
        skipping(DiscreteVP.linear(), 51, -1.0)
    with pytest.raises(ValueError, match="discrete"):
        skipping(EDM(), 4, 0.0)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="timestep_scaling"):
        lcm(-1.0)
    with pytest.raises(ValueError, match="eta"):
        tcd(1.5)
