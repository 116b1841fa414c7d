"""Every grid, by every name: its times fall from the noisiest to the end, or it says what to do instead."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers import GRIDS
from samplers.compile import compile_plan
from samplers.flow_grids import shifted
from samplers.grids import Grid, karras, sgm_uniform, time
from samplers.levels import ALIGN_YOUR_STEPS, align_your_steps, arctan, beta, polyexponential
from samplers.registry import GRID_ALIASES, grid_named
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

LINEAR = DiscreteVP.linear()
SCHEDULES: tuple[NoiseSchedule, ...] = (
    LINEAR, DiscreteVP.scaled_linear(), DiscreteVP.cosine(), LINEAR.zero_terminal_snr(), ContinuousVP(), VE(), EDM(),
    EDM(0.01, 3.0), RectifiedFlow(), RectifiedFlow(shift=3.0, scale=1000.0))
WITH_PARAMETERS: tuple[Grid, ...] = (
    partial(karras, rho=5.0), partial(polyexponential, rho=2.0), partial(polyexponential, rho=0.5),
    partial(beta, a=0.5, b=0.7), partial(arctan, std=0.5), shifted(sgm_uniform, 3.0), shifted(time, 0.2),
    shifted(GRIDS["log-snr"], 0.4), *(partial(align_your_steps, model=model) for model in ALIGN_YOUR_STEPS))
DISCRETE_ONLY = {"leading", "linspace", "trailing"}


@settings(deadline=None, max_examples=400)
@given(st.sampled_from(SCHEDULES), st.sampled_from([*GRIDS.values(), *WITH_PARAMETERS]), st.integers(1, 100),
       st.booleans())
def test_times_fall_strictly_to_the_end_or_another_grid_is_named(
    schedule: NoiseSchedule, grid: Grid, steps: int, clean: bool
) -> None:
    end = float(schedule.t_clean if clean else schedule.t_min)
    try:
        times = grid(schedule, steps, end)
    except ValueError as error:
        assert "choose" in str(error) or "ask for" in str(error)
        return
    assert times.dtype == np.float64
    assert times.shape == (steps + 1,)
    assert times[0] == schedule.t_max or (grid is GRIDS["leading"] and times[0] < schedule.t_max)
    assert times[-1] == end
    assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("name", sorted(set(GRIDS) - DISCRETE_ONLY - {"align-your-steps", "linear-quadratic"}))
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_a_grid_without_a_special_schedule_serves_them_all(name: str, schedule: NoiseSchedule) -> None:
    for steps in (1, 7, 50):
        assert len(grid_named(name)(schedule, steps, float(schedule.t_clean))) == steps + 1


def test_a_function_with_its_parameter_fixed_is_a_grid() -> None:
    plan = compile_plan("dpm-solver++-2m", EDM(), nfe=6, grid=partial(karras, rho=5.0))
    ramp = np.linspace(80.0 ** 0.2, 0.002 ** 0.2, 6) ** 5
    np.testing.assert_allclose([row.t for row in plan.rows], ramp, rtol=1e-12)
    with pytest.raises(ValueError, match="rho=0.0"):
        karras(EDM(), 5, 0.0, rho=0.0)


def test_even_times_of_a_shifted_flow_are_shifted_even_times() -> None:
    even = np.linspace(1.0, 1e-3, 9)[:-1]
    flow = RectifiedFlow(shift=3.0, scale=1000.0)
    np.testing.assert_allclose(sgm_uniform(flow, 8, 0.0)[:-1], 1000.0 * 3.0 * even / (1.0 + 2.0 * even), rtol=1e-12)


def test_even_times_do_not_stop_at_the_least_noise() -> None:
    np.testing.assert_allclose(sgm_uniform(LINEAR, 4, -1.0), [999.0, 749.25, 499.5, 249.75, -1.0])


def test_an_alias_is_another_name_of_a_grid() -> None:
    for alias, name in GRID_ALIASES.items():
        assert alias not in GRIDS
        assert grid_named(alias) is GRIDS[name]
