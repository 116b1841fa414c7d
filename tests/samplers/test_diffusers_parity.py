"""On a real pretrained model the published weights reproduce diffusers' own DPM-Solver schedulers."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UNet2DModel
from torch import Tensor

from odecore.plan import execute
from samplers.compile import compile_plan
from samplers.diffusers import FewStepScheduler
from samplers.published import published_multistep, published_singlestep, singlestep_orders_on_grid
from samplers.solver import Solver
from scoremodels.schedule import DiscreteVP

FOLDER = Path(__file__).parents[2] / "scoremodels" / "pretrained" / "fashion-mnist-ddpm"
RELATIVE = 1e-5
"""Bound of the whole image."""
PIXEL = 2e-5
"""Bound of the worst pixel."""
ROUNDING_AT_FULL_NOISE = 1e-4
"""Bound of a pixel for singlestep noise prediction from t = 999, the whole image being within 1e-5: the signal is 1/158
of the state there, so dividing by it makes float32's 6e-8 one part in 1e5. Either float32 run differs by as much from
the same run in float64."""

MULTISTEP = {("dpmsolver++", 1): "ddim", ("dpmsolver++", 2): "dpm-solver++-2m", ("dpmsolver++", 3): "dpm-solver++-3m",
             ("dpmsolver", 1): "dpm-solver-1", ("dpmsolver", 2): "dpm-solver-2m", ("dpmsolver", 3): "dpm-solver-3m"}
VARIABLE = {"dpmsolver++": "data", "dpmsolver": "noise"}
ORDERS_AND_KINDS = [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (3, "midpoint"), (3, "heun")]
END = {"dpmsolver++": "zero", "dpmsolver": "sigma_min"}


@cache
def network() -> UNet2DModel:
    return UNet2DModel.from_pretrained(FOLDER, subfolder="unet").eval()


def start() -> Tensor:
    return torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def run(scheduler: Any, told: Tensor | None = None) -> Tensor:
    """Sample; ``told`` are the times that the network is told, if not the scheduler's own."""
    x = start()
    for i, t in enumerate(scheduler.timesteps):
        raw = network()(x, t if told is None else told[i]).sample
        x = scheduler.step(raw, t, x).prev_sample
    return x


@torch.no_grad()
def run_plan(solver: Solver, nfe: int, end: str) -> Tensor:
    plan = compile_plan(solver, DiscreteVP.linear(), nfe=nfe, grid="linspace",
                        end={"zero": "clean", "sigma_min": "minimum"}[end])
    return execute(plan, lambda x, t: network()(x, t).sample, start())


def assert_equal(ours: Tensor, theirs: Tensor, bound: float = PIXEL) -> None:
    whole = (ours - theirs).norm() / theirs.norm()
    assert whole <= RELATIVE, f"relative difference {whole:.1e}"
    largest = (ours - theirs).abs().max() / theirs.abs().max()
    assert largest <= bound, f"largest relative difference {largest:.1e}"


def singlestep_bound(algorithm: str) -> float:
    return ROUNDING_AT_FULL_NOISE if algorithm == "dpmsolver" else PIXEL


def multistep(count: int, **config: Any) -> DPMSolverMultistepScheduler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dpmsolver is deprecated there
        scheduler = DPMSolverMultistepScheduler(**config)
    scheduler.set_timesteps(count)
    return scheduler


def singlestep(count: int, **config: Any) -> DPMSolverSinglestepScheduler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = DPMSolverSinglestepScheduler(**config)
    scheduler.set_timesteps(count)
    return scheduler


def few_step(theirs: Any, **arguments: Any) -> FewStepScheduler:
    ours = FewStepScheduler.from_config(theirs.config, **arguments)
    ours.set_timesteps(theirs.num_inference_steps)
    return ours


@pytest.mark.parametrize("spacing", ("leading", "linspace", "trailing"))
@pytest.mark.parametrize(("order", "kind"), ORDERS_AND_KINDS)
@pytest.mark.parametrize("algorithm", ("dpmsolver++", "dpmsolver"))
def test_multistep_equals_diffusers_with_every_spacing(algorithm: str, order: int, kind: str, spacing: str) -> None:
    theirs = multistep(8, algorithm_type=algorithm, solver_order=order, solver_type=kind, timestep_spacing=spacing,
                       steps_offset=1 if spacing == "leading" else 0, final_sigmas_type=END[algorithm])
    name = MULTISTEP[algorithm, order]
    ours = few_step(theirs, solver=name, weights="exact" if name == "ddim" else kind)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert_equal(run(ours), run(theirs))


@pytest.mark.parametrize("kind", ("midpoint", "heun"))
@pytest.mark.parametrize("algorithm", ("dpmsolver++", "dpmsolver"))
def test_multistep_equals_diffusers_where_enough_steps_end_the_lower_orders(algorithm: str, kind: str) -> None:
    theirs = multistep(16, algorithm_type=algorithm, solver_order=3, solver_type=kind,
                       final_sigmas_type=END[algorithm])
    assert_equal(run(few_step(theirs, solver=MULTISTEP[algorithm, 3], weights=kind)), run(theirs))


@pytest.mark.parametrize(("lower_order_final", "euler_at_final"), [(False, False), (False, True), (True, True)])
def test_multistep_equals_diffusers_however_its_last_steps_are_ordered(
    lower_order_final: bool, euler_at_final: bool
) -> None:
    theirs = multistep(8, algorithm_type="dpmsolver", solver_order=3, final_sigmas_type="sigma_min",
                       lower_order_final=lower_order_final, euler_at_final=euler_at_final)
    solver = published_multistep("noise", 3, lower_order_final=lower_order_final, euler_at_final=euler_at_final)
    assert_equal(run_plan(solver, 8, "sigma_min"), run(theirs))


@pytest.mark.parametrize("levels", ("use_karras_sigmas", "use_exponential_sigmas"))
@pytest.mark.parametrize("order", (2, 3))
def test_multistep_equals_diffusers_on_noise_levels_once_the_network_is_told_the_exact_time(
    order: int, levels: str
) -> None:
    theirs = multistep(8, solver_order=order, **{levels: True})
    # Theirs takes the least level from 1 - ᾱ in float32, which is off by 1e-4; the grids must coincide.
    ours = few_step(theirs, solver=f"dpm-solver++-{order}m", weights="midpoint", sigma_min=float(theirs.sigmas[-2]))
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas, rtol=2e-6)
    assert (ours.timesteps - theirs.timesteps).abs().max() <= 1.0
    assert_equal(run(ours), run(theirs, told=ours.timesteps))


@pytest.mark.parametrize("count", (9, 16, 20))
@pytest.mark.parametrize(("order", "kind"), ORDERS_AND_KINDS)
@pytest.mark.parametrize("algorithm", ("dpmsolver++", "dpmsolver"))
def test_singlestep_equals_diffusers(algorithm: str, order: int, kind: str, count: int) -> None:
    theirs = singlestep(count, algorithm_type=algorithm, solver_order=order, solver_type=kind,
                        final_sigmas_type=END[algorithm], lower_order_final=True)
    solver = published_singlestep(VARIABLE[algorithm], order, kind)
    assert_equal(run_plan(solver, count, END[algorithm]), run(theirs), singlestep_bound(algorithm))


@pytest.mark.parametrize("name", ("dpm-solver-2", "dpm-solver-3", "dpm-solver++-2s", "dpm-solver++-3s"))
def test_the_scheduler_runs_published_singlestep_solvers(name: str) -> None:
    algorithm = "dpmsolver++" if "++" in name else "dpmsolver"
    order = 3 if "-3" in name else 2
    theirs = singlestep(20, algorithm_type=algorithm, solver_order=order, final_sigmas_type=END[algorithm],
                        lower_order_final=True)
    ours = few_step(theirs, solver=name, weights="midpoint")
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert_equal(run(ours), run(theirs), singlestep_bound(algorithm))


@pytest.mark.parametrize("spacing", ("leading", "linspace", "trailing"))
def test_ddim_equals_diffusers(spacing: str) -> None:
    theirs = DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    theirs.set_timesteps(10)
    ours = few_step(theirs, solver="ddim")
    if spacing == "linspace":
        # DDIMScheduler steps by 1000/10 wherever the next timestep is, so that only its timesteps agree.
        assert torch.equal(ours.timesteps, theirs.timesteps)
    else:
        assert_equal(run(ours), run(theirs))


@pytest.mark.parametrize("order", (1, 2, 3))
@pytest.mark.parametrize("lower_order_final", (True, False))
@pytest.mark.parametrize("end", ("zero", "sigma_min"))
def test_singlestep_orders_are_those_of_diffusers(order: int, lower_order_final: bool, end: str) -> None:
    scheduler = DPMSolverSinglestepScheduler(solver_order=order, final_sigmas_type=end,
                                             lower_order_final=lower_order_final)
    for count in range(1, 14):
        if not lower_order_final and (count % order or end == "zero"):
            continue
        orders = singlestep_orders_on_grid(count, order, lower_order_final=lower_order_final, zero_end=end == "zero")
        assert np.concatenate([np.arange(k) + 1 for k in orders]).tolist() == scheduler.get_order_list(count)


@pytest.mark.parametrize("count", (4, 7))
def test_singlestep_without_lower_orders_refuses_evaluations_that_it_cannot_spend(count: int) -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        singlestep_orders_on_grid(count, 3, lower_order_final=False, zero_end=False)
