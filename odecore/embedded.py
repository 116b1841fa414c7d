"""Explicit Runge–Kutta pairs as steppers of the adaptive driver."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odecore.plan import combine
from odecore.solve import Carry, Field, Step, column, send
from odecore.tableaus import Tableau


@dataclass(frozen=True, slots=True)
class EmbeddedPair:
    """An explicit Runge–Kutta method of ``dy/dt = f(y, t)`` with an embedded one to estimate its error.

    Args:
        tableau: the method that advances the solution.
        embedded: weights of the other method, over the same stages.
        error_order: k, where the difference of the two shrinks as h^k: the lower order plus one.

    Raises:
        ValueError: weights that do not fit or do not sum to one.

    Cost: ``tableau.stages`` evaluations a step, one less where the last stage is the first of the
        next step.
    """

    tableau: Tableau
    embedded: tuple[float, ...]
    error_order: int

    def __post_init__(self) -> None:
        if len(self.embedded) != self.tableau.stages or abs(sum(self.embedded) - 1.0) > 1e-13:
            raise ValueError(f"embedded={self.embedded}: give {self.tableau.stages} weights that sum to one")

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
        return Step(new, handed_on, error, torch.maximum(y.abs(), new.abs()), len(slopes) - len(carry))


BOGACKI_SHAMPINE = EmbeddedPair(
    Tableau(a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)), b=(2 / 9, 1 / 3, 4 / 9, 0.0), order=3,
            source="Bogacki & Shampine 1989, doi:10.1016/0893-9659(89)90079-7"),
    embedded=(7 / 24, 1 / 4, 1 / 3, 1 / 8), error_order=3)

DORMAND_PRINCE = EmbeddedPair(
    Tableau(
        a=((), (1 / 5,), (3 / 40, 9 / 40), (44 / 45, -56 / 15, 32 / 9),
           (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
           (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
           (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
        b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0), order=5,
        source="Dormand & Prince 1980, doi:10.1016/0771-050X(80)90013-3"),
    embedded=(5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40), error_order=5)
