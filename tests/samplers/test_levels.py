"""Grids of noise levels: they decrease on every schedule, and equal what others compute."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.schedulers import AysSchedules

from samplers import GRIDS, compile_plan
from samplers.levels import ALIGN_YOUR_STEPS, align_your_steps, arctan, beta, beta_quantiles, polyexponential
from scoremodels.schedule import EDM, VE, DiscreteVP

LINEAR = DiscreteVP.linear()


def test_the_tables_are_those_that_diffusers_has() -> None:
    for model, key in (("sd-1.5", "StableDiffusionSigmas"), ("sdxl", "StableDiffusionXLSigmas")):
        np.testing.assert_allclose(ALIGN_YOUR_STEPS[model][:-1], AysSchedules[key][:-1][:10], rtol=1e-9)
    np.testing.assert_allclose(ALIGN_YOUR_STEPS["svd"][:-1], AysSchedules["StableDiffusionVideoSigmas"][:10], rtol=1e-9)


@pytest.mark.parametrize("clean", [False, True])
def test_ten_steps_take_the_published_levels_and_twenty_lie_between_them(clean: bool) -> None:
    schedule = DiscreteVP.scaled_linear()
    end = float(schedule.t_clean if clean else schedule.t_min)
    ten = align_your_steps(schedule, 10, end)
    np.testing.assert_allclose(schedule.ratio(ten[1:-1]), ALIGN_YOUR_STEPS["sd-1.5"][1:-1], rtol=1e-6)
    twenty = align_your_steps(schedule, 20, end)
    np.testing.assert_allclose(twenty[2:-1:2], ten[1:-1], rtol=1e-9)
    middle = np.sqrt(schedule.ratio(ten[3]) * schedule.ratio(ten[4]))
    np.testing.assert_allclose(schedule.ratio(twenty[7]), middle, rtol=1e-9)
    assert compile_plan("dpm-solver++-2m", schedule, nfe=10, grid="align-your-steps").nfe == 10


def test_a_table_beyond_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="choose another grid"):
        align_your_steps(VE(sigma_min=0.01, sigma_max=5.0), 10, 0.0)
    with pytest.raises(ValueError, match="model="):
        align_your_steps(LINEAR, 10, -1.0, model="dall-e")


def test_quantiles_equal_the_closed_form_of_the_arcsine_distribution() -> None:
    p = np.linspace(1, 0, 9)
    np.testing.assert_allclose(beta_quantiles(9, 0.5, 0.5), np.sin(math.pi * p / 2) ** 2, atol=1e-9)


def test_a_beta_grid_takes_the_levels_that_diffusers_converts_to() -> None:
    theirs = DPMSolverMultistepScheduler(use_beta_sigmas=True)._convert_to_beta(torch.tensor([5.0, 0.1]), 12)
    np.testing.assert_allclose(beta(EDM(sigma_min=0.1, sigma_max=5.0), 12, 0.0)[:-1], theirs, rtol=1e-6)


def test_a_polyexponential_grid_equals_the_published_formula() -> None:
    ramp = np.linspace(1, 0, 9) ** 1.7
    theirs = np.exp(ramp * (math.log(80.0) - math.log(0.002)) + math.log(0.002))
    np.testing.assert_allclose(polyexponential(EDM(), 9, 0.0, rho=1.7)[:-1], theirs, rtol=1e-12)


def test_even_arc_tangents_are_even_times_of_the_cosine_schedule() -> None:
    schedule = DiscreteVP.cosine(s=1e-9, max_beta=1.0 - 1e-9)
    times = arctan(schedule, 10, 98.0)[1:]
    np.testing.assert_allclose(np.diff(times), np.diff(times).mean(), atol=0.2)
    angles = np.arctan(EDM().ratio(arctan(EDM(), 10, 0.002, std=0.5)) / 0.5)
    np.testing.assert_allclose(np.diff(angles), np.diff(angles).mean(), rtol=1e-9)


def test_parameters_that_cannot_be_are_refused() -> None:
    for call in (partial(beta, LINEAR, 5, -1.0, a=0.0), partial(polyexponential, LINEAR, 5, -1.0, rho=-1.0),
                 partial(arctan, LINEAR, 5, -1.0, std=0.0)):
        with pytest.raises(ValueError, match="positive"):
            call()


def test_every_grid_here_has_a_name() -> None:
    assert {"beta", "polyexponential", "arctan", "align-your-steps", "skipping"} <= set(GRIDS)
