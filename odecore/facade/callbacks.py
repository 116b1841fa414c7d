"""Callbacks of the right-hand side: told of each step, and of whether it was accepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odecore.facade.system import System
from odecore.stepper import Carry, Field, Step, Stepper

NAMES = ("callback_step", "callback_accept_step", "callback_reject_step")
"""Attributes of a right-hand side: functions of the time, the state and the length of a step."""


@dataclass(slots=True)
class Announcing:
    """A stepper that tells a right-hand side of its steps.

    Args:
        stepper: the method.
        system: what is integrated.
        callbacks: functions by their names.
    """

    stepper: Stepper
    system: System
    callbacks: dict[str, Callable[..., Any]]
    _step: tuple[Tensor, Tensor, Tensor] | None = field(default=None, init=False)

    @classmethod
    def around(cls, stepper: Stepper, system: System) -> Stepper:
        """Wrap a method if there is somebody to tell."""
        found = {name: getattr(system.func, name) for name in NAMES if callable(getattr(system.func, name, None))}
        return cls(stepper, system, found) if found else stepper

    @property
    def order(self) -> int:
        """The order of convergence."""
        return self.stepper.order

    @property
    def error_order(self) -> int:
        """The power of h with which the error estimate shrinks."""
        return self.stepper.error_order

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """Start the method."""
        return self.stepper.start(field, t0, y)

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1."""
        self._step = (t0, t1, y)
        self._tell("callback_step")
        return self.stepper.step(field, t0, t1, y, carry)

    def attempted(self, attempt: int, t: Tensor) -> None:
        """Tell whether the last step was accepted; the driver's callback."""
        assert self._step is not None
        self._tell("callback_reject_step" if bool((t == self._step[0]).all()) else "callback_accept_step")

    def _tell(self, name: str) -> None:
        if name not in self.callbacks or self._step is None:
            return
        t0, t1, y = self._step
        with torch.no_grad():
            self.callbacks[name](self.system.time(t0, y), self.system.unpack(y), self.system.time((t1 - t0).abs(), y))
