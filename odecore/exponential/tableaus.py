"""Exponential Runge–Kutta methods as data: tableaux whose entries are sums of φ-functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from odecore.explicit import tableaus
from odecore.explicit.tableaus import Tableau
from odecore.exponential.phi_sums import ZERO, PhiSum, varphi


@dataclass(frozen=True, slots=True)
class ExponentialTableau:
    """Coefficients of a method for ``dy/dt = L y + N(y, t)``.

    With z = hL::

        Y_i = φ_0(c_i z) y + h Σ_j a_ij(z) N_j,   N_i = N(Y_i, t + c_i h)
        y⁺  = φ_0(z) y + h Σ_i b_i(z) N_i

    Args:
        a: strictly lower triangle; row i has i entries.
        b: weights of the result.
        order: order of convergence without stiffness, for smooth N and bounded L.
        stiff_order: order that no growth of L takes away, for parabolic problems with smooth solutions.
        embedded: weights of another method over the same stages, to estimate the error; or empty.
        error_order: k, where the difference of the two shrinks as h^k; 0 without one.
        source: where it comes from.

    Raises:
        ValueError: sizes that do not fit, or weights that are inconsistent at z = 0.
    """

    a: tuple[tuple[PhiSum, ...], ...]
    b: tuple[PhiSum, ...]
    order: int
    stiff_order: int
    embedded: tuple[PhiSum, ...] = ()
    error_order: int = 0
    source: str = ""
    c: tuple[float, ...] = field(init=False)
    error: tuple[PhiSum, ...] = field(init=False, repr=False)
    sums: tuple[PhiSum, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.a) != len(self.b) or any(len(row) != i for i, row in enumerate(self.a)):
            raise ValueError(f"a={self.a}: give {len(self.b)} rows, row i with i entries")
        for name, weights in (("b", self.b), ("embedded", self.embedded)):
            total = math.fsum(weight.at_zero for weight in weights)
            if weights and not (len(weights) == len(self.b) and math.isclose(total, 1.0, abs_tol=1e-13)):
                raise ValueError(f"{name}={weights}: give {len(self.b)} weights that sum to one at z = 0")
        if bool(self.embedded) != (self.error_order > 0):
            raise ValueError(f"error_order={self.error_order}: give it with embedded weights, and only with them")
        c = tuple(math.fsum(weight.at_zero for weight in row) for row in self.a)
        error = tuple(b - e for b, e in zip(self.b, self.embedded, strict=True)) if self.embedded else ()
        needed = (varphi(0), *(varphi(0, ci) for ci in c), *(s for row in self.a for s in row), *self.b, *error)
        object.__setattr__(self, "c", c)
        object.__setattr__(self, "error", error)
        object.__setattr__(self, "sums", tuple(dict.fromkeys(filter(None, needed))))

    @property
    def stages(self) -> int:
        """Evaluations a step, those included that only estimate the error."""
        return len(self.b)

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is evaluated at the result of the step."""
        return self.stages > 1 and not self.b[-1] and self.a[-1] == self.b[:-1] and self.c[-1] == 1.0

    @property
    def without_estimate(self) -> ExponentialTableau:
        """The method on a fixed grid: without the stages at the end that only estimate the error."""
        end = max(i for i, weight in enumerate(self.b) if weight) + 1
        return ExponentialTableau(self.a[:end], self.b[:end], self.order, self.stiff_order, source=self.source)


def lawson(tableau: Tableau, embedded: Sequence[float] = (), error_order: int = 0) -> ExponentialTableau:
    """Apply an explicit method to the integrating factor: ``a_ij(z) = a_ij e^{(c_i - c_j) z}``, b likewise.

    The order does not survive stiffness: fixed points are not kept and the stiff order is 1 at most.

    Args:
        tableau: the method; where a stage looks back from an earlier time (c_i < c_j), the factor
            grows with stiffness.
        embedded: weights that estimate the error, as in :class:`odecore.explicit.embedded.EmbeddedPair`.
        error_order: k, where the difference shrinks as h^k.

    Source: Lawson 1967, doi:10.1137/0704033.
    """
    c = tableau.c

    def factors(weights: Sequence[float], at: float) -> tuple[PhiSum, ...]:
        return tuple(weight * varphi(0, at - cj) for weight, cj in zip(weights, c, strict=False))

    return ExponentialTableau(
        tuple(factors(row, ci) for row, ci in zip(tableau.a, c, strict=True)), factors(tableau.b, 1.0), tableau.order,
        1, factors(embedded, 1.0), error_order, f"Lawson 1967, doi:10.1137/0704033, of {tableau.source}")


def _evaluated_at_result(
    a: tuple[tuple[PhiSum, ...], ...], b: tuple[PhiSum, ...], embedded: tuple[PhiSum, ...], order: int,
    stiff_order: int, source: str,
) -> ExponentialTableau:
    """A method with one more stage, at its result, which the next step starts from and the embedded weights use."""
    return ExponentialTableau((*a, b), (*b, ZERO), order, stiff_order, embedded, order if order > 1 else 2, source)


_P1, _P2, _P3 = (varphi(k) for k in (1, 2, 3))
_H1, _H2, _H3 = (varphi(k, 0.5) for k in (1, 2, 3))
_START = _P1 - 3 * _P2 + 4 * _P3
_MIDDLE = 4 * _P2 - 8 * _P3
_END = 4 * _P3 - _P2
"""Simpson's rule with the exponential kernel: nodes 0, 1/2 and 1."""

_FOURTH = (_START, 0.5 * _MIDDLE, 0.5 * _MIDDLE, _END)
_LAST_MOVED = (*_FOURTH[:3], ZERO, _END)
_COX_MATTHEWS = "Cox & Matthews 2002, doi:10.1006/jcph.2002.6995"
_MOVED = "error estimate as Balac & Mahé 2013, doi:10.1016/j.cpc.2012.12.020, have it for Lawson's method"

ETD_RK1 = _evaluated_at_result(((),), (_P1,), (_P1 - _P2, _P2), 1, 1, "exponential Euler, Nørsett 1969")
ETD_RK2 = ExponentialTableau(((), (_P1,)), (_P1 - _P2, _P2), 2, 2, (_P1, ZERO), 2, _COX_MATTHEWS)
ETD_RK3 = ExponentialTableau(
    ((), (0.5 * _H1,), (-1 * _P1, 2 * _P1)), (_START, _MIDDLE, _END), 3, 2, (_P1 - 2 * _P2, 2 * _P2, ZERO), 3,
    _COX_MATTHEWS)
ETD_RK4 = _evaluated_at_result(
    ((), (0.5 * _H1,), (ZERO, 0.5 * _H1), (_P1 - _H1, ZERO, _H1)), _FOURTH, _LAST_MOVED, 4, 2,
    f"{_COX_MATTHEWS}; {_MOVED}")
KROGSTAD = _evaluated_at_result(
    ((), (0.5 * _H1,), (0.5 * _H1 - _H2, _H2), (_P1 - 2 * _P2, ZERO, 2 * _P2)), _FOURTH, _LAST_MOVED, 4, 3,
    f"Krogstad 2005, doi:10.1016/j.jcp.2004.08.006; {_MOVED}")

_FIFTH = 0.5 * _H2 - _P3 + 0.25 * _P2 - 0.5 * _H3
HOCHBRUCK_OSTERMANN = ExponentialTableau(
    ((), (0.5 * _H1,), (0.5 * _H1 - _H2, _H2), (_P1 - 2 * _P2, _P2, _P2),
     (0.5 * _H1 - 0.25 * _H2 - _FIFTH, _FIFTH, _FIFTH, 0.25 * _H2 - _FIFTH)),
    (_START, ZERO, ZERO, _END, _MIDDLE), 4, 4, (*_FOURTH, ZERO), 4,
    "Hochbruck & Ostermann 2005, doi:10.1137/040611434; embedded: the same quadrature over the first four stages, "
    "of stiff order 3")

LAWSON_EULER = lawson(Tableau(a=((), (1.0,)), b=(1.0, 0.0), order=1, source="Euler 1768"), (0.5, 0.5), 2)
LAWSON4 = lawson(
    Tableau(a=(*tableaus.RK4.a, tableaus.RK4.b), b=(*tableaus.RK4.b, 0.0), order=4, source=tableaus.RK4.source),
    (1 / 6, 1 / 3, 1 / 3, 0.0, 1 / 6), 4)
