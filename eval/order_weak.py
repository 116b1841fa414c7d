"""Errors of the mean and the variance that stochastic samplers give normally distributed data, without sampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eval.convergence import Convergence, convergence_order
from odecore.plan import Plan, Weight, execute
from samplers.compile import compile_plan
from samplers.grids import Grid
from samplers.registry import SOLVERS
from samplers.solver import Solver
from scoremodels.schedule import NoiseSchedule


class Moments(NamedTuple):
    """Moments of the state at the end of a plan, less those of the noised data at that time.

    Attributes:
        mean: error of the mean.
        variance: error of the variance.
    """

    mean: float
    variance: float


def moment_errors(plan: Plan, schedule: NoiseSchedule, *, mean: float = 0.7, std: float = 0.5) -> Moments:
    """Run a plan on scalar data N(mean, std²), for which each state is a linear function of the normal draws.

    The prediction is ``mean + α std² (x - α mean)/(α² std² + σ²)``. The plan is run on the coefficients of the
    constant, of the start and of each draw, one tensor of them all; what comes out is exact but for rounding.

    Args:
        plan: compiled for a network that predicts the sample.
        schedule: the schedule that it was compiled on.
        mean: mean of the data.
        std: standard deviation of the data, above 0.

    Cost: ``plan.nfe`` evaluations of a linear function of as many numbers.
    """
    def centre(t: float) -> float:
        return float(schedule.alpha(t)) * mean

    def variance(t: float) -> float:
        return float(schedule.alpha(t)) ** 2 * std**2 + float(schedule.sigma(t)) ** 2

    def denoised(x: Tensor, t: Weight) -> Tensor:
        gain = float(schedule.alpha(float(t))) * std**2 / variance(float(t))
        result = gain * x
        result[0] += mean - gain * centre(float(t))
        return result

    start, end = float(plan.t_start), float(plan.rows[-1].t_next)
    coefficients = torch.zeros(2 + plan.nfe, dtype=torch.float64)
    coefficients[0], coefficients[1] = centre(start), math.sqrt(variance(start))
    draws = iter(torch.eye(2 + plan.nfe, dtype=torch.float64)[2:])
    with torch.no_grad():
        result = execute(plan, denoised, coefficients, noise=lambda: next(draws))
    return Moments(float(result[0]) - centre(end), float(result[1:].square().sum()) - variance(end))


def weak_order(
    solver: str | Solver, schedule: NoiseSchedule, grid: Grid, end: float, *,
    budgets: Sequence[int] = (60, 84, 120, 168),
) -> Convergence:
    """Measure the order of the variance of a solver's end states.

    Args:
        solver: name out of ``SOLVERS``, or a solver.
        schedule: noise schedule.
        grid: where its steps lie.
        end: last time, at which there is noise.
        budgets: at least four numbers of evaluations.
    """
    chosen = SOLVERS[solver] if isinstance(solver, str) else solver
    assert isinstance(chosen, Solver)
    plans = {nfe: compile_plan(chosen, schedule, nfe=nfe, grid=grid, prediction="sample", end=end) for nfe in budgets}
    return convergence_order(lambda nfe: abs(moment_errors(plans[nfe], schedule).variance), list(plans))
