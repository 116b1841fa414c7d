"""Implicit Runge–Kutta methods as steppers: diagonally implicit ones and collocation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from odecore.analysis.continuous import continuous_weights
from odecore.analysis.trees import order_of
from odecore.driver.dense import bootstrapped
from odecore.implicit import tableaus
from odecore.implicit.newton import Chord, RootFinder
from odecore.implicit.root import flatten, unflatten
from odecore.implicit.stages import Stages, StepSystem, damped_error, damping, solve_stages
from odecore.implicit.tableaus import ImplicitTableau
from odecore.plan import combine
from odecore.stepper import Carry, Dense, Field, Judge, Step, send

_CUBIC = 4
"""Highest order of a method that the cubic Hermite polynomial of a step keeps."""


@dataclass(frozen=True, slots=True)
class ImplicitRungeKutta:
    """An implicit Runge–Kutta method of ``dy/dt = f(y, t)``.

    The unknowns are the slopes, ``k_i = f(y + h Σ_j a_ij k_j, t + c_i h)``: stage after stage where the
    tableau is diagonally implicit, else all of them together. A first stage that is the slope at the
    start is the last one of the step before, if that was the slope at its result. The error estimate::

        (I - h γ J)^{-1} h Σ_i (b_i - b̂_i) k_i

    is filtered by what the solver factorises, so that stiff components that the method damps ask for no
    short steps; the filter is 1 + O(h) and keeps the order. Anderson's iteration has no Jacobian and
    leaves the estimate as it is.

    Args:
        tableau: the method; without embedded weights it serves on fixed grids, see :func:`with_slope`.
        solver: how stages are solved. A tolerance of its own bounds the change of ``h γ k`` relative to the
            state, by the rule of :func:`~odecore.implicit.newton.thresholds`; without one an iteration
            ends where the adaptive driver would see a thousandth of the error that a step may have.
        judge: what errors are judged by; the adaptive driver says it.

    Cost: for each stage what the solver takes, where an evaluation of a coupled system counts as one of
        the field for each of its stages. ``Chord`` starts coupled systems with one Jacobian, at the start. Dense
        output: none where both slopes at the ends are stages (cubic Hermite interpolation, and above order 4
        :func:`~odecore.analysis.continuous.continuous_weights`), else as :func:`~odecore.driver.dense.bootstrapped`.

    Source: Hairer & Wanner 1996, Solving ordinary differential equations II, IV.6 and IV.8; Hosea &
        Shampine 1996, doi:10.1016/0168-9274(95)00115-8 (the filter of diagonally implicit methods).
    """

    tableau: ImplicitTableau
    solver: RootFinder = field(default_factory=Chord)
    judge: Judge | None = field(default=None, repr=False)

    @property
    def order(self) -> int:
        """The order of convergence."""
        return self.tableau.order

    @property
    def error_order(self) -> int:
        """The power of h with which the error estimate shrinks; 0 if there is none."""
        return min(self.tableau.order, self.tableau.embedded_order) + 1 if self.tableau.embedded else 0

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is the slope at the result, and the first that at the start."""
        return self.tableau.explicit_first and self.tableau.stiffly_accurate

    def judged(self, judge: Judge) -> ImplicitRungeKutta:
        """The same for errors that are judged so."""
        return replace(self, judge=judge)

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """The slope at the start: the first stage, or a guess of it."""
        return (flatten(field(y, send(t0, y.device))),), 1

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1."""
        system = StepSystem.of(field, t0, t1, y, self.judge)
        stages = solve_stages(self.tableau, self.solver, system, carry[0], known=self.first_same_as_last)
        new = unflatten(system.start + system.length * combine(self.tableau.b, stages.slopes), y)
        error, krylov, nfe = self._error(system, stages)
        dense = None
        if self.first_same_as_last and self.order > _CUBIC:
            dense = partial(_continuous, self.tableau, y, system, stages)
        elif self.first_same_as_last:
            dense = partial(bootstrapped, field, t0, t1, y, new, self.order, unflatten(stages.slopes[0], y),
                            unflatten(stages.slopes[-1], y))
        return Step(new, (stages.slopes[-1],), unflatten(error, y), torch.maximum(y.abs(), new.abs()),
                    stages.nfe + nfe, stages.newton, stages.krylov + krylov, dense)

    @torch.no_grad()
    def _error(self, system: StepSystem, stages: Stages) -> tuple[Tensor, int, int]:
        """The filtered estimate, inf where the stages were not found, and what it cost."""
        if not self.tableau.embedded:
            return torch.where(stages.converged.unsqueeze(1), torch.zeros_like(system.start), torch.inf), 0, 0
        difference = [b - e for b, e in zip(self.tableau.b, self.tableau.embedded, strict=True)]
        estimate = system.length * combine(difference, stages.slopes)
        estimate = torch.where(stages.converged.unsqueeze(1), estimate, 0.0)
        filtered = damped_error(self.tableau, self.solver, system, stages, estimate)
        return torch.where(stages.converged.unsqueeze(1), filtered.x, torch.inf), filtered.krylov, filtered.nfe


def _continuous(tableau: ImplicitTableau, y: Tensor, system: StepSystem, stages: Stages) -> Dense:
    """The continuous extension of a step, over the slopes of its stages."""
    moves = [unflatten(system.length * combine(row, stages.slopes), y) for row in _extension(tableau)]
    return Dense(torch.stack([y, *moves], 1), 0)


@cache
def _extension(tableau: ImplicitTableau) -> tuple[tuple[float, ...], ...]:
    return continuous_weights((tableau.a,), tableau.b, tableau.order - 1)


def with_slope(tableau: ImplicitTableau, weight: float | None = None) -> ImplicitTableau:
    """Give an implicit method an error estimate, from its stages and the slope at the start.

    The slope becomes the first stage; its embedded weight is free, and those of the s others are such
    that the embedded formula integrates polynomials of degree s - 1::

        Σ_i b̂_i c_i^{k-1} = 1/k - weight · [k = 1]        k = 1 … s

    Args:
        tableau: a method without an explicit stage and with distinct stage times.
        weight: that of the slope; None takes the real eigenvalue of A, the filter's γ, if there is one,
            else the geometric mean of all.

    Returns:
        The same method with s + 1 stages, the first explicit.

    Raises:
        ValueError: a first stage that is explicit already, or stage times that coincide.

    Source: Hairer & Wanner 1996, Solving ordinary differential equations II, IV.8, (8.19).
    """
    if tableau.explicit_first or len(set(tableau.c)) != tableau.stages:
        raise ValueError(f"c={tableau.c}: give a method whose stages are implicit and at distinct times")
    first = damping(tableau) if weight is None else weight
    powers = np.vander(tableau.c, increasing=True).T
    moments = 1 / np.arange(1, tableau.stages + 1)
    moments[0] -= first
    embedded = (first, *map(float, np.linalg.solve(powers, moments)))
    a, b = ((0.0,) * (tableau.stages + 1), *((0.0, *row) for row in tableau.a)), (0.0, *tableau.b)
    return replace(tableau, a=a, b=b, embedded=embedded, embedded_order=order_of(a, embedded))


BACKWARD_EULER = ImplicitRungeKutta(with_slope(tableaus.BACKWARD_EULER, 0.5))
"""Its error estimate is the difference to the trapezoidal rule."""

CRANK_NICOLSON = ImplicitRungeKutta(replace(tableaus.CRANK_NICOLSON, embedded=(0.0, 1.0), embedded_order=1))
"""Its error estimate is the difference to backward Euler, and pessimistic: ``HalfSteps`` measures its own."""

SDIRK2 = ImplicitRungeKutta(with_slope(tableaus.SDIRK2))
TR_BDF2 = ImplicitRungeKutta(tableaus.TR_BDF2)
KVAERNO3 = ImplicitRungeKutta(tableaus.KVAERNO3)
KVAERNO4 = ImplicitRungeKutta(tableaus.KVAERNO4)
KVAERNO5 = ImplicitRungeKutta(tableaus.KVAERNO5)
GAUSS2 = ImplicitRungeKutta(with_slope(tableaus.GAUSS2))
GAUSS4 = ImplicitRungeKutta(with_slope(tableaus.GAUSS4))
GAUSS6 = ImplicitRungeKutta(with_slope(tableaus.GAUSS6))
RADAU3 = ImplicitRungeKutta(with_slope(tableaus.RADAU3))
RADAU5 = ImplicitRungeKutta(with_slope(tableaus.RADAU5))
