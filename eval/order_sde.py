"""Measured strong orders of the methods for stochastic equations, with their Monte-Carlo error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from rich.table import Table
from torch import Tensor

from eval.convergence import slope
from odecore.stochastic.brownian import BrownianIncrement, BrownianMotion
from odecore.stochastic.sde import (
    SDE,
    Method,
    euler_maruyama,
    exponential_euler,
    heun,
    integrate_sde,
    milstein,
    srk_additive,
)

PATHS, GROUPS = 1000, 20
STEPS = (8, 16, 32, 64)
TOLERANCE = 0.2
"""How far a measured strong order may be from the declared one."""

_FINE = 256


class StrongOrder(NamedTuple):
    """A measured strong order.

    Attributes:
        method: name of the method.
        problem: name of the equation.
        declared: its strong order there.
        measured: slope of the mean error at the end.
        standard_error: of the slope, from groups of paths.
    """

    method: str
    problem: str
    declared: float
    measured: float
    standard_error: float

    @property
    def met(self) -> bool:
        """Whether the orders agree."""
        return abs(self.measured - self.declared) <= TOLERANCE


@dataclass(frozen=True, slots=True)
class StochasticProblem:
    """An equation on [0, 1] with its solution in terms of the path.

    Args:
        name: what it is.
        equation: the equation.
        start: initial states of shape (PATHS, components).
        exact: states at 1, of the same shape.
    """

    name: str
    equation: SDE
    start: Tensor
    exact: Tensor


@cache
def increments(steps: int) -> BrownianIncrement:
    """The same paths at any number of steps, of shape (steps, PATHS): each interval is a sample with the same seed."""
    grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return BrownianMotion([5] * steps, (PATHS,), levels=8).increment(grid[:-1], grid[1:])


def geometric(drift: float, interpretation: str, told_apart: float = 0.0) -> StochasticProblem:
    """``dy = μ y dt + σ y dW``, whose solution is ``exp((μ - σ²/2) t + σ W)``, without σ²/2 in Stratonovich's sense.

    Args:
        drift: μ.
        interpretation: "ito" or "stratonovich".
        told_apart: the part of μ that the method treats as its linear part.
    """
    sigma = 0.8
    end = increments(1).w.reshape(PATHS, 1)
    rate = drift - sigma**2 / 2 if interpretation == "ito" else drift
    equation = SDE(lambda y, t: (drift - told_apart) * y, lambda y, t: sigma * y, interpretation=interpretation)
    return StochasticProblem(f"geometric, {interpretation}", equation, torch.ones_like(end),
                             torch.exp(rate + sigma * end))


def additive(told_apart: float = 0.0) -> StochasticProblem:
    """``dy = -θ y dt + σ (1 + t) dW``; the solution's integral is summed over fine intervals with their areas."""
    theta, sigma = 3.0, 0.8
    w, levy = increments(_FINE)
    middle = ((torch.arange(_FINE, dtype=torch.float64) + 0.5) / _FINE).reshape(-1, 1)
    kernel = sigma * (1 + middle) * torch.exp(-theta * (1 - middle))
    derivative = kernel * (theta + 1 / (1 + middle))
    integral = (kernel * w - derivative * levy / _FINE).sum(0).reshape(PATHS, 1)  # ∫ (s - middle) dW = -h H
    equation = SDE(lambda y, t: (-theta - told_apart) * y, lambda y, t: sigma * (1 + t).reshape(-1, 1), "additive")
    return StochasticProblem("additive, linear", equation, torch.ones_like(integral), math.exp(-theta) + integral)


def squared() -> StochasticProblem:
    """``dx = dW, dz = x² dt``: additive noise and a non-linear drift, with ``z = ∫ W²`` by fine intervals."""
    w, levy = increments(_FINE)
    left = torch.cat([torch.zeros(1, PATHS, dtype=torch.float64), w.cumsum(0)[:-1]])
    # Mean over an interval of the square of the path's parabola, plus the variance that is left.
    parabola = left**2 + 2 * left * (w / 2 + levy) + w**2 / 3 + w * levy + 6 / 5 * levy**2
    z = (parabola + 1 / (15 * _FINE)).mean(0)
    equation = SDE(lambda y, t: torch.stack([torch.zeros_like(y[:, 0]), y[:, 0] ** 2], dim=1),
                   lambda y, t: torch.tensor([[1.0, 0.0]], dtype=torch.float64), "additive")
    return StochasticProblem("additive, non-linear", equation, torch.zeros(PATHS, 2, dtype=torch.float64),
                             torch.stack([increments(1).w.flatten(), z], dim=1))


def _noise(steps: int) -> Callable[[float, float], BrownianIncrement]:
    w, levy = increments(steps)
    return lambda s, t: BrownianIncrement(*(x[round(s * steps)].reshape(PATHS, 1) for x in (w, levy)))


def strong_order(name: str, method: Method, problem: StochasticProblem, declared: float) -> StrongOrder:
    """Measure the slope of ``E|y_N - y(1)|`` against the number of steps.

    The standard error is that of the mean of the slopes of groups of paths.

    Cost: 120 steps of all paths.
    """
    errors = []
    for steps in STEPS:
        grid = [i / steps for i in range(steps + 1)]
        y = integrate_sde(method, problem.equation, problem.start, grid, _noise(steps))[-1]
        errors.append((y - problem.exact).abs().sum(1))
    groups = torch.stack(errors).reshape(len(STEPS), GROUPS, -1).mean(2)
    slopes = torch.tensor([slope(STEPS, group) for group in groups.T.tolist()])
    return StrongOrder(name, problem.name, declared, slope(STEPS, groups.mean(1).tolist()),
                       float(slopes.std() / math.sqrt(GROUPS)))


def strong_orders() -> Iterator[StrongOrder]:
    """Measure every method on the equations that it takes."""
    for name, method, problem, declared in (
            ("euler_maruyama", euler_maruyama, geometric(0.3, "ito"), 0.5),
            ("euler_maruyama", euler_maruyama, additive(), 1.0),
            ("milstein", milstein, geometric(0.3, "ito"), 1.0),
            ("milstein", milstein, geometric(0.3, "stratonovich"), 1.0),
            ("heun", heun, geometric(0.3, "stratonovich"), 1.0),
            ("srk_additive", srk_additive, squared(), 1.5),
            ("srk_additive", srk_additive, additive(), 2.0),
            ("exponential_euler", exponential_euler(0.3), geometric(0.3, "ito", told_apart=0.3), 0.5),
            ("exponential_euler", exponential_euler(-5.0), additive(-5.0), 1.0)):
        yield strong_order(name, method, problem, declared)


def table(orders: Iterable[StrongOrder]) -> Table:
    """Lay out measured strong orders."""
    out = Table("method", "equation", "declared", "measured", "standard error", "",
                title=f"Strong orders, {PATHS} paths; ✗: off by more than {TOLERANCE}")
    for one in orders:
        out.add_row(one.method, one.problem, f"{one.declared:g}", f"{one.measured:.2f}", f"{one.standard_error:.2f}",
                    "✓" if one.met else "✗")
    return out
