"""Exponential Runge–Kutta methods as steppers of the adaptive driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odecore.exponential.linear import Map
from odecore.exponential.phi_sums import PhiSum, varphi
from odecore.exponential.tableaus import ExponentialTableau
from odecore.problem import Semilinear, require
from odecore.stepper import Carry, Field, Step, column, send


@dataclass(frozen=True, slots=True)
class ExponentialRungeKutta:
    """An exponential Runge–Kutta method of a :class:`odecore.problem.Semilinear` problem.

    The linear part is solved exactly, so that it limits neither stability nor, within the method's
    stiff order, accuracy.

    Args:
        tableau: the method, one of :mod:`odecore.exponential.tableaus`.

    Cost: ``tableau.stages`` evaluations of N a step, one less where the last stage is the first of
        the next step; the φ-functions once a step, and not again while h stays the same for all
        samples. Coordinates change once for each evaluation and once for each stage: in Fourier
        space twice as many transforms as stages.

    Source: Hochbruck & Ostermann 2010, Exponential integrators, doi:10.1017/S0962492910000048.
    """

    tableau: ExponentialTableau

    @property
    def order(self) -> int:
        """The order of convergence."""
        return self.tableau.order

    @property
    def error_order(self) -> int:
        """The power of h with which the error estimate shrinks; 0 if there is none."""
        return self.tableau.error_order

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """The nonlinear part at the start, if steps hand theirs on."""
        if not self.tableau.first_same_as_last:
            return (), 0
        problem = require(field, Semilinear, "ExponentialRungeKutta")
        into = problem.linear.functions((), t0, y).into
        return (into(problem.nonlinear(y, send(t0, y.device))),), 1

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1."""
        problem, tableau = require(field, Semilinear, "ExponentialRungeKutta"), self.tableau
        length = t1 - t0
        into, back, parts = problem.linear.functions(tableau.sums, length, y)
        part = dict(zip(tableau.sums, parts, strict=True))
        start, values = into(y), list(carry)
        h = column(length, start)
        point = y
        for i in range(len(values), tableau.stages):
            if i > 0:
                point = back(part[varphi(0, tableau.c[i])](start) + h * _sum(part, tableau.a[i], values))
            values.append(into(problem.nonlinear(point, send(torch.lerp(t0, t1, tableau.c[i]), y.device))))
        new = point if tableau.first_same_as_last else back(part[varphi(0)](start) + h * _sum(part, tableau.b, values))
        error = back(h * _sum(part, tableau.error, values)) if tableau.error else torch.zeros_like(new)
        handed_on = (values[-1],) if tableau.first_same_as_last else ()
        return Step(new, handed_on, error, torch.maximum(y.abs(), new.abs()), tableau.stages - len(carry))


def _sum(part: Mapping[PhiSum, Map], sums: Sequence[PhiSum], values: Sequence[Tensor]) -> Tensor:
    """``Σ_j f_j(hL) N_j``."""
    terms = [part[one](value) for one, value in zip(sums, values, strict=False) if one]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
