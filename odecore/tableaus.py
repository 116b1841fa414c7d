"""Butcher tableaux of explicit Runge–Kutta methods, as data that checks itself."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tableau:
    """Coefficients of ``k_i = f(t + c_i h, y + h Σ_j a_ij k_j)``, ``y⁺ = y + h Σ_i b_i k_i``.

    Args:
        a: strictly lower triangle; row i has i entries.
        b: weights of the result.
        order: order of convergence.
        source: where it comes from.

    Raises:
        ValueError: sizes that do not fit, or weights that do not sum to one.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int
    source: str = ""

    def __post_init__(self) -> None:
        if len(self.a) != len(self.b) or any(len(row) != i for i, row in enumerate(self.a)):
            raise ValueError(f"a={self.a}: give {len(self.b)} rows, row i with i entries")
        if not math.isclose(sum(self.b), 1.0, rel_tol=0, abs_tol=1e-14):
            raise ValueError(f"b={self.b}: the weights must sum to one")

    @property
    def c(self) -> tuple[float, ...]:
        """Stage times: row sums of a."""
        return tuple(math.fsum(row) for row in self.a)

    @property
    def stages(self) -> int:
        """Evaluations a step."""
        return len(self.b)


EULER = Tableau(a=((),), b=(1.0,), order=1, source="Euler 1768")
MIDPOINT = Tableau(a=((), (0.5,)), b=(0.0, 1.0), order=2, source="Runge 1895")
HEUN = Tableau(a=((), (1.0,)), b=(0.5, 0.5), order=2, source="Heun 1900")
RALSTON = Tableau(a=((), (2 / 3,)), b=(0.25, 0.75), order=2, source="Ralston 1962")
KUTTA3 = Tableau(a=((), (0.5,), (-1.0, 2.0)), b=(1 / 6, 2 / 3, 1 / 6), order=3, source="Kutta 1901")
RK4 = Tableau(a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4, source="Kutta 1901")
