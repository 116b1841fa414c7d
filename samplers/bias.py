"""Where a sampler's steps lead instead of the solution: its bias, predicted by the modified equation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from odecore.analysis.modified import Scheme, principal_error, runge_kutta
from odecore.explicit.tableaus import RK4
from odecore.stepper import Field, column
from scoremodels.model import ScoreModel
from scoremodels.schedule import NoiseSchedule

SHORT = 0.1
"""Steps that measure the leading term, in steps of the sampler."""


class Bias(NamedTuple):
    """What :func:`solver_bias` returns, all of the shape of the samples and at the last time.

    Attributes:
        exact: the solution, by fine steps.
        computed: what the scheme makes of the same start.
        predicted: the solution of the modified equation; `predicted - exact` is the bias that theory gives,
            `computed - exact` the one that is there.
        corrected: what the same scheme makes of the inverse modified field.
    """

    exact: Tensor
    computed: Tensor
    predicted: Tensor
    corrected: Tensor

    def unexplained(self) -> float:
        """How much of the bias theory leaves: ``‖computed - predicted‖ / ‖computed - exact‖``."""
        return ((self.computed - self.predicted).norm() / (self.computed - self.exact).norm()).item()


def noise_field(model: ScoreModel, condition: Int[Tensor, " samples"] | None = None) -> Field:
    """The probability-flow ODE as ``dy/dρ = ε(α y, t)`` in ``y = x/α`` and ``ρ = σ/α``, where DDIM is Euler's method.

    Cost: one network evaluation a value.

    Source: Song et al. 2021, arXiv:2010.02502, eq. 14.
    """
    schedule = model.schedule

    def field(y: Tensor, ratio: Tensor) -> Tensor:
        times = [float(schedule.time_of_ratio(r)) for r in ratio.tolist()]
        t = torch.tensor(times, dtype=torch.float64)
        alpha = torch.tensor([float(schedule.alpha(time)) for time in times], dtype=torch.float64)
        return model.noise(column(alpha, y) * y, t, condition)

    return field


def ratios(schedule: NoiseSchedule, times: Sequence[float]) -> list[float]:
    """``ρ = σ/α`` at network times.

    Raises:
        ValueError: a time at which no signal is left, where ρ is infinite.
    """
    found = []
    for t in times:
        if not float(schedule.alpha(t)) > 0:
            raise ValueError(f"t={t}: there is no signal left and σ/α is infinite; start a little later")
        found.append(float(schedule.sigma(t)) / float(schedule.alpha(t)))
    return found


@torch.no_grad()
def solver_bias(
    model: ScoreModel, scheme: Scheme, x: Float[Tensor, "samples ..."], times: Sequence[float], *,
    scheme_order: int = 1, within: int = 1, condition: Int[Tensor, " samples"] | None = None,
) -> Bias:
    """Predict how far a one-step scheme ends from the solution, and compare with what it does.

    To first order, a scheme of order p with steps h follows ``dy/dρ = f + h^p f_p``, where f_p is measured with
    steps that are shorter (:func:`odecore.analysis.modified.principal_error`); that equation and the true one are
    solved by ``within`` steps of a fourth-order method for each step of the scheme. The corrected run takes the
    scheme's own steps with the inverse modified field ``f - h^p f_p``, which gains an order.

    Args:
        model: the pretrained model.
        scheme: of ``dy/dρ = ε``: ``runge_kutta(EULER)`` is DDIM, ``runge_kutta(HEUN)`` on an EDM model EDM's sampler.
        x: start states at ``times[0]``.
        times: decreasing network times, the first with some signal left, the last with some noise.
        scheme_order: its order of convergence.
        within: fine steps for each step.
        condition: class labels.

    Returns:
        The four end points, as states x.

    Raises:
        ValueError: fewer than two times, times that do not decrease in noise, or without signal.

    Cost: a step takes ``4 within + s`` evaluations for the two solutions, and ``4 within + s`` values of f_p, each of
        about p + 2 + s, for a scheme of s stages and order p.
    """
    grid = ratios(model.schedule, times)
    if len(grid) < 2 or any(not a > b > 0 for a, b in zip(grid[:-1], grid[1:], strict=True)):
        raise ValueError(f"times={list(times)}: give at least two, from noise to data, the last with some noise left")
    field = noise_field(model, condition)
    leading = principal_error(scheme, field, scheme_order)
    fine = runge_kutta(RK4)
    start = x / float(model.schedule.alpha(times[0]))
    exact = computed = predicted = corrected = start
    for here, there in zip(grid[:-1], grid[1:], strict=True):
        short = max(SHORT * (there - here), -there / 2)  # so that it ends with noise left wherever it starts

        def bent(sign: float, h: float = there - here, short: float = short) -> Field:
            return lambda y, t: field(y, t) + sign * h**scheme_order * leading(y, t, torch.full_like(t, short))

        at, h = (torch.full((len(x),), value, dtype=torch.float64) for value in (here, there - here))
        computed, corrected = scheme(field, computed, at, h), scheme(bent(-1.0), corrected, at, h)
        for k in range(within):
            exact = fine(field, exact, at + k * h / within, h / within)
            predicted = fine(bent(1.0), predicted, at + k * h / within, h / within)
    alpha = float(model.schedule.alpha(times[-1]))
    return Bias(*(alpha * y for y in (exact, computed, predicted, corrected)))
