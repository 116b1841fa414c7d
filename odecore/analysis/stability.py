"""Stability functions of Runge–Kutta methods: what a step makes of ``y' = λ y``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from odecore.analysis.trees import square

_ROUNDING = 1e-11


@dataclass(frozen=True, slots=True, eq=False)
class StabilityFunction:
    """``R(z) = P(z) / Q(z)``, the factor of one step with z = λh.

    Args:
        numerator: coefficients of P, the constant first.
        denominator: coefficients of Q, the constant first.

    Source: Hairer & Wanner 1996, Solving ordinary differential equations II, proposition IV.3.2.
    """

    numerator: NDArray[np.float64]
    denominator: NDArray[np.float64]

    @classmethod
    def of(cls, a: Sequence[Sequence[float]], b: Sequence[float]) -> StabilityFunction:
        """``P = det(I - zA + z 1bᵀ)`` and ``Q = det(I - zA)``, from characteristic polynomials."""
        matrix, weights = square(a), np.asarray(b, dtype=np.float64)
        return cls(np.real(np.poly(matrix - weights)), np.real(np.poly(matrix)))

    def at(self, z: complex | NDArray[np.complex128]) -> complex | NDArray[np.complex128]:
        """Evaluate R."""
        return np.polyval(self.numerator[::-1], z) / np.polyval(self.denominator[::-1], z)

    @property
    def at_infinity(self) -> float:
        """``|R(∞)|``: below 1 for methods that damp stiff parts at all, 0 for L-stable ones."""
        degrees = [int(np.flatnonzero(np.abs(p) > _ROUNDING)[-1]) for p in (self.numerator, self.denominator)]
        if degrees[0] != degrees[1]:
            return 0.0 if degrees[0] < degrees[1] else float("inf")
        return float(abs(self.numerator[degrees[0]] / self.denominator[degrees[1]]))

    @property
    def a_stable(self) -> bool:
        """Whether ``|R(z)| ≤ 1`` where Re z ≤ 0: no pole there, and at most 1 along the imaginary axis.

        The axis is sampled densely on a logarithmic scale; by the maximum principle it decides.
        """
        significant = self.denominator[: int(np.flatnonzero(np.abs(self.denominator) > _ROUNDING)[-1]) + 1]
        poles = np.roots(significant[::-1])
        axis = np.concatenate([np.logspace(-3, 5, 4001)])
        return bool((poles.real > 0).all() and self.at_infinity <= 1 + _ROUNDING
                    and (np.abs(self.at(1j * axis)) <= 1 + _ROUNDING).all())

    @property
    def l_stable(self) -> bool:
        """Whether it is A-stable and ``R(∞) = 0``."""
        return self.a_stable and self.at_infinity == 0.0
