"""Explicit Runge–Kutta pairs as steppers of the adaptive driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from functools import partial

import torch
from torch import Tensor

from odecore.driver.dense import bootstrapped
from odecore.explicit import interpolants, tableaus
from odecore.explicit.interpolants import Interpolant
from odecore.explicit.tableaus import Tableau
from odecore.plan import combine
from odecore.stepper import Carry, Dense, Field, Step, column, send

Terms = tuple[tuple[int, float], ...]
"""The terms of a weighted sum of stages: their places and weights."""


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
        :func:`~odecore.driver.dense.bootstrapped` with the slopes that are stages known.
    """

    tableau: Tableau
    embedded: tuple[float, ...]
    error_order: int
    interpolant: Interpolant | None = None
    first_same_as_last: bool = dataclass_field(init=False)
    """Whether the last stage is evaluated at the result of the step."""
    _times: Tensor = dataclass_field(init=False, repr=False, compare=False)
    _points: tuple[Terms, ...] = dataclass_field(init=False, repr=False, compare=False)
    _result: Terms = dataclass_field(init=False, repr=False, compare=False)
    _difference: Terms = dataclass_field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.embedded) != self.tableau.stages or abs(sum(self.embedded) - 1.0) > 1e-13:
            raise ValueError(f"embedded={self.embedded}: give {self.tableau.stages} weights that sum to one")
        known = {"first_same_as_last": self.tableau.b[-1] == 0.0 and self.tableau.a[-1] == self.tableau.b[:-1],
                 "_times": torch.tensor(self.tableau.c, dtype=torch.float64).unsqueeze(1),
                 "_points": tuple(map(_terms, self.tableau.a)), "_result": _terms(self.tableau.b),
                 "_difference": _terms([b - e for b, e in zip(self.tableau.b, self.embedded, strict=True)])}
        for name, value in known.items():
            object.__setattr__(self, name, value)

    @property
    def order(self) -> int:
        """Order of the method that advances the solution."""
        return self.tableau.order

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """The slope at the start, if steps hand theirs on."""
        return ((field(y, send(t0, y.device)),), 1) if self.first_same_as_last else ((), 0)

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1."""
        length, times = column(t1 - t0, y), send(torch.lerp(t0, t1, self._times), y.device).unbind()
        slopes = list(carry)
        rises = [length * slope for slope in slopes]  # scaled once, a slope costs one operation in each later stage
        point = y
        for terms, t in zip(self._points[len(carry):], times[len(carry):], strict=True):
            point = _advance(y, terms, rises)
            slope = field(point, t)
            slopes.append(slope)
            rises.append(length * slope)
        new = point if self.first_same_as_last else _advance(y, self._result, rises)
        dense = partial(self._dense, field, t0, t1, y, new, slopes, rises)
        return Step(new, (slopes[-1],) if self.first_same_as_last else (), _error(self._difference, rises),
                    torch.maximum(y.abs(), new.abs()), len(slopes) - len(carry), dense=dense)

    def _dense(
        self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, new: Tensor, slopes: Sequence[Tensor],
        rises: Sequence[Tensor],
    ) -> Dense:
        """Combine the stages to a polynomial."""
        if self.interpolant is None:
            last = slopes[-1] if self.first_same_as_last else None
            return bootstrapped(field, t0, t1, y, new, self.order, slopes[0], last)
        length, stages = column(t1 - t0, y), list(rises)
        for c, a in zip(self.interpolant.c, self.interpolant.extra, strict=True):
            stages.append(length * field(_advance(y, _terms(a), stages), send(torch.lerp(t0, t1, c), y.device)))
        terms = [y, *(combine(row, stages) for row in self.interpolant.weights)]
        return Dense(torch.stack(terms, 1), len(self.interpolant.extra))


def _terms(weights: Sequence[float]) -> Terms:
    """The weights that are not zero, with their places."""
    return tuple((index, weight) for index, weight in enumerate(weights) if weight != 0.0)


def _advance(y: Tensor, terms: Terms, rises: Sequence[Tensor]) -> Tensor:
    """``y + Σ_i weight_i rises[i]``: faster on a CPU than a product with stacked slopes."""
    return _added(torch.add(y, rises[terms[0][0]], alpha=terms[0][1]), terms[1:], rises) if terms else y


def _error(terms: Terms, rises: Sequence[Tensor]) -> Tensor:
    """``Σ_i weight_i rises[i]``."""
    return _added(rises[terms[0][0]] * terms[0][1], terms[1:], rises) if terms else torch.zeros_like(rises[0])


def _added(total: Tensor, terms: Terms, rises: Sequence[Tensor]) -> Tensor:
    """Add to a sum that is ours: in place where no gradient follows."""
    if torch.is_grad_enabled():
        for index, weight in terms:
            total = torch.add(total, rises[index], alpha=weight)
    else:
        for index, weight in terms:
            total.add_(rises[index], alpha=weight)
    return total


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
