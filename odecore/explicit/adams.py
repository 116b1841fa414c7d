"""Adams methods as steppers: each sample integrates the polynomial through its own recent slopes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from odecore.explicit.embedded import BOGACKI_SHAMPINE, DOP853, DORMAND_PRINCE
from odecore.plan import combine
from odecore.stepper import Carry, Dense, Field, Step, Stepper, column, send

HIGHEST_ORDER = 8
"""Order of the highest Runge–Kutta method that starts an Adams method."""


@dataclass(frozen=True, slots=True)
class Adams:
    """A linear multistep method on the times that were really stepped, with its error estimate.

    With P_k the polynomial through the slopes at the k latest times, and P*_{k+1} the one that goes
    through the slope at the predicted end too::

        predictor   ŷ = y_0 + ∫ P_k dt                 f̂ = f(ŷ, t_1)
        corrector   y_1 = y_0 + ∫ P*_{k+1} dt

    Without the corrector, y_1 = ŷ has order k and its error estimate is the difference of the two,
    which shrinks as h^{k+1}. With it, y_1 has order k + 1, and the estimate is the difference of the
    correctors through k + 1 and through k slopes, which shrinks as h^{k+1} too. Until a sample has k
    slopes it takes steps of a Runge–Kutta pair of at least the method's order.

    The carry holds for each sample the number of its slopes and their times, on the host, and the
    slopes, the latest first.

    Args:
        slopes: k, at least 1.
        corrected: whether the corrector and a second evaluation follow (PECE).

    Raises:
        ValueError: an order outside 1 to 8.

    Cost: one evaluation a step, two with the corrector, and one at the start; k + 1 tensors like y.
        Starting steps cost those of the pair, and steps where only some of the samples are still
        starting cost both. The higher the order, the shorter are stable steps and the more the weights
        grow with the ratio of successive steps: ``odecore.driver.control.PI`` rejects fewer than the default.

    Source: Shampine & Gordon 1975, Computer solution of ordinary differential equations; Hairer,
        Nørsett & Wanner 1993, Solving ordinary differential equations I, sections III.1 and III.5.
    """

    slopes: int
    corrected: bool = False

    def __post_init__(self) -> None:
        _check_order(self.order, least=1 + self.corrected)

    @property
    def order(self) -> int:
        """Order of convergence."""
        return self.slopes + self.corrected

    @property
    def error_order(self) -> int:
        """The power of h with which the error estimate shrinks."""
        return self.slopes + 1

    @property
    def starter(self) -> Stepper:
        """The Runge–Kutta pair of the first steps, whose last slope is the first of the next step."""
        return next(pair for pair in (BOGACKI_SHAMPINE, DORMAND_PRINCE, DOP853) if pair.tableau.order >= self.order)

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """The slope at the start, and room for those to come."""
        slope = field(y, send(t0, y.device))
        missing = (torch.zeros_like(slope) for _ in range(self.slopes - 1))
        return (torch.ones(len(t0), dtype=torch.int64), t0.unsqueeze(1).expand(-1, self.slopes), slope, *missing), 1

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1."""
        count, times, *slopes = carry
        ready = count >= self.slopes
        if bool(ready.all()):
            step = self._advance(field, t0, t1, y, carry, ready)
        elif not bool(ready.any()):
            step = self.starter.step(field, t0, t1, y, (slopes[0],))
        else:
            step = _mixed(ready, self._advance(field, t0, t1, y, carry, ready),
                          self.starter.step(field, t0, t1, y, (slopes[0],)))
        times = torch.cat((t1.unsqueeze(1), times[:, :-1]), 1)
        return step._replace(carry=((count + 1).clamp(max=self.slopes), times, *step.carry, *slopes[:-1]))

    def _advance(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry, ready: Tensor) -> Step:
        """A multistep step, whose carry is the slope at its end; nothing but finite where a sample is not ready."""
        _, times, *slopes = carry
        nodes = torch.where(ready.unsqueeze(1), (times - t0.unsqueeze(1)) / (t1 - t0).unsqueeze(1),
                            -torch.arange(self.slopes, dtype=times.dtype))
        with_end = pad(nodes, (1, 0), value=1.0)
        predictor = pad(integrals(nodes), (0, 0, 1, 0))  # the slope at the end has weight zero
        corrector = integrals(with_end)
        length, end = column(t1 - t0, y), send(t1, y.device)

        predicted = torch.addcmul(y, length, combine(columns(predictor.sum(2)[:, 1:], y), slopes))
        values = [field(predicted, end), *slopes]
        if self.corrected:
            new = torch.addcmul(y, length, combine(columns(corrector.sum(2), y), values))
            slope, advancing = field(new, end), corrector
            lower = pad(integrals(with_end[:, :-1]).sum(2), (0, 1))
        else:
            new, slope, advancing = predicted, values[0], predictor
            lower = predictor.sum(2)
        error = length * combine(columns(corrector.sum(2) - lower, y), values)

        def dense() -> Dense:
            powers = [length * combine(columns(power, y), values) for power in advancing.unbind(2)]
            return Dense(torch.stack((y, *powers), 1), 0)

        return Step(new, (slope,), error, torch.maximum(y.abs(), new.abs()), 1 + self.corrected, dense=dense)


def adams_bashforth(order: int) -> Adams:
    """Make the explicit Adams method of an order between 1 and 8, with one evaluation a step.

    Raises:
        ValueError: another order.
    """
    _check_order(order, least=1)
    return Adams(order)


def adams_bashforth_moulton(order: int) -> Adams:
    """Make the predictor–corrector method (PECE) of an order between 2 and 8, with two evaluations a step.

    Raises:
        ValueError: another order.
    """
    _check_order(order, least=2)
    return Adams(order - 1, corrected=True)


def integrals(nodes: Tensor) -> Tensor:
    """Integrate the Lagrange polynomials on each sample's nodes: ``∫_0^θ ℓ_j = Σ_m result[:, j, m] θ^{m+1}``.

    The sums over m are the Adams weights of a step from 0 to 1. On nodes at or below 0 no term of a
    polynomial has another sign than the rest, so nothing cancels; a node at 1 costs some rounding units.

    Args:
        nodes: distinct numbers of shape (samples, n), 0 being the start of the step and 1 its end.

    Returns:
        Coefficients of shape (samples, n, n).
    """
    count = nodes.shape[1]
    others = torch.stack([torch.cat((nodes[:, :j], nodes[:, j + 1:]), 1) for j in range(count)], 1)
    coefficients = torch.ones_like(nodes).unsqueeze(2)
    for root in others.unbind(2):
        coefficients = pad(coefficients, (1, 0)) - root.unsqueeze(2) * pad(coefficients, (0, 1))
    coefficients = coefficients / (nodes.unsqueeze(2) - others).prod(2, keepdim=True)
    return coefficients / torch.arange(1, count + 1, dtype=nodes.dtype)


def columns(weights: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """One factor of ``like`` for each column of a host matrix with one row a sample."""
    sent = send(weights.to(like.dtype), like.device)
    return sent.reshape(*weights.shape, *[1] * (like.ndim - 1)).unbind(1)


def _mixed(ready: Tensor, multistep: Step, starting: Step) -> Step:
    """Multistep where a sample is ready for it, else the starting step."""
    def choose(first: Tensor, second: Tensor) -> Tensor:
        return torch.where(column(ready, first), first, second)

    return Step(choose(multistep.y, starting.y), (choose(multistep.carry[0], starting.carry[0]),),
                choose(multistep.error, starting.error), choose(multistep.magnitude, starting.magnitude),
                multistep.nfe + starting.nfe)


def _check_order(order: int, least: int) -> None:
    if isinstance(order, bool) or not isinstance(order, int) or not least <= order <= HIGHEST_ORDER:
        raise ValueError(f"order={order!r}: give a whole number between {least} and {HIGHEST_ORDER}")
