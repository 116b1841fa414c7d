"""Grids of flows equal those of the pipelines that publish them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

from samplers.compile import compile_plan
from samplers.flow_grids import linear_quadratic, shift_factor, shift_of_tokens, shifted
from samplers.grids import exponential, sgm_uniform, time
from scoremodels.schedule import EDM, RectifiedFlow

FLOW = RectifiedFlow()


@pytest.mark.parametrize("threshold", [0.025, 0.1])
@pytest.mark.parametrize("steps", [2, 3, 8, 40, 65])
def test_linear_quadratic_levels_are_the_published_ones(steps: int, threshold: float) -> None:
    mine = linear_quadratic(RectifiedFlow(scale=1000.0), steps, 0.0, threshold=threshold)
    np.testing.assert_allclose(mine[:-1] / 1000.0, linear_quadratic_schedule(steps, threshold), rtol=1e-12)


def test_a_shift_moves_even_levels_as_published() -> None:
    even = np.linspace(1.0, 1e-3, 9)[:-1]
    np.testing.assert_allclose(shifted(sgm_uniform, 3.0)(FLOW, 8, 0.0)[:-1], 3 * even / (1 + 2 * even), rtol=1e-12)


@pytest.mark.parametrize("end", [0.0, 1e-3, 1e-2])
def test_a_shift_keeps_both_ends(end: float) -> None:
    for steps in (1, 2, 7, 50):
        times = shifted(time, 3.0)(FLOW, steps, end)
        assert (times[0], times[-1], len(times)) == (1.0, end, steps + 1)
        assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_dynamic_shift_equals_that_of_the_flux_pipeline(kind: str) -> None:
    mu = shift_of_tokens(1024)
    assert mu == pytest.approx(calculate_shift(1024), rel=1e-12)
    theirs = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    even = np.linspace(1.0, 1e-3, 7)[:-1]
    theirs.set_timesteps(sigmas=list(even), mu=mu)
    mine = shifted(sgm_uniform, shift_factor(mu, kind))(FLOW, 6, 0.0)
    np.testing.assert_allclose(mine, theirs.sigmas.numpy(), rtol=1e-6)


def test_a_shifted_grid_compiles() -> None:
    plan = compile_plan("ddim", FLOW, nfe=5, grid=shifted(exponential, 1.5), prediction="flow")
    assert plan.nfe == 5


def test_what_cannot_be_is_refused() -> None:
    for factor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="positive"):
            shifted(time, factor)
    with pytest.raises(ValueError, match="kind="):
        shift_factor(1.0, "cubic")
    with pytest.raises(ValueError, match="threshold="):
        linear_quadratic(FLOW, 5, 0.0, threshold=0.5)
    for grid in (shifted(time, 3.0), linear_quadratic):
        with pytest.raises(ValueError, match="flow"):
            grid(EDM(), 5, 0.0)
