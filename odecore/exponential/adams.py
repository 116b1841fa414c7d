"""Exponential Adams methods as steppers: the linear part exactly, the rest through each sample's own history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from odecore.explicit.adams import Adams, columns, integrals
from odecore.exponential.linear import Functions
from odecore.exponential.phi_sums import varphi
from odecore.exponential.runge_kutta import ExponentialRungeKutta
from odecore.exponential.tableaus import KROGSTAD
from odecore.plan import combine
from odecore.problem import Semilinear, require
from odecore.stepper import Carry, Field, Step, column, send

HIGHEST_ORDER = 4
"""Order of the exponential Runge–Kutta method that starts an exponential Adams method."""


@dataclass(frozen=True, slots=True)
class ExponentialAdams(Adams):
    """A multistep method of a :class:`odecore.problem.Semilinear` problem, on the times that were really stepped.

    With P_k the polynomial through N at the k latest times, and P*_{k+1} the one that goes through N at
    the predicted end too::

        predictor   ŷ = φ_0(hL) y_0 + ∫ e^{(t_1 - t) L} P_k dt            N̂ = N(ŷ, t_1)
        corrector   y_1 = φ_0(hL) y_0 + ∫ e^{(t_1 - t) L} P*_{k+1} dt

    The coefficient of θ^m in a polynomial contributes with weight ``h m! φ_{m+1}(hL)``. Orders, error
    estimates and history are those of :class:`odecore.explicit.adams.Adams`, the history in the coordinates of
    L; the first steps are Krogstad's.

    Args:
        slopes: k, at least 1.
        corrected: whether the corrector and a second evaluation follow (PECE).

    Raises:
        ValueError: an order outside 1 to 4.

    Cost: one evaluation of N a step, two with the corrector; the φ-functions once a step; k + 1 tensors
        like y.

    Source: Hochbruck & Ostermann 2011, Exponential multistep methods of Adams-type,
        doi:10.1007/s10543-011-0332-6.
    """

    def __post_init__(self) -> None:
        if self.slopes < 1 or self.order > HIGHEST_ORDER:
            raise ValueError(f"slopes={self.slopes}, corrected={self.corrected}: give between 1 and "
                             f"{HIGHEST_ORDER - self.corrected} slopes")

    @property
    def starter(self) -> ExponentialRungeKutta:
        """The exponential Runge–Kutta method of the first steps."""
        return ExponentialRungeKutta(KROGSTAD)

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """N at the start, and room for what is to come."""
        (value,), nfe = self.starter.start(field, t0, y)
        missing = (torch.zeros_like(value) for _ in range(self.slopes - 1))
        return (torch.ones(len(t0), dtype=torch.int64), t0.unsqueeze(1).expand(-1, self.slopes), value, *missing), nfe

    def _advance(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry, ready: Tensor) -> Step:
        problem = require(field, Semilinear, "ExponentialAdams")
        _, times, *values = carry
        nodes = torch.where(ready.unsqueeze(1), (times - t0.unsqueeze(1)) / (t1 - t0).unsqueeze(1),
                            -torch.arange(self.slopes, dtype=times.dtype))
        with_end, end = pad(nodes, (1, 0), value=1.0), send(t1, y.device)
        linear = problem.linear.functions([varphi(m) for m in range(self.slopes + 2)], t1 - t0, y)
        start = linear.into(y)
        length = column(t1 - t0, start)
        flown = linear.parts[0](start)
        predicted = linear.back(flown + length * _integral(linear, nodes, values))
        values = [linear.into(problem.nonlinear(predicted, end)), *values]
        corrected = linear.back(flown + length * _integral(linear, with_end, values))
        if self.corrected:
            new, lower = corrected, linear.back(flown + length * _integral(linear, with_end[:, :-1], values))
            value = linear.into(problem.nonlinear(new, end))
        else:
            new, lower, value = predicted, predicted, values[0]
        return Step(new, (value,), corrected - lower, torch.maximum(y.abs(), new.abs()), 1 + self.corrected)


def _integral(linear: Functions, nodes: Tensor, values: Sequence[Tensor]) -> Tensor:
    """``∫_0^1 e^{(1-θ) h L} P dθ`` of the polynomials through values at each sample's nodes."""
    total = torch.zeros_like(values[0])
    for m, weights in enumerate(integrals(nodes).unbind(2)):  # of θ^m, divided by m + 1
        total = total + linear.parts[m + 1](combine(columns(math.factorial(m + 1) * weights, total), values))
    return total


def exponential_adams_bashforth(order: int) -> ExponentialAdams:
    """Make the explicit exponential Adams method of an order between 1 and 4, with one evaluation a step.

    Raises:
        ValueError: another order.
    """
    return ExponentialAdams(order)


def exponential_adams_bashforth_moulton(order: int) -> ExponentialAdams:
    """Make the predictor–corrector method (PECE) of an order between 2 and 4, with two evaluations a step.

    Raises:
        ValueError: another order.
    """
    return ExponentialAdams(order - 1, corrected=True)
