"""Orders of convergence from errors: the regression slope of their logarithms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

ROUNDING = 1e-12
"""Errors below this say more about rounding than about a method."""


class Convergence(NamedTuple):
    """A measured order.

    Attributes:
        order: negative slope of log(error) against log(steps), by least squares.
        steps: numbers of steps.
        errors: the error of each.
    """

    order: float
    steps: tuple[int, ...]
    errors: tuple[float, ...]


def convergence_order(error: Callable[[int], float], steps: Sequence[int]) -> Convergence:
    """Measure an order of convergence: ``error ≈ C steps^{-order}``.

    Args:
        error: error of the solution with so many steps.
        steps: at least four numbers of steps, increasing.

    Returns:
        The slope and the table that it was fitted to.

    Raises:
        ValueError: too few numbers of steps, or an error that is not finite or within rounding.
    """
    if len(steps) < 4 or any(b <= a for a, b in zip(steps[:-1], steps[1:], strict=True)) or steps[0] < 1:
        raise ValueError(f"steps={list(steps)}: give at least four increasing numbers of steps")
    errors = tuple(float(error(n)) for n in steps)
    if not all(ROUNDING < e < math.inf for e in errors):
        raise ValueError(f"errors={errors} at steps={list(steps)}: they must be finite and above {ROUNDING}, or the "
                         "slope says nothing; take fewer steps")
    return Convergence(slope(steps, errors), tuple(steps), errors)


def slope(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Fit ``log error = c - slope · log steps`` by least squares."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
