"""Inpainting: the known region is the image, noised with one noise; against diffusers' loop of replacements."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from samplers import Inpainting, compile_plan, sample
from scoremodels.analytic import GaussianModel
from scoremodels.loaders import load
from scoremodels.schedule import EDM, DiscreteVP, RectifiedFlow

MASK = torch.zeros(1, 28, 28)
MASK[..., :14] = 1.0
KNOWN = torch.linspace(-1, 1, 784).reshape(1, 28, 28)


@pytest.mark.parametrize("name", ["fashion-mnist-edm", "fashion-mnist-ddpm", "fashion-mnist-flow"])
@pytest.mark.parametrize("solver", ["dpm-solver++-2m", "unipc-2", "sde-dpm-solver++-2m"])
def test_the_known_region_comes_out_as_it_is(name: str, solver: str) -> None:
    result = sample(Inpainting(load(name), KNOWN, MASK), num=2, nfe=5, solver=solver, end="clean")
    torch.testing.assert_close(result.samples[..., :14], KNOWN[..., :14].expand(2, -1, -1, -1), rtol=1e-4, atol=1e-4)
    assert result.nfe == 5 and result.samples[..., 14:].std() > 0.05


@pytest.mark.parametrize("schedule", [EDM(), DiscreteVP.linear(), RectifiedFlow()])
def test_on_the_way_the_known_region_is_the_image_with_one_noise(schedule: Any) -> None:
    model = GaussianModel(torch.zeros(1, 4, 4), torch.eye(16), schedule)
    image = torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(1, 4, 4)
    x = float(schedule.prior_scale(schedule.t_max)) * torch.randn(
        2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = sample(Inpainting(model, image, torch.ones(4)), x_T=x, nfe=6, solver="dpm-solver++-3m", trajectory=True,
                  end="minimum").trajectory
    assert path is not None
    noise = (x - schedule.alpha(schedule.t_max) * image) / schedule.sigma(schedule.t_max)
    for t, state in zip(path.times.tolist(), path.states, strict=True):
        torch.testing.assert_close(state, schedule.alpha(t) * image + schedule.sigma(t) * noise, rtol=1e-8, atol=1e-8)


def test_it_is_the_loop_that_replaces_the_known_region_after_each_step_of_diffusers() -> None:
    model, steps = load("fashion-mnist-ddpm").double(), 8
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
    scheduler.alphas_cumprod = torch.from_numpy(model.schedule.alpha(np.arange(1000.0)) ** 2)
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    scheduler.set_timesteps(steps)
    noise = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image, mask, times = KNOWN.double(), MASK.double(), scheduler.timesteps.tolist()

    def noised(t: float) -> Tensor:
        return model.schedule.alpha(t) * image + model.schedule.sigma(t) * noise

    start = mask * noised(times[0]) + (1 - mask) * noise
    x = start
    with torch.no_grad():
        for t, following in zip(times, [*times[1:], -1], strict=True):
            x = scheduler.step(model(x, float(t)), t, x).prev_sample
            x = mask * noised(following) + (1 - mask) * x
    grid = [float(t) for t in (*times, model.schedule.t_clean)]
    plan = compile_plan("ddim", model.schedule, nfe=steps, grid=grid, prediction="sample")
    got = sample(Inpainting(model, image, mask), x_T=start, plan=plan).samples
    torch.testing.assert_close(got, x, rtol=1e-6, atol=1e-6)


def test_going_back_and_on_again_as_in_repaint_keeps_the_known_region() -> None:
    result = sample(Inpainting(load("fashion-mnist-edm"), KNOWN, MASK), num=1, nfe=18, solver="restart", end="clean")
    torch.testing.assert_close(result.samples[0, ..., :14], KNOWN[..., :14], rtol=1e-3, atol=1e-3)


def test_a_mask_in_between_blends() -> None:
    model = GaussianModel(torch.zeros(1, 4, 4), torch.eye(16), EDM())
    x, image = torch.ones(2, 1, 4, 4), torch.full((1, 4, 4), 0.5)
    wrapped = Inpainting(model, image, torch.tensor(0.25))
    torch.testing.assert_close(wrapped(x, 1.0), 0.25 * image + 0.75 * model(x, 1.0))


@pytest.mark.parametrize(("image", "mask", "message"), [
    (torch.zeros(1, 3, 4), torch.ones(4), "image has shape"),
    (torch.zeros(1, 4, 4, dtype=torch.long), torch.ones(4), "dtype"),
    (torch.full((1, 4, 4), torch.nan), torch.ones(4), "non-finite"),
    (torch.zeros(1, 4, 4), torch.ones(3), "mask has shape"),
    (torch.zeros(1, 4, 4), torch.ones(2, 1, 4, 4), "mask has shape"),
    (torch.zeros(1, 4, 4), 2 * torch.ones(4), "0 to 1"),
])
def test_wrong_images_and_masks_are_refused(image: Tensor, mask: Tensor, message: str) -> None:
    model = GaussianModel(torch.zeros(1, 4, 4), torch.eye(16), EDM())
    with pytest.raises(ValueError, match=message):
        Inpainting(model, image, mask)
