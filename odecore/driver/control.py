"""Step-size controllers, as data: how long the next step may be, given the errors of the last ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_LEAST_ERROR = 1e-30
"""Errors count as at least this, so that an exact step has a finite successor."""


class Memory(NamedTuple):
    """Error ratios of the last accepted step and of the one before it, one per sample; 1 at the start."""

    last: NDArray[np.float64]
    before: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Controller:
    """A digital filter of the errors that gives the length of the next step.

    With the error ratio E (a step is accepted where E ≤ 1) and an error that shrinks as h^k::

        h ← h · clip(safety · E_n^{-β₁/k} E_{n-1}^{-β₂/k} E_{n-2}^{-β₃/k}, smallest, largest)

    A rejected step is repeated with ``safety · E^{-1/k}`` of its length. A PID controller with
    coefficients (P, I, D) is ``β = (P + I + D, -P - 2D, D)``.

    Args:
        exponents: (β₁, β₂, β₃).
        safety: share of the length that the error would allow.
        smallest: least factor of change.
        largest: greatest factor of change; may be infinite.
        on_failure: factor after a step with a non-finite result.

    Raises:
        ValueError: a number out of range.

    Source: Söderlind 2003, Digital filters in adaptive time-stepping, doi:10.1145/641876.641877.
    """

    exponents: tuple[float, float, float] = (1.0, 0.0, 0.0)
    safety: float = 0.9
    smallest: float = 0.2
    largest: float = 10.0
    on_failure: float = 0.1

    def __post_init__(self) -> None:
        if len(self.exponents) != 3 or not sum(self.exponents) > 0:
            raise ValueError(f"exponents={self.exponents}: give three whose sum is above 0, or larger errors would "
                             "give longer steps")
        if not 0 < self.safety < 1:
            raise ValueError(f"safety={self.safety}: give a number between 0 and 1")
        if not 0 <= self.smallest < 1 or not self.largest >= 1:
            raise ValueError(f"smallest={self.smallest}, largest={self.largest}: give 0 ≤ smallest < 1 ≤ largest")
        if not 0 < self.on_failure < 1:
            raise ValueError(f"on_failure={self.on_failure}: give a number between 0 and 1")

    @staticmethod
    def start(samples: int) -> Memory:
        """The memory before the first step."""
        return Memory(np.ones(samples), np.ones(samples))

    def next(self, error: NDArray[np.float64], memory: Memory, order: int) -> tuple[NDArray[np.float64], Memory]:
        """Judge a step; every sample for itself.

        Args:
            error: error ratios of shape (samples,); NaN and inf are failures.
            memory: what the steps before left.
            order: k, the power of h with which the error shrinks.

        Returns:
            The factor by which each step size changes, and the memory for the next step.
        """
        accepted = error <= 1.0
        ratio = np.maximum(error, _LEAST_ERROR)
        factor = self.safety * ratio ** (-self.exponents[0] / order)
        for beta, past in zip(self.exponents[1:], memory, strict=True):
            if beta:
                factor = factor * past ** (-beta / order)
        if np.count_nonzero(accepted) == len(accepted):
            return self._bounded(factor), Memory(ratio, memory.last)
        factor = self._bounded(np.where(accepted, factor, self.safety * ratio ** (-1.0 / order)))
        return np.where(np.isfinite(error), factor, self.on_failure), Memory(
            np.where(accepted, ratio, memory.last), np.where(accepted, memory.last, memory.before))

    def _bounded(self, factor: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.minimum(np.maximum(factor, self.smallest), self.largest)


INTEGRAL = Controller()
"""The elementary controller: each step from the last error alone."""

BALANCED = Controller((0.8, -0.3, 0.0))
"""A PI controller between the elementary one and Gustafsson's, P = .3 and I = .5: about as many attempts as the
elementary one takes, half as many of them rejected, and about half its error."""

PI = Controller((0.7, -0.4, 0.0))
"""Gustafsson's PI controller, P = .4 and I = .3: for explicit methods at their limit of stability."""

PID = Controller((1 / 18, 1 / 9, 1 / 18))
"""Söderlind's H312PID filter: the smoothest sequence of steps, slow to react."""
