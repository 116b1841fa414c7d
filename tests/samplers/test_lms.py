"""LMS: equality with diffusers, with closed forms, and with the methods that it is under other names."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import LMSDiscreteScheduler

from odecore.plan import execute
from samplers import compile_plan
from samplers.edm import EULER_SOLVER
from samplers.lms import lms
from samplers.registry import ALIASES, SOLVERS, solver_named
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow


class AnyOrder(LMSDiscreteScheduler):
    """The scheduler takes its order with each step; here it is the instance's."""

    order_of_steps = 4

    def step(self, *arguments: object, **options: object) -> object:
        return super().step(*arguments, order=self.order_of_steps, **options)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_equals_diffusers_down_to_the_data(
    order: int, spacing: str, difference_from_diffusers: Callable[..., float]
) -> None:
    theirs = AnyOrder(beta_start=1e-4, beta_end=0.02, timestep_spacing=spacing)
    theirs.order_of_steps = order
    theirs.set_timesteps(7)
    # Their state is x/α, which at the end is x.
    assert difference_from_diffusers(theirs, lms(order)) <= 1e-11


@pytest.mark.parametrize("schedule", [ContinuousVP(), EDM(), VE(), DiscreteVP.cosine(1000)],
                         ids=lambda s: type(s).__name__)
def test_the_second_and_third_order_are_the_variable_step_formulas_of_ipndm_v(schedule: NoiseSchedule) -> None:
    second, third = (compile_plan(lms(k), schedule, nfe=6) for k in (2, 3))
    times = third.about["times"]
    assert isinstance(times, list)
    rho, alpha = schedule.ratio(np.asarray(times)), schedule.alpha(np.asarray(times))
    h = np.diff(rho)
    for i in range(2, 6):
        scale, r = alpha[i + 1] * h[i], h[i] / h[i - 1]
        np.testing.assert_allclose(second.rows[i].anchor[2:], scale * np.array([(2 + r) / 2, -r / 2]), rtol=1e-12)
        a = (1 - h[i] / (3 * (h[i] + h[i - 1]))) / 2 * h[i] * (h[i] + h[i - 1]) / (h[i - 1] * (h[i - 1] + h[i - 2]))
        expected = [(2 + r) / 2 + a, -r / 2 - (1 + h[i - 1] / h[i - 2]) * a, a * h[i - 1] / h[i - 2]]
        np.testing.assert_allclose(third.rows[i].anchor[2:], scale * np.asarray(expected), rtol=1e-10)


def test_a_cubic_slope_is_integrated_exactly_once_the_history_is_long_enough() -> None:
    """``dx/dσ = σ³`` from the fourth step on; the steps before start it with lower orders."""
    grid = np.array([1.0, 0.8, 0.66, 0.45, 0.3, 0.2, 0.1, 0.0])
    plan = compile_plan(lms(4), EDM(), nfe=7, grid=grid)
    states: list[float] = []
    with torch.no_grad():
        execute(plan, lambda x, t: torch.full_like(x, float(t) ** 3), torch.zeros(1, dtype=torch.float64),
                callback=lambda _index, _row, registers: states.append(float(registers.anchor)))
    np.testing.assert_allclose(np.diff(states)[2:], np.diff(grid**4)[3:] / 4, rtol=1e-10)


@pytest.mark.parametrize("schedule", [EDM(), ContinuousVP(), RectifiedFlow()], ids=lambda s: type(s).__name__)
def test_the_first_order_is_euler(schedule: NoiseSchedule) -> None:
    euler, first = (compile_plan(s, schedule, nfe=5, grid="karras", prediction="v_prediction")
                    for s in (EULER_SOLVER, lms(1)))
    for ours, theirs in zip(first.rows, euler.rows, strict=True):
        np.testing.assert_allclose(ours.anchor, theirs.anchor, rtol=1e-13)


@pytest.mark.parametrize("nfe", [1, 2, 3, 8])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), DiscreteVP.linear().zero_terminal_snr()])
def test_pure_noise_and_the_data_are_its_ends(schedule: NoiseSchedule, nfe: int) -> None:
    plan = compile_plan(lms(4), schedule, nfe=nfe, grid="time", prediction="v_prediction", end="clean")
    assert float(schedule.alpha(plan.t_start)) == 0.0 and float(schedule.sigma(plan.rows[-1].t_next)) == 0.0
    # The first row interpolates x0 and all others ε, so none of them reads what it predicted.
    assert all(len(row.anchor) - 3 < max(i, 1) for i, row in enumerate(plan.rows))


def test_the_names_of_one_method_lead_to_one_solver() -> None:
    for order in (2, 3, 4):
        assert solver_named(f"ipndm-v-{order}") is solver_named(f"deis-rho-{order}") is SOLVERS[f"lms-{order}"]
    assert set(ALIASES.values()) <= set(SOLVERS) and not set(ALIASES) & set(SOLVERS)


@pytest.mark.parametrize("order", [0, 5, 2.0, True])
def test_orders_out_of_range_are_refused(order: object) -> None:
    with pytest.raises(ValueError, match="between 1 and 4"):
        lms(order)  # type: ignore[arg-type]
