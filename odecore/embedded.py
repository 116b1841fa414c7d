"""Explicit Runge–Kutta pairs as steppers of the adaptive driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from odecore import interpolants, tableaus
from odecore.dense import bootstrapped
from odecore.interpolants import Interpolant
from odecore.plan import combine
from odecore.stepper import Carry, Dense, Field, Step, column, send
from odecore.tableaus import Tableau


@dataclass(frozen=True, slots=True)
class EmbeddedPair:
    """An explicit Runge–Kutta method of ``dy/dt = f(y, t)`` with an embedded one to estimate its error.

    Args:
        tableau: the method that advances the solution.
        embedded: weights of the other method, over the same stages.
        error_order: k, where the difference of the two shrinks as h^k: the lower order plus one.
        interpolant: dense output of order p - 1 or more; None bootstraps it.

    Raises:
        ValueError: weights that do not fit or do not sum to one.

    Cost: ``tableau.stages`` evaluations a step, one less where the last stage is the first of the
        next step. Dense output: the interpolant's extra stages, or as
        :func:`~odecore.dense.bootstrapped` with the slopes that are stages known.
    """

    tableau: Tableau
    embedded: tuple[float, ...]
    error_order: int
    interpolant: Interpolant | None = None

    def __post_init__(self) -> None:
        if len(self.embedded) != self.tableau.stages or abs(sum(self.embedded) - 1.0) > 1e-13:
            raise ValueError(f"embedded={self.embedded}: give {self.tableau.stages} weights that sum to one")

    @property
    def order(self) -> int:
        """Order of the method that advances the solution."""
        return self.tableau.order

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is evaluated at the result of the step."""
        return self.tableau.b[-1] == 0.0 and self.tableau.a[-1] == self.tableau.b[:-1]

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """The slope at the start, if steps hand theirs on."""
        return ((field(y, send(t0, y.device)),), 1) if self.first_same_as_last else ((), 0)

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1."""
        length = column(t1 - t0, y)
        slopes = list(carry)
        for c, a in list(zip(self.tableau.c, self.tableau.a, strict=True))[len(carry):]:
            point = torch.addcmul(y, length, combine(a, slopes)) if a else y
            slopes.append(field(point, send(torch.lerp(t0, t1, c), y.device)))
        new = torch.addcmul(y, length, combine(self.tableau.b, slopes))
        difference = [b - e for b, e in zip(self.tableau.b, self.embedded, strict=True)]
        error = length * combine(difference, slopes)
        handed_on = (slopes[-1],) if self.first_same_as_last else ()
        dense = partial(self._dense, field, t0, t1, y, new, slopes)
        return Step(new, handed_on, error, torch.maximum(y.abs(), new.abs()), len(slopes) - len(carry), dense=dense)

    def _dense(
        self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, new: Tensor, slopes: Sequence[Tensor]
    ) -> Dense:
        """Combine the stages to a polynomial."""
        if self.interpolant is None:
            last = slopes[-1] if self.first_same_as_last else None
            return bootstrapped(field, t0, t1, y, new, self.order, slopes[0], last)
        length, stages = column(t1 - t0, y), list(slopes)
        for c, a in zip(self.interpolant.c, self.interpolant.extra, strict=True):
            point = torch.addcmul(y, length, combine(a, stages))
            stages.append(field(point, send(torch.lerp(t0, t1, c), y.device)))
        terms = [y, *(length * combine(row, stages) for row in self.interpolant.weights)]
        return Dense(torch.stack(terms, 1), len(self.interpolant.extra))


HEUN_EULER = EmbeddedPair(tableaus.HEUN, embedded=(1.0, 0.0), error_order=2)

BOGACKI_SHAMPINE = EmbeddedPair(tableaus.BOGACKI_SHAMPINE, embedded=(7 / 24, 1 / 4, 1 / 3, 1 / 8), error_order=3)

DORMAND_PRINCE = EmbeddedPair(
    tableaus.DORMAND_PRINCE, error_order=5,
    embedded=(5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
    interpolant=interpolants.DORMAND_PRINCE)

TSITOURAS = EmbeddedPair(
    tableaus.TSITOURAS, error_order=5,
    embedded=(0.094680755765839458, 0.0091835655403432531, 0.48777052842476157, 1.2342975669304790,
              -2.7077123499835255, 1.8666284181705870, 1 / 66),
    interpolant=interpolants.TSITOURAS)

DOP853 = EmbeddedPair(
    tableaus.DOP853, error_order=6,
    embedded=(0.04117368912237389, 0.0, 0.0, 0.0, 0.0, 5.675469339128614, 2.3872768489717506, -7.465581142465571,
              0.6614932157077935, -0.48634006837553356, 0.11944219431891463, 0.06706592359165889, 0.0),
    interpolant=interpolants.DOP853)
