"""A real pretrained network, run by diffusers' schedulers and by our plans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor

from odecore.plan import execute
from samplers import Solver, compile_plan
from scoremodels.schedule import DiscreteVP

FOLDER = Path(__file__).parents[2] / "scoremodels" / "pretrained" / "fashion-mnist-ddpm"
SCHEDULE = DiscreteVP.linear()

Difference = Callable[..., float]


@pytest.fixture(scope="session")
def difference_from_diffusers() -> Difference:
    """``(scheduler, solver, dtype)``: the samples' largest difference over the largest value, on equal timesteps.

    In float64 the scheduler is given exact noise levels, in place of its own that are rounded to float32.
    """
    networks = {dtype: UNet2DModel.from_pretrained(FOLDER, subfolder="unet", torch_dtype=dtype).eval()
                for dtype in (torch.float32, torch.float64)}
    start = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def theirs(scheduler: Any, network: UNet2DModel, x: Tensor) -> Tensor:
        # Schedulers in σ count in x/α, whose start is the same noise.
        state = x * (scheduler.sigmas[0] ** 2 + 1) ** 0.5 if hasattr(scheduler, "is_scale_input_called") else x
        for t in scheduler.timesteps:
            state = scheduler.step(network(scheduler.scale_model_input(state, t), t).sample, t, state).prev_sample
        return state

    @torch.no_grad()
    def difference(scheduler: Any, solver: Solver, dtype: torch.dtype = torch.float64) -> float:
        end = SCHEDULE.t_clean if scheduler.sigmas[-1] == 0 else SCHEDULE.t_min
        times = np.append(scheduler.timesteps.double().numpy(), end)
        if dtype == torch.float64:
            scheduler.sigmas = torch.from_numpy(SCHEDULE.ratio(times))
        plan = compile_plan(solver, SCHEDULE, nfe=len(times) - 1, grid=times)
        network, x = networks[dtype], start.to(dtype)
        ours, other = execute(plan, lambda state, t: network(state, t).sample, x), theirs(scheduler, network, x)
        return float((ours - other).abs().max() / other.abs().max())

    return difference
