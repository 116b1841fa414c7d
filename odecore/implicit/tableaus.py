"""Butcher tableaux of implicit Runge–Kutta methods: diagonally implicit ones and collocation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from odecore.explicit.tableaus import ButcherTableau, check_weights


@dataclass(frozen=True, slots=True)
class ImplicitTableau(ButcherTableau):
    """A tableau of an implicit method.

    Args:
        a: rows of as many entries as there are stages; zeros above the diagonal if it is
            diagonally implicit.
        b: weights of the result.
        order: order of convergence.
        embedded: weights of a method of another order over the same stages, to estimate the error; or empty.
        embedded_order: order of that method.
        source: where it comes from.

    Raises:
        ValueError: sizes that do not fit, or weights that do not sum to one.
    """

    embedded: tuple[float, ...] = ()
    embedded_order: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        stages = len(self.b)
        if len(self.a) != stages or any(len(row) != stages for row in self.a):
            raise ValueError(f"a={self.a}: give {stages} rows of {stages} entries, as many as weights")
        check_weights("b", self.b, stages)
        if self.embedded:
            check_weights("embedded", self.embedded, stages)
        if bool(self.embedded) != (self.embedded_order > 0):
            raise ValueError(f"embedded_order={self.embedded_order}: give it with embedded weights, and only with them")

    @property
    def diagonal(self) -> bool:
        """Whether the stages can be solved one after the other."""
        return not any(any(row[i + 1:]) for i, row in enumerate(self.a))

    @property
    def explicit_first(self) -> bool:
        """Whether the first stage is the slope at the start."""
        return not any(self.a[0])

    @property
    def stiffly_accurate(self) -> bool:
        """Whether the result is the last stage; then R(∞) = 0 if the method is A-stable and A is regular."""
        return self.a[-1] == self.b


def collocation(nodes: Sequence[float], order: int, source: str = "") -> ImplicitTableau:
    """Build the collocation method of given nodes: ``a_ij = ∫_0^{c_i} ℓ_j``, ``b_j = ∫_0^1 ℓ_j``.

    Args:
        nodes: distinct stage times in [0, 1]; two equal ones would pass every autonomous test and lose all order.
        order: order of the quadrature.
        source: where it comes from.

    Raises:
        ValueError: nodes that coincide.

    Source: Hairer, Nørsett & Wanner 1993, Solving ordinary differential equations I, theorem II.7.7.
    """
    if len(set(nodes)) != len(nodes):
        raise ValueError(f"nodes={list(nodes)}: they must be distinct")
    integrals = []
    for j, node in enumerate(nodes):
        others = [c for i, c in enumerate(nodes) if i != j]
        basis = np.poly1d(others, r=True) / math.prod(node - c for c in others) if others else np.poly1d([1.0])
        integrals.append(basis.integ())
    a = tuple(tuple(float(integral(c)) for integral in integrals) for c in nodes)
    b = tuple(float(integral(1.0)) for integral in integrals)
    # A node at 1 makes the last stage the result: the same sums, hence the same numbers.
    return ImplicitTableau(a, b, order, source=source)


def theta(value: float) -> ImplicitTableau:
    """Build the θ-method: explicit Euler for 0, Crank–Nicolson for 1/2, backward Euler for 1.

    Raises:
        ValueError: θ outside of [0, 1].
    """
    if not 0 <= value <= 1:
        raise ValueError(f"value={value}: give θ between 0 and 1")
    weights = (1 - value, value)
    return ImplicitTableau(((0.0, 0.0), weights), weights, 2 if value == 0.5 else 1, source="Crank & Nicolson 1947")


def _kvaerno3() -> ImplicitTableau:
    """The diagonal is the root of 6γ³ - 18γ² + 9γ - 1 for which the result is L-stable."""
    roots = np.roots([6.0, -18.0, 9.0, -1.0]).real
    g = float(roots[np.abs(roots - 0.44).argmin()])
    third = ((-4 * g**2 + 6 * g - 1) / (4 * g), (1 - 2 * g) / (4 * g), g, 0.0)
    fourth = ((6 * g - 1) / (12 * g), -1 / ((24 * g - 12) * g), (-6 * g**2 + 6 * g - 1) / (6 * g - 3), g)
    return ImplicitTableau(((0.0,) * 4, (g, g, 0.0, 0.0), third, fourth), fourth, 3, third, 2, _KVAERNO)


def _kvaerno4() -> ImplicitTableau:
    """One root of 24γ⁴ - 96γ³ + 72γ² - 16γ + 1, for which the stage that is kept is L-stable."""
    roots = np.roots([24.0, -96.0, 72.0, -16.0, 1.0]).real
    g = float(roots[np.abs(roots - 0.57).argmin()])
    p, q, r, s = 12 * g**2 - 6 * g + 1, 12 * g**2 - 9 * g + 2, 3 * g - 1, 6 * g**2 - 6 * g + 1
    third = ((144 * g**5 - 180 * g**4 + 81 * g**3 - 15 * g**2 + g) / p**2,
             (-36 * g**4 + 39 * g**3 - 15 * g**2 + 2 * g) / p**2, g, 0.0, 0.0)
    fourth = ((-144 * g**5 + 396 * g**4 - 330 * g**3 + 117 * g**2 - 18 * g + 1) / (12 * g**2 * q),
              (72 * g**4 - 126 * g**3 + 69 * g**2 - 15 * g + 1) / (12 * g**2 * r),
              -s * p**2 / (12 * g**2 * q * r), g, 0.0)
    fifth = ((288 * g**4 - 312 * g**3 + 120 * g**2 - 18 * g + 1) / (48 * g**2 * q),
             (24 * g**2 - 12 * g + 1) / (48 * g**2 * r), -p**3 / (48 * g**2 * r * q * s),
             (-24 * g**3 + 36 * g**2 - 12 * g + 1) / (24 * g**2 - 24 * g + 4), g)
    return ImplicitTableau(((0.0,) * 5, (g, g, 0.0, 0.0, 0.0), third, fourth, fifth), fifth, 4, fourth, 3, _KVAERNO)


_KVAERNO = "Kværnø 2004, doi:10.1023/B:BITN.0000046811.70614.38"
_GAMMA = 1 - math.sqrt(0.5)
_ROOT2, _ROOT3, _ROOT6, _ROOT15 = (math.sqrt(n) for n in (2, 3, 6, 15))

BACKWARD_EULER = ImplicitTableau(((1.0,),), (1.0,), 1, source="Euler 1768")
CRANK_NICOLSON = theta(0.5)
SDIRK2 = ImplicitTableau(((_GAMMA, 0.0), (1 - _GAMMA, _GAMMA)), (1 - _GAMMA, _GAMMA), 2,
                         source="Alexander 1977, doi:10.1137/0714068")
TR_BDF2 = ImplicitTableau(
    ((0.0, 0.0, 0.0), (_GAMMA, _GAMMA, 0.0), (_ROOT2 / 4, _ROOT2 / 4, _GAMMA)), (_ROOT2 / 4, _ROOT2 / 4, _GAMMA), 2,
    ((1 - _ROOT2 / 4) / 3, (1 + 3 * _ROOT2 / 4) / 3, _GAMMA / 3), 3,
    "Hosea & Shampine 1996, doi:10.1016/0168-9274(95)00115-8")
KVAERNO3 = _kvaerno3()
KVAERNO4 = _kvaerno4()
KVAERNO5 = ImplicitTableau(
    ((0.0,) * 7,
     (0.26, 0.26, *[0.0] * 5),
     (0.13, 0.84033320996790809, 0.26, *[0.0] * 4),
     (0.22371961478320505, 0.47675532319799699, -0.06470895363112615, 0.26, *[0.0] * 3),
     (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998, 0.26, 0.0, 0.0),
     (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676, 0.26, 0.0),
     (0.13659751177640291, 0.0, -0.05496908796538376, -0.04118626728321046, 0.62993304899016403, 0.06962479448202728,
      0.26)),
    (0.13659751177640291, 0.0, -0.05496908796538376, -0.04118626728321046, 0.62993304899016403, 0.06962479448202728,
     0.26), 5,
    (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676, 0.26, 0.0), 4, _KVAERNO)
GAUSS2 = collocation((0.5,), 2, "Gauss: the implicit midpoint rule")
GAUSS4 = collocation((0.5 - _ROOT3 / 6, 0.5 + _ROOT3 / 6), 4, "Kuntzmann 1961, Butcher 1964")
GAUSS6 = collocation((0.5 - _ROOT15 / 10, 0.5, 0.5 + _ROOT15 / 10), 6, "Kuntzmann 1961, Butcher 1964")
RADAU3 = collocation((1 / 3, 1.0), 3, "Ehle 1969, Axelsson 1969")
RADAU5 = collocation(((4 - _ROOT6) / 10, (4 + _ROOT6) / 10, 1.0), 5, "Ehle 1969, Axelsson 1969")
