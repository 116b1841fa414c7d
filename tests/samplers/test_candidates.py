"""What calibration tries: each plan once, and whatever a deterministic scheduler of diffusers does."""

from __future__ import annotations

import pytest
import torch
from diffusers import DEISMultistepScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from odecore.plan import execute
from samplers.candidates import FURTHER_GRIDS, VARIANTS, candidates, grid_names, plain_solvers
from samplers.registry import GRIDS, SOLVERS
from scoremodels.loaders import load


def test_no_method_comes_twice() -> None:
    model = load("fashion-mnist-edm")
    found = candidates(model, 5, ["ddim", "euler", "dpm-solver-1", "ipndm-2"], ["log-snr", "exponential", "karras"])
    assert [(c.solver, c.grid) for c in found] == [
        ("ddim", "log-snr"), ("ddim", "karras"), ("dpm-solver-1", "log-snr"), ("dpm-solver-1", "karras"),
        ("ipndm-2", "log-snr"), ("ipndm-2", "karras")], "euler is ddim; dpm-solver-1 ends where some noise is left"
    assert all(c.plan.nfe == 5 and c.plan.about["grid"] == c.grid for c in found)


def test_variants_do_not_hide_registered_names() -> None:
    assert not VARIANTS.keys() & SOLVERS.keys() and not FURTHER_GRIDS.keys() & GRIDS.keys()
    assert set(grid_names()) == {*GRIDS, *FURTHER_GRIDS} - {"skipping"}
    assert "ddpm" not in plain_solvers() and "dpm-solver-12" not in plain_solvers()


def test_every_candidate_can_be_written_down() -> None:
    model = load("fashion-mnist-ddpm")
    for candidate in candidates(model, 7, VARIANTS, ["karras", "leading:from-0"]):
        assert candidate.plan.to_json()


@pytest.mark.parametrize(("scheduler", "solver"), [
    (DEISMultistepScheduler(solver_order=3), "dpm-solver-3m"),
    (UniPCMultistepScheduler(solver_order=3), "unipc-3"),
    (UniPCMultistepScheduler(solver_order=2, solver_type="bh1", final_sigmas_type="sigma_min"), "unipc-2:data-bh1"),
    (DPMSolverMultistepScheduler(solver_order=3, solver_type="heun"), "dpm-solver++-3m:heun")])
def test_schedulers_of_diffusers_are_among_them(scheduler: object, solver: str) -> None:
    model = load("fashion-mnist-ddpm")
    scheduler.set_timesteps(6)
    x = start = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    (candidate,) = candidates(model, 6, [solver], ["linspace"])
    end = "minimum" if scheduler.sigmas[-1] > 0 else "clean"
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t), t, x).prev_sample
        ours = execute(candidate.plan, model, start)
    # Candidates end without noise where theirs keep the least: that is a hundredth.
    assert (ours - x).abs().max() <= (2e-5 if end == "clean" else 0.05) * x.abs().max()
