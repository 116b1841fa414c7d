"""Linear combinations of φ-functions, as data: the coefficients of exponential methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odecore.phi import phis, phis_dense


@dataclass(frozen=True, slots=True)
class PhiSum:
    """A function ``f(z) = Σ_m w_m φ_{k_m}(s_m z)``; sums and multiples of such are such.

    Args:
        terms: triples (w, k, s); those of equal k and s are merged, and zeros dropped.

    Raises:
        ValueError: an order that is negative or no integer.
    """

    terms: tuple[tuple[float, int, float], ...] = ()

    def __post_init__(self) -> None:
        merged: dict[tuple[int, float], float] = {}
        for weight, order, scale in self.terms:
            if isinstance(order, bool) or not isinstance(order, int) or order < 0:
                raise ValueError(f"terms={self.terms}: the order {order!r} must be an integer, at least 0")
            merged[order, float(scale)] = merged.get((order, float(scale)), 0.0) + weight
        kept = tuple((weight, *key) for key, weight in sorted(merged.items()) if weight != 0.0)
        object.__setattr__(self, "terms", kept)

    def __add__(self, other: PhiSum) -> PhiSum:
        return PhiSum(self.terms + other.terms)

    def __sub__(self, other: PhiSum) -> PhiSum:
        return self + -1.0 * other

    def __rmul__(self, factor: float) -> PhiSum:
        return PhiSum(tuple((factor * weight, order, scale) for weight, order, scale in self.terms))

    def __bool__(self) -> bool:
        return bool(self.terms)

    @property
    def at_zero(self) -> float:
        """``f(0)``: the coefficient of the classical method that remains without a linear part."""
        return math.fsum(weight / math.factorial(order) for weight, order, _ in self.terms)

    @property
    def raised(self) -> PhiSum:
        """``Σ w s φ_{k+1}(s z)``, which weighs the first neglected term of a Krylov approximation of f."""
        return PhiSum(tuple((weight * scale, order + 1, scale) for weight, order, scale in self.terms))


ZERO = PhiSum()


def varphi(order: int, scale: float = 1.0) -> PhiSum:
    """Make ``φ_order(scale z)``."""
    return PhiSum(((1.0, order, scale),))


def evaluate(sums: Sequence[PhiSum], z: Tensor) -> tuple[Tensor, ...]:
    """Evaluate sums elementwise, each φ-function once.

    Args:
        sums: what to evaluate.
        z: real or complex tensor of any size.

    Returns:
        One tensor of the shape of ``z`` for each sum, in double precision.
    """
    return _evaluate(sums, lambda order, scale: phis(order, scale * z), z)


def evaluate_dense(sums: Sequence[PhiSum], A: Tensor) -> tuple[Tensor, ...]:  # noqa: N803
    """Evaluate sums at square matrices of shape (…, n, n), each φ-function once; in double precision.

    Raises:
        ValueError: ``A`` is not finite or not square.
    """
    return _evaluate(sums, lambda order, scale: phis_dense(order, scale * A), A)


def _evaluate(
    sums: Sequence[PhiSum], family: Callable[[int, float], tuple[Tensor, ...]], like: Tensor
) -> tuple[Tensor, ...]:
    highest: dict[float, int] = {}
    for _, order, scale in (term for one in sums for term in one.terms):
        highest[scale] = max(order, highest.get(scale, 0))
    values = {scale: family(order, scale) for scale, order in highest.items()}

    def total(one: PhiSum) -> Tensor:
        parts = [weight * values[scale][order] for weight, order, scale in one.terms]
        if not parts:
            return torch.zeros_like(like, dtype=torch.complex128 if like.is_complex() else torch.float64)
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    return tuple(map(total, sums))
