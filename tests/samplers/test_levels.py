"""Grids of noise levels: they decrease on every schedule, and equal what others compute."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from diffusers.schedulers import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import GRIDS, compile_plan
from samplers.grids import Grid, exponential, time
from samplers.levels import ALIGN_YOUR_STEPS, align_your_steps, arctan, beta, beta_quantiles, polyexponential, shifted
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

LINEAR = DiscreteVP.linear()
SCHEDULES = [LINEAR, DiscreteVP.cosine(), LINEAR.zero_terminal_snr(), ContinuousVP(), VE(), EDM(), RectifiedFlow()]
GRIDS_HERE = [polyexponential, partial(polyexponential, rho=2.0), beta, partial(beta, a=0.5, b=0.7), arctan]


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(range(len(SCHEDULES))), st.sampled_from(range(len(GRIDS_HERE))), st.integers(1, 60),
       st.booleans())
def test_times_fall_strictly_from_the_noisiest_to_the_end(schedule: int, grid: int, steps: int, clean: bool) -> None:
    chosen: NoiseSchedule = SCHEDULES[schedule]
    end = float(chosen.t_clean if clean else chosen.t_min)
    times = GRIDS_HERE[grid](chosen, steps, end)
    assert times.shape == (steps + 1,)
    assert times[0] == chosen.t_max
    assert times[-1] == end
    assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("end", [0.0, 0.001, 0.01])
@pytest.mark.parametrize("grid", [shifted(time, 3.0), shifted(exponential, 0.4), shifted(time, 0.2)])
def test_shifted_times_of_a_flow_fall_strictly_to_the_end(grid: Grid, end: float) -> None:
    for steps in (1, 2, 7, 50):
        times = grid(RectifiedFlow(), steps, end)
        assert (times[0], times[-1], len(times)) == (1.0, end, steps + 1)
        assert (np.diff(times) < 0).all()


def test_the_tables_are_those_that_diffusers_has() -> None:
    for model, key in (("sd-1.5", "StableDiffusionSigmas"), ("sdxl", "StableDiffusionXLSigmas")):
        np.testing.assert_allclose(ALIGN_YOUR_STEPS[model][:-1], AysSchedules[key][:-1][:10], rtol=1e-9)
    np.testing.assert_allclose(ALIGN_YOUR_STEPS["svd"][:-1], AysSchedules["StableDiffusionVideoSigmas"][:10], rtol=1e-9)


def test_ten_steps_take_the_published_levels_and_twenty_lie_between_them() -> None:
    schedule = DiscreteVP.scaled_linear()
    ten = align_your_steps(schedule, 10, float(schedule.t_min))
    np.testing.assert_allclose(schedule.ratio(ten[1:-1]), ALIGN_YOUR_STEPS["sd-1.5"][1:-1], rtol=1e-6)
    twenty = align_your_steps(schedule, 20, float(schedule.t_min))
    np.testing.assert_allclose(twenty[2:-1:2], ten[1:-1], rtol=1e-9)
    assert compile_plan("dpm-solver++-2m", schedule, nfe=10, grid="align-your-steps").nfe == 10


def test_a_table_beyond_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="choose another grid"):
        align_your_steps(VE(sigma_min=0.01, sigma_max=5.0), 10, 0.0)
    with pytest.raises(ValueError, match="model="):
        align_your_steps(LINEAR, 10, -1.0, model="dall-e")


def test_quantiles_equal_the_closed_form_of_the_arcsine_distribution() -> None:
    p = np.linspace(1, 0, 9)
    np.testing.assert_allclose(beta_quantiles(9, 0.5, 0.5), np.sin(math.pi * p / 2) ** 2, atol=1e-9)


def test_a_shift_of_a_flow_moves_its_sigmas_as_published() -> None:
    sigmas, factor = time(RectifiedFlow(), 8, 0.0)[1:-1], 3.0
    np.testing.assert_allclose(shifted(time, factor)(RectifiedFlow(), 8, 0.0)[1:-1],
                               factor * sigmas / (1 + (factor - 1) * sigmas), rtol=1e-12)


def test_parameters_that_cannot_be_are_refused() -> None:
    for call in (partial(beta, LINEAR, 5, -1.0, a=0.0), partial(polyexponential, LINEAR, 5, -1.0, rho=-1.0),
                 partial(shifted, time, 0.0)):
        with pytest.raises(ValueError, match="positive"):
            call()
    with pytest.raises(ValueError, match="flow"):
        shifted(time, 3.0)(LINEAR, 5, -1.0)


def test_every_grid_here_has_a_name() -> None:
    assert {"beta", "polyexponential", "arctan", "align-your-steps", "skipping"} <= set(GRIDS)
