"""Restart sampling: an independent loop, what it spends, and how it converges."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eval.order import MixtureProblem, solver_order
from odecore.plan import execute
from samplers import compile_plan, sample
from samplers.restart_sampling import Interval, restart_heun
from scoremodels.loaders import load
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, RectifiedFlow


def denoised(x: Tensor, sigma: float) -> Tensor:
    return torch.tanh(1.5 * x / (1 + sigma))


def heun(x: Tensor, t: float, s: float) -> Tensor:
    slope = (x - denoised(x, t)) / t
    following = x + (s - t) * slope
    if s == 0.0:
        return following
    return x + (s - t) * (slope + (following - denoised(following, s)) / s) / 2


def karras(high: float, low: float, steps: int) -> list[float]:
    return [(high ** (1 / 7) + i / steps * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(steps + 1)]


def test_the_plan_equals_a_loop_with_restarts() -> None:
    sigmas = [80.0, 25.0, 9.0, 3.0, 0.8, 0.2, 0.05, 0.0]
    draws = list(torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    noise = iter(draws)
    x = start = 80.0 * draws[-1]
    for t, s in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = heun(x, t, s)
        for low, high, repeats, steps in ((3.0, 20.0, 1, 3), (0.2, 2.0, 2, 2)):
            if s != low:
                continue
            for _ in range(repeats):
                x = x + math.sqrt(high**2 - low**2) * next(noise)
                levels = karras(high, low, steps)
                for a, b in zip(levels[:-1], levels[1:], strict=True):
                    x = heun(x, a, b)
    # 3.1 and 0.19 are not on the grid: the nearest times of the run are.
    solver = restart_heun(Interval(3.1, 20.0, 1, 3), Interval(0.19, 2.0, 2, 2))
    plan = compile_plan(solver, EDM(), nfe=13 + 6 + 8, grid=sigmas, prediction="sample")
    left = iter(draws)
    ours = execute(plan, lambda y, t: denoised(y, float(t)), start, noise=lambda: next(left))
    torch.testing.assert_close(ours, x, rtol=1e-10, atol=1e-10)
    assert sum(row.noise > 0 for row in plan.rows) == 3


def test_the_published_setting_leaves_35_of_43_evaluations_to_the_main_run() -> None:
    plan = compile_plan("restart", EDM(), nfe=43, prediction="sample")
    times = plan.about["times"]
    assert isinstance(times, list) and len(times) == 19
    again = [index for index, row in enumerate(plan.rows) if row.noise > 0]
    assert len(again) == 2 and again[1] - again[0] == 4
    assert all(abs(math.log(plan.rows[index].t / 0.06)) < 0.5 for index in again)
    assert [plan.rows[index].t_next for index in again] == pytest.approx([0.3, 0.3])


def test_short_runs_are_not_restarted_unless_asked_to() -> None:
    assert not any(row.noise for row in compile_plan("restart", EDM(), nfe=19, prediction="sample").rows)
    solver = restart_heun(Interval(0.3, 2.0, 1, 1))
    assert any(row.noise for row in compile_plan(solver, EDM(), nfe=6, prediction="sample").rows)


@pytest.mark.parametrize("nfe", range(1, 30))
def test_repeats_are_dropped_before_the_main_run_has_too_little(nfe: int) -> None:
    for solver in (restart_heun(), restart_heun(Interval(1.0, 9.0, 4, 1), Interval(0.1, 0.5, 3, 2))):
        for schedule in (EDM(), RectifiedFlow(), DiscreteVP.linear()):
            plan = compile_plan(solver, schedule, nfe=nfe, prediction="v_prediction")
            times = plan.about["times"]
            assert isinstance(times, list) and plan.nfe == nfe
            assert 2 * (len(times) - 1) >= min(nfe, 4)


def test_a_coarse_grid_moves_the_interval_up() -> None:
    solver = restart_heun(Interval(0.1, 0.4, 1, 1))
    plan = compile_plan(solver, EDM(), nfe=6, grid=[80.0, 5.0, 1.0], prediction="sample")
    assert [row.t_next for row in plan.rows] == pytest.approx([80.0, 20.0, 20.0, 5.0, 5.0, 1.0])


def test_it_converges_with_order_two_on_normal_data() -> None:
    assert solver_order("restart", MixtureProblem(ContinuousVP())).order == pytest.approx(2.0, abs=0.15)


def test_restarts_contract_the_error_of_the_steps_before() -> None:
    """Started too far from the data, a run comes nearer to them with restarts, and more so the more there are."""
    def spread(repeats: int) -> float:
        solver = restart_heun(Interval(1.0, 6.0, repeats, 4))
        plan = compile_plan(solver, EDM(), nfe=39 + 8 * repeats, prediction="sample")
        generator = torch.Generator().manual_seed(0)
        x = 80.0 * torch.randn(4000, 1, generator=generator, dtype=torch.float64) + 400.0
        left = iter([torch.randn(4000, 1, generator=generator, dtype=torch.float64) for _ in range(repeats)])
        data = execute(plan, lambda y, t: y / (1 + float(t) ** 2), x, noise=lambda: next(left))
        return abs(float(data.mean()))

    errors = [spread(repeats) for repeats in (0, 1, 2)]
    assert errors[0] > 4 and errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2


def test_it_samples_a_pretrained_model() -> None:
    model = load("fashion-mnist-edm")
    solver = restart_heun(Interval(0.3, 2.0, 2, 2))
    result = sample(model, num=2, solver=solver, nfe=25, condition=1)
    assert result.nfe == 25 and result.samples.isfinite().all()
    assert float(np.abs(result.samples.numpy()).max()) < 3.0


@pytest.mark.parametrize(("arguments", "match"), [
    (dict(low=0.0), "low=0"), (dict(low=1.0, high=0.5), "high=0.5"), (dict(high=math.inf), "high=inf"),
    (dict(repeats=-1), "repeats=-1"), (dict(steps=0), "steps=0"), (dict(steps=1.5), "steps=1.5")])
def test_intervals_that_cannot_be_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Interval(**arguments)


def test_what_is_no_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="Interval objects"):
        restart_heun((0.06, 0.3))  # type: ignore[arg-type]
