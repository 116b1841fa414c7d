"""Step doubling: an error estimate for any stepper, from the same step in two halves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from odecore.stepper import Carry, Field, Iterative, Judge, Step, Stepper


@dataclass(frozen=True, slots=True)
class HalfSteps:
    """A stepper that takes each step whole and in halves, and keeps the halves.

    With a method of order p the difference of the results tells the error of the better one::

        error = (y_halves - y_whole) / (2^p - 1)

    which shrinks as h^{p+1}, as the local error itself does: for methods without an error estimate or
    with a pessimistic one.

    Args:
        stepper: the method; its own error estimate only tells which samples failed.

    Cost: three steps.

    Source: Hairer, Nørsett & Wanner 1993, Solving ordinary differential equations I, theorem II.4.1.
    """

    stepper: Stepper

    @property
    def order(self) -> int:
        """The order of convergence, that of the method."""
        return self.stepper.order

    @property
    def error_order(self) -> int:
        """The power of h with which the error estimate shrinks."""
        return self.stepper.order + 1

    def judged(self, judge: Judge) -> HalfSteps:
        """The same for errors that are judged so."""
        return HalfSteps(self.stepper.judged(judge)) if isinstance(self.stepper, Iterative) else self

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """What the method starts with."""
        return self.stepper.start(field, t0, y)

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1."""
        middle = torch.lerp(t0, t1, 0.5)
        with torch.no_grad():
            whole = self.stepper.step(field, t0, t1, y, carry)
        first = self.stepper.step(field, t0, middle, y, carry)
        second = self.stepper.step(field, middle, t1, first.y, first.carry)
        taken = (whole, first, second)
        error = (second.y - whole.y).detach() / (2**self.order - 1)
        for step in taken:
            error = torch.where(step.error.abs() == torch.inf, torch.inf, error)
        return Step(second.y, second.carry, error, torch.maximum(y.abs(), second.y.abs()),
                    sum(step.nfe for step in taken), sum(step.newton for step in taken),
                    sum(step.krylov for step in taken))
