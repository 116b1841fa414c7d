"""EDM's stochastic sampler: its published algorithm, its evaluations and its bounds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from odecore.plan import execute
from samplers import compile_plan
from samplers.churn import edm_churn
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow


def denoise(x: Tensor, sigma: float) -> Tensor:
    return torch.tanh(x / (1 + sigma))


@pytest.mark.parametrize("churn", [0.0, 2.0, 40.0])
@pytest.mark.parametrize("heun", [True, False])
def test_the_plan_equals_algorithm_2(heun: bool, churn: float) -> None:
    sigmas = [80.0, 30.0, 11.0, 4.0, 1.3, 0.4, 0.1, 0.0]
    draws = torch.randn(10, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).unbind()
    noise, x = iter(draws), 80.0 * torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    start, steps = x, len(sigmas) - 1
    for sigma, target in zip(sigmas[:-1], sigmas[1:], strict=True):
        gamma = min(churn / steps, math.sqrt(2) - 1) if 0.05 <= sigma <= 50.0 else 0.0
        raised = sigma * (1 + gamma)
        if gamma > 0:
            x = x + math.sqrt(raised**2 - sigma**2) * 1.003 * next(noise)
        slope = (x - denoise(x, raised)) / raised
        following = x + (target - raised) * slope
        if heun and target > 0:
            following = x + (target - raised) * (slope + (following - denoise(following, target)) / target) / 2
        x = following
    solver = edm_churn(churn, heun=heun)
    plan = compile_plan(solver, EDM(), nfe=2 * steps - 1 if heun else steps, grid=sigmas, prediction="sample")
    noise = iter(draws)
    ours = execute(plan, lambda x, t: denoise(x, float(t)), start, noise=lambda: next(noise))
    torch.testing.assert_close(ours, x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("schedule", [
    DiscreteVP.linear(), EDM(), ContinuousVP(), RectifiedFlow(), DiscreteVP.linear().zero_terminal_snr()])
@pytest.mark.parametrize("end", ["clean", "minimum"])
@pytest.mark.parametrize("heun", [True, False])
def test_every_number_of_evaluations_is_spent_exactly(heun: bool, end: str, schedule: NoiseSchedule) -> None:
    for nfe in (*range(1, 12), 100):
        assert compile_plan(edm_churn(heun=heun), schedule, nfe=nfe, end=end, prediction="v_prediction").nfe == nfe


@pytest.mark.parametrize("bounds", [dict(s_churn=-1.0), dict(s_min=2.0, s_max=1.0), dict(s_noise=0.0)])
def test_bounds_that_cannot_be_are_refused(bounds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="s_churn="):
        edm_churn(**bounds)
