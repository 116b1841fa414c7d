"""Implicit–explicit (additive) Runge–Kutta methods as steppers of the adaptive driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from odecore.analysis.continuous import closing_row, continuous_weights, stiff_response
from odecore.analysis.trees import square
from odecore.implicit import additive_tableaus as tableaus
from odecore.implicit.additive_tableaus import AdditiveTableau
from odecore.implicit.jacobian import Inverse
from odecore.implicit.newton import Chord, RootFinder
from odecore.implicit.stages import solve_slope
from odecore.plan import combine
from odecore.problem import Linear, RightHandSide, Semilinear, Split, require
from odecore.stepper import Carry, Dense, Field, Judge, Step, column, send


@dataclass(frozen=True, slots=True)
class AdditiveRungeKutta:
    """An implicit–explicit Runge–Kutta method of ``y' = f(y, t) + g(y, t)`` that is implicit in g only.

    A stage with a diagonal entry γ of the implicit tableau has a slope k of g that solves::

        k = g(r + h γ k, t)    with r known from the stages before

    for every sample by itself: by the solver for a :class:`odecore.problem.Split` problem, without
    iteration for a :class:`odecore.problem.Semilinear` one, where g is L y and ``r + h γ k`` is
    ``(I - h γ L)^{-1} r``. Where a stage does not converge the sample gets an error of inf. The error
    estimate is that of the embedded weights as it stands: a filter ``(I - h γ J)^{-1}`` as implicit
    methods have it would hide the order that stiff components do lose by the splitting.

    Nothing is handed on from step to step: a pair whose result is its last stage needs the implicit
    slope there no more, and leaves the explicit one to the first stage of the next step.

    Args:
        tableau: the method, one of :mod:`odecore.implicit.additive_tableaus`; without embedded weights it serves on
            fixed grids.
        solver: how the stages of a Split problem are solved. Their Jacobians are those of g.
        judge: what errors are judged by; the adaptive driver says it.

    Cost: up to ``tableau.stages`` evaluations of f a step, one less where the result is the last stage;
        of g one for an explicit first stage, and what the solver takes. An evaluation of either part
        counts as one of the field. Semilinear problems need none of g, but a resolvent for each
        implicit stage. Dense output: none where the tableau has an interpolant; above order 4 one more
        stage, else as :func:`~odecore.driver.dense.bootstrapped`.

    Source: Kennedy & Carpenter 2003, doi:10.1016/S0168-9274(02)00138-1; Ascher, Ruuth & Spiteri 1997,
        doi:10.1016/S0168-9274(97)00056-1.
    """

    tableau: AdditiveTableau
    solver: RootFinder = field(default_factory=Chord)
    judge: Judge | None = field(default=None, repr=False)

    @property
    def order(self) -> int:
        """The order of convergence."""
        return self.tableau.order

    @property
    def error_order(self) -> int:
        """The power of h with which the error estimate shrinks; 0 if there is none."""
        return self.tableau.implicit.embedded_order + 1 if self.tableau.implicit.embedded else 0

    def judged(self, judge: Judge) -> AdditiveRungeKutta:
        """The same for errors that are judged so."""
        return replace(self, judge=judge)

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """Nothing."""
        return (), 0

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1."""
        scheme, stages = _scheme(self.tableau), self.tableau.stages
        mild, stiff = _parts(field, self.solver, self.judge)
        h, size = column(t1 - t0, y), y.abs()
        slopes: list[Tensor | None] = [None] * (2 * stages)
        solved: list[_Stage] = []
        latest, inverse, nfe = torch.zeros_like(y), None, 0
        for i, c in enumerate(self.tableau.c):
            t = send(torch.lerp(t0, t1, c), y.device)
            point = _moved(y, h, scheme.rows[i], slopes)
            if scheme.diagonal[i]:
                solved.append(stiff.stage(point, scheme.diagonal[i] * (t1 - t0), t, latest, inverse, size))
                point, latest, inverse = solved[-1].y, solved[-1].slope, solved[-1].inverse
                slopes[stages + i] = latest
            elif scheme.used[stages + i]:
                slopes[stages + i] = latest = stiff.slope(point, t)
                nfe += stiff.cost
            if scheme.used[i]:
                slopes[i] = mild(point, t)
                nfe += 1
        new = _moved(point, h, scheme.result, slopes)
        error = _moved(torch.zeros_like(y), h, scheme.error, slopes)
        for stage in solved:
            if stage.converged is not None:
                error = torch.where(stage.converged.reshape(-1, *[1] * (y.ndim - 1)), error, torch.inf)
        dense = None
        if scheme.interpolant:
            dense = partial(_dense, y, h, scheme.interpolant, slopes)
        elif self.order > 4:
            dense = partial(self._extended, mild, stiff, t0, t1, y, slopes, solved[-1])
        return Step(new, (), error, torch.maximum(size, new.abs()), nfe + sum(stage.nfe for stage in solved),
                    sum(stage.newton for stage in solved), sum(stage.krylov for stage in solved), dense)

    def _extended(
        self, mild: RightHandSide, stiff: _Stiff, t0: Tensor, t1: Tensor, y: Tensor, slopes: Sequence[Tensor | None],
        last: _Stage,
    ) -> Dense:
        """The continuous extension, over the slopes of the stages and of one more at the end of the step.

        The stage is implicit, since the stiff part at the result would multiply what an iteration left over.
        """
        h, t, stages, extension = column(t1 - t0, y), send(t1, y.device), self.tableau.stages, _extension(self.tableau)
        known = _moved(y, h, extension.row, slopes)
        found = stiff.stage(known, extension.diagonal * (t1 - t0), t, last.slope, last.inverse, y.abs())
        slope = found.slope
        if found.converged is not None:
            slope = torch.where(found.converged.reshape(-1, *[1] * (y.ndim - 1)), slope, last.slope)
        every = [*slopes[:stages], mild(found.y, t), *slopes[stages:], slope]
        return Dense(_dense(y, h, extension.weights, every).coefficients, found.nfe + 1)


class _Stage(NamedTuple):
    """The solution of ``Y = r + h γ g(Y, t)``.

    Attributes:
        y: Y.
        slope: g(Y, t).
        converged: of which samples it is the solution, of shape (samples,); None stands for all.
        newton: iterations.
        krylov: Krylov iterations.
        nfe: evaluations of g.
        inverse: of the last Jacobian.
    """

    y: Tensor
    slope: Tensor
    converged: Tensor | None = None
    newton: int = 0
    krylov: int = 0
    nfe: int = 0
    inverse: Inverse | None = None


class _Stiff(Protocol):
    """The implicit part g.

    Attributes:
        slope: g itself.
        cost: evaluations of the field that it counts as.
    """

    @property
    def slope(self) -> RightHandSide: ...

    @property
    def cost(self) -> int: ...

    def stage(
        self, known: Tensor, reach: Tensor, t: Tensor, guess: Tensor, inverse: Inverse | None, size: Tensor
    ) -> _Stage:
        """Solve a stage.

        Args:
            known: r.
            reach: h γ, one a sample, on the host.
            t: the stage's time.
            guess: of the slope.
            inverse: of the last stage.
            size: what changes of Y are compared with.
        """


@dataclass(frozen=True, slots=True)
class _Nonlinear:
    slope: RightHandSide
    solver: RootFinder
    judge: Judge | None
    cost: int = 1

    def stage(
        self, known: Tensor, reach: Tensor, t: Tensor, guess: Tensor, inverse: Inverse | None, size: Tensor
    ) -> _Stage:
        length = column(reach, known)
        found = solve_slope(self.solver, lambda y: self.slope(y, t), known, length, guess, size, inverse,
                            self.judge)
        return _Stage(known + length * found.z, *found)


@dataclass(frozen=True, slots=True)
class _Linear:
    linear: Linear
    cost: int = 0

    def slope(self, y: Tensor, t: Tensor) -> Tensor:
        return self.linear.apply(y)

    def stage(
        self, known: Tensor, reach: Tensor, t: Tensor, guess: Tensor, inverse: Inverse | None, size: Tensor
    ) -> _Stage:
        y = self.linear.resolvent(reach, known)
        return _Stage(y, (y - known) / column(reach, y))


def _parts(field: object, solver: RootFinder, judge: Judge | None) -> tuple[RightHandSide, _Stiff]:
    """The explicit and the implicit part of a problem."""
    if isinstance(field, Semilinear):
        return field.nonlinear, _Linear(field.linear)
    split = require(field, Split, "AdditiveRungeKutta")
    return split.explicit, _Nonlinear(split.implicit, solver, judge)


class _Scheme(NamedTuple):
    """A tableau as weights of the slopes f_1, …, f_s, g_1, …, g_s.

    Attributes:
        rows: of what each stage knows.
        diagonal: γ of each stage, 0 where it is explicit.
        result: of what leads from the last stage to the result: nothing where that is the last stage,
            and no stiff slopes, whose weights would have to cancel, where the implicit part ends there.
        error: of the error.
        interpolant: of each power of θ in the dense output, or empty.
        used: which slopes enter anywhere.
    """

    rows: tuple[tuple[float, ...], ...]
    diagonal: tuple[float, ...]
    result: tuple[float, ...]
    error: tuple[float, ...]
    interpolant: tuple[tuple[float, ...], ...]
    used: tuple[bool, ...]


@cache
def _scheme(tableau: AdditiveTableau) -> _Scheme:
    implicit = square(tableau.implicit.a)
    diagonal = np.diag(implicit)
    whole = np.hstack((square(tableau.explicit.a), implicit))
    rows = np.hstack((square(tableau.explicit.a), implicit - np.diag(diagonal)))
    weights = np.array((*tableau.explicit.b, *tableau.implicit.b))
    embedded = np.array(tableau.implicit.embedded * 2) if tableau.implicit.embedded else weights
    result, error = weights - whole[-1], weights - embedded
    interpolant = tuple(row * 2 for row in tableau.interpolant.weights) if tableau.interpolant else ()
    used = (np.vstack((rows, result, error, *interpolant)) != 0).any(0)
    return _Scheme(tuple(map(tuple, rows.tolist())), tuple(diagonal.tolist()), tuple(result.tolist()),
                   tuple(error.tolist()), interpolant, tuple(map(bool, used)))


class _Extension(NamedTuple):
    """A continuous extension by one more stage.

    Attributes:
        row: of what the stage knows, over f_1, …, f_s, g_1, …, g_s.
        diagonal: its γ.
        weights: of each power of θ, over f_1, …, f_{s+1}, g_1, …, g_{s+1}.
    """

    row: tuple[float, ...]
    diagonal: float
    weights: tuple[tuple[float, ...], ...]


@cache
def _extension(tableau: AdditiveTableau) -> _Extension:
    """Of an order one below the method's. The stage's own may be one lower again, for its slope is multiplied by h."""
    order, explicit, implicit = tableau.order - 1, tableau.explicit, tableau.implicit
    diagonal = implicit.a[-1][-1]
    row = closing_row((explicit.a, implicit.a), order - 1, diagonal)
    longer = ((*explicit.a, explicit.b), (*implicit.a, (*row, diagonal)))
    weights = continuous_weights(longer, (*explicit.b, 0.0), order, response=stiff_response(longer[1]))
    return _Extension((*explicit.b, *row), diagonal, tuple(powers * 2 for powers in weights))


def _moved(base: Tensor, h: Tensor, weights: Sequence[float], slopes: Sequence[Tensor | None]) -> Tensor:
    """``base + h Σ_i weights_i slopes_i`` over the weights that are not zero."""
    pairs = [(weight, slope) for weight, slope in zip(weights, slopes, strict=True) if weight and slope is not None]
    if not pairs:
        return base
    return torch.addcmul(base, h, combine([weight for weight, _ in pairs], [slope for _, slope in pairs]))


def _dense(y: Tensor, h: Tensor, rows: Sequence[Sequence[float]], slopes: Sequence[Tensor | None]) -> Dense:
    zero = torch.zeros_like(y)
    return Dense(torch.stack([y, *(_moved(zero, h, row, slopes) for row in rows)], 1), 0)


IMEX_EULER = AdditiveRungeKutta(tableaus.IMEX_EULER)
HEUN_CRANK_NICOLSON = AdditiveRungeKutta(tableaus.HEUN_CRANK_NICOLSON)
ARS222 = AdditiveRungeKutta(tableaus.ARS222)
ARS343 = AdditiveRungeKutta(tableaus.ARS343)
ARS443 = AdditiveRungeKutta(tableaus.ARS443)
KENCARP3 = AdditiveRungeKutta(tableaus.KENCARP3)
KENCARP4 = AdditiveRungeKutta(tableaus.KENCARP4)
KENCARP5 = AdditiveRungeKutta(tableaus.KENCARP5)
