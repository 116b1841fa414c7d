"""Inversion: exact to rounding where it iterates, equal to diffusers' inverse schedulers where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DPMSolverMultistepInverseScheduler, UNet2DModel
from torch import Tensor

from odecore.plan import Plan, execute
from samplers.compile import compile_plan
from samplers.ddim import DDIM
from samplers.diffusers import FewStepScheduler
from samplers.inversion import backwards, ddim_inversion
from samplers.published import published_multistep
from samplers.registry import solver_named
from samplers.sample import sample
from scoremodels.analytic import GaussianModel
from scoremodels.schedule import DiscreteVP

FOLDER = Path(__file__).parents[2] / "scoremodels" / "pretrained" / "fashion-mnist-ddpm"
SCHEDULE = DiscreteVP.linear()


def network(x: Tensor, t: float | Tensor) -> Tensor:
    return torch.tanh(0.9 * x) * (0.5 + torch.as_tensor(t, dtype=torch.float32) / 2000)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed))


def plan(solver: Any, nfe: int, end: str = "minimum") -> Plan:
    return compile_plan(solver, SCHEDULE, nfe=nfe, grid="time", end=end)


@torch.no_grad()
def test_on_a_pretrained_network_iterations_bring_the_image_back_ever_more_exactly() -> None:
    unet = UNet2DModel.from_pretrained(FOLDER, subfolder="unet").eval()

    def model(x: Tensor, t: float | Tensor) -> Tensor:
        return unet(x, t).sample

    steps = 12
    image = execute(plan(DDIM, steps), model, normal(1, 1, 28, 28))
    errors = []
    for iterations in (1, 2, 4, 6):
        noise = execute(plan(ddim_inversion(iterations), iterations * steps), model, image)
        again = execute(plan(DDIM, steps), model, noise)
        errors.append(float((again - image).norm() / image.norm()))
    assert errors[0] > 1e-2  # the usual DDIM inversion
    assert all(after < before / 2 for before, after in zip(errors[:-1], errors[1:], strict=True))
    assert errors[-1] < errors[0] / 15


def test_the_inverse_of_one_step_is_that_of_its_closed_form() -> None:
    clean, noisy = 200.0, 400.0
    rows = compile_plan(ddim_inversion(3), SCHEDULE, nfe=3, grid=[noisy, clean]).rows
    assert [(row.t, row.t_next) for row in rows] == [(noisy, clean), (noisy, clean), (noisy, noisy)]
    x = guess = normal().double()
    for _ in range(3):
        epsilon = network(guess, noisy)
        guess = SCHEDULE.alpha(noisy) * (x / SCHEDULE.alpha(clean) + (
            SCHEDULE.ratio(noisy) - SCHEDULE.ratio(clean)) * epsilon)
    made = Plan(rows, clean)
    torch.testing.assert_close(execute(made, network, x), guess, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", (2, 3))
def test_a_solver_that_walks_backwards_keeps_its_order(order: int) -> None:
    solver = solver_named(f"lms-{order}")
    exact = execute(plan(backwards(solver), 512), network, normal().double())
    errors = [float((execute(plan(backwards(solver), n), network, normal().double()) - exact).abs().max())
              for n in (16, 32, 64)]
    slopes = -np.diff(np.log2(errors))
    assert slopes[-1] > order - 0.4  # the timesteps' log-SNR is linear between whole ones


def run(scheduler: Any, x: Tensor) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    return x


def assert_taken_over(theirs: Any) -> None:
    """A scheduler from their config goes through the same timesteps to the same end."""
    ours = FewStepScheduler.from_config(theirs)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(10)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    x = normal()
    torch.testing.assert_close(run(ours, x), run(theirs, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("config", [
    {}, {"timestep_spacing": "trailing"}, {"set_alpha_to_one": False, "steps_offset": 1},
    {"beta_schedule": "scaled_linear"}])
def test_a_ddim_inverse_config_gives_what_its_scheduler_gives(config: dict[str, Any]) -> None:
    assert_taken_over(DDIMInverseScheduler(clip_sample=False, **config))


@pytest.mark.parametrize("order", (1, 2, 3))
@pytest.mark.parametrize("algorithm", ("dpmsolver++", "dpmsolver"))
def test_a_multistep_inverse_config_gives_what_its_scheduler_gives(algorithm: str, order: int) -> None:
    assert_taken_over(DPMSolverMultistepInverseScheduler(algorithm_type=algorithm, solver_order=order))


@pytest.mark.parametrize("by_value", (False, True))
def test_the_scheduler_inverts_what_it_samples_and_samples_what_it_inverts(by_value: bool) -> None:
    config = DDIMScheduler(set_alpha_to_one=False, steps_offset=1, clip_sample=False)
    there = FewStepScheduler.from_config(config)
    back = FewStepScheduler.from_config(config, conventions="DDIMInverseScheduler", solver_options={"iterations": 12})
    there.set_timesteps(20)
    back.set_timesteps(240)
    assert back.timesteps[::12].tolist() == there.timesteps.tolist()[::-1]
    image = run(there, normal())
    first = back.timesteps[0].item() if by_value else back.timesteps[0]
    x = back.step(network(image, first), first, image).prev_sample
    for t in back.timesteps[1:]:
        x = back.step(network(x, t), t, x).prev_sample
    torch.testing.assert_close(run(there, x), image, rtol=1e-5, atol=1e-4)


def test_sample_walks_from_data_to_noise_and_back() -> None:
    model, options = GaussianModel(torch.zeros(2), torch.eye(2) / 4, SCHEDULE), dict(grid="time", end="minimum")
    data = sample(model, num=4, nfe=10, solver="ddim", **options).samples
    noise = sample(model, x_T=data, nfe=80, solver=ddim_inversion(8), **options)
    assert noise.nfe == 80
    torch.testing.assert_close(sample(model, x_T=noise.samples, nfe=10, solver="ddim", **options).samples, data,
                               rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="give the data"):
        sample(model, num=1, nfe=8, solver=ddim_inversion(8), **options)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ddim_inversion(0), "iterations=0"),
    (lambda: plan(ddim_inversion(3), 10), "nfe=10"),
    (lambda: backwards(solver_named("ddpm")), "adds noise"),
    (lambda: plan(backwards(published_multistep("data", 2)), 10, "clean"), "scale is zero"),
    (lambda: compile_plan(ddim_inversion(), SCHEDULE.zero_terminal_snr(), nfe=4, prediction="v_prediction"),
     "infinitely"),
])
def test_what_has_no_inverse_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
