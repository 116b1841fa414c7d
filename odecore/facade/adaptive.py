"""Adaptive steps of :func:`odecore.facade.odeint.odeint`: its options in terms of the driver's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from odecore.driver.control import Controller, Memory
from odecore.driver.events import Event
from odecore.driver.moving import moving_start
from odecore.driver.solve import Norm, Solution, Status, solve
from odecore.facade.fixed import inside
from odecore.facade.system import PER_SAMPLE, System
from odecore.stepper import Field, Stepper

_DECADES = 300
"""Powers of ten, in units of the interval given, that an event is waited for."""


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Options of a solve with adaptive steps.

    Args:
        norm: measure of the scaled error of the whole state, with the shape of y0; "per_sample" makes
            each row of y0 a system of its own; None for the root mean square, of a tuple the largest.
        first_step: length of the first step; None estimates it.
        min_step: steps of this length are accepted whatever their error.
        max_step: greatest length of a step.
        safety: share of the length that the error would allow.
        ifactor: greatest factor by which a step grows.
        dfactor: least factor by which a rejected step shrinks.
        max_num_steps: most attempts, accepted or not, between two points of ``step_t`` and ``jump_t``.
        step_t: times at which a step ends.
        jump_t: times at which the field jumps; it is asked for each side's own value there.
        dtype: precision of times; float64 whatever is given.

    Raises:
        ValueError: a number out of range, or a time in both ``step_t`` and ``jump_t``.
    """

    norm: Callable[[Any], Tensor] | str | None = None
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = math.inf
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    max_num_steps: int = 2**31 - 1
    step_t: Tensor | None = None
    jump_t: Tensor | None = None
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if isinstance(self.norm, str) and self.norm != PER_SAMPLE:
            raise ValueError(f"norm={self.norm!r}: give a function of the state, or {PER_SAMPLE!r}")
        if not 0 <= self.min_step <= self.max_step or not self.max_step > 0:
            raise ValueError(f"min_step={self.min_step}, max_step={self.max_step}: give 0 ≤ min_step ≤ max_step, and a "
                             "max_step above 0")
        both = [t for t in numbers(self.step_t) if t in numbers(self.jump_t)]
        if both:
            raise ValueError(f"step_t and jump_t both hold {both}: leave them in jump_t, where steps end too")

    def cuts(self, begin: float, end: float) -> list[tuple[float, bool]]:
        """Times of ``step_t`` and ``jump_t`` inside an interval, in its order, and whether the field jumps there."""
        low, high = min(begin, end), max(begin, end)
        marks = dict.fromkeys(numbers(self.step_t), False) | dict.fromkeys(numbers(self.jump_t), True)
        return sorted(((t, jump) for t, jump in marks.items() if low < t < high), reverse=end < begin)


@dataclass(frozen=True, slots=True)
class Steadfast(Controller):
    """The elementary controller that never shortens a step after an accepted one."""

    def next(self, error: NDArray[np.float64], memory: Memory, order: int) -> tuple[NDArray[np.float64], Memory]:
        """Judge a step; see :class:`~odecore.driver.control.Controller`."""
        factor, after = Controller.next(self, error, memory, order)
        return np.where(error <= 1.0, np.maximum(factor, 1.0), factor), after


@dataclass(frozen=True, slots=True)
class Run:
    """An adaptive solve of a system, ready but for where it goes.

    Args:
        system: what to integrate.
        stepper: the method.
        options: how.
        norm: measure of errors, tolerances included.
        callback: called after each attempt as that of the driver.
    """

    system: System
    stepper: Stepper
    options: Adaptive
    norm: Norm
    callback: Callable[[int, Tensor], None] | None = None

    def states(self, y0: Tensor, t: Tensor) -> Tensor:
        """Integrate through output times, which do not change the steps.

        Args:
            y0: the driver's initial state.
            t: output times, float64, on the host, in strict order; they get their gradient.

        Returns:
            States of shape (times, samples, …).
        """
        y, states, times = moving_start(self.system.field, y0, t[0]), [y0.unsqueeze(0)], t.detach()
        for leg in self.legs(float(times[0]), float(times[-1])):
            due = t[leg.holds(times)]
            solution = self._solve(leg, y, leg.begin, leg.end, ts=due if len(due) else None)
            y = solution.y
            if solution.ys is not None:
                states.append(solution.ys.transpose(0, 1))
        return torch.cat(states)

    def until(self, y0: Tensor, t: Tensor, event: Event, args: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Integrate until an event, however late.

        Args:
            y0: the driver's initial state.
            t: start, and a time in the direction to go.
            event: where to stop.
            args: further arguments of its function, one row a sample.

        Returns:
            The time of each sample, and the states at the start and then.

        Raises:
            ValueError: no event at any finite time.
        """
        begin, span = float(t[0].detach()), float((t[1] - t[0]).detach())
        y, reached = moving_start(self.system.field, y0, t[0]), torch.full((len(y0),), begin, dtype=torch.float64)
        running = torch.ones(len(y0), dtype=torch.bool)
        horizons = [begin, *(begin + span * 10.0**k for k in range(_DECADES))]
        for start, horizon in pairwise(horizons):
            for leg in self.legs(start, horizon):
                solution = self._solve(leg, y, reached, torch.where(running, leg.end, reached), event=event, args=args)
                y, reached = solution.y, solution.t.detach()
                running = running & (solution.status != Status.STOPPED)
                if not bool(running.any()):
                    return reached, torch.stack([y0, y])
        raise ValueError(f"event_fn does not change its sign before t={horizons[-1]:.3g}: check its sign and the "
                         "direction of t")

    def legs(self, begin: float, end: float) -> Iterator[Leg]:
        """The intervals between the times at which a solve has to start anew."""
        jumps = numbers(self.options.jump_t)
        ends = [(begin, begin in jumps), *self.options.cuts(begin, end), (end, end in jumps)]
        return (Leg(a, b, before, after) for (a, before), (b, after) in pairwise(ends))

    def field(self, leg: Leg, y: Tensor) -> Field:
        """The right-hand side within a leg."""
        return leg.one_sided(self.system.field, y.real.dtype if y.is_complex() else y.dtype)

    def arguments(self) -> dict[str, Any]:
        """The options in terms of the driver."""
        options = self.options
        controller = Steadfast(safety=options.safety, smallest=options.dfactor, largest=options.ifactor)
        return {"rtol": 1.0, "atol": 1.0, "norm": self.norm, "first_step": options.first_step, "controller": controller,
                "max_steps": options.max_num_steps, "shortest": options.min_step, "longest": options.max_step}

    def _solve(self, leg: Leg, y: Tensor, begin: float | Tensor, end: float | Tensor, **wanted: Any) -> Solution:
        """Go through a leg, or through what is left of it for each sample."""
        return solve(self.stepper, self.field(leg, y), y, begin, end, callback=self.callback, **self.arguments(),
                     **wanted)


class Leg(NamedTuple):
    """An interval that the driver goes through in one solve."""

    begin: float
    end: float
    after_jump: bool
    before_jump: bool

    def holds(self, times: Tensor) -> Tensor:
        """Which times lie within, the begin left out."""
        way = math.copysign(1.0, self.end - self.begin)
        return (way * times > way * self.begin) & (way * times <= way * self.end)

    def one_sided(self, field: Field, dtype: torch.dtype) -> Field:
        """The field on this side of the jumps at the ends, in a precision of times."""
        if not (self.after_jump or self.before_jump):
            return field
        away = math.copysign(math.inf, self.end - self.begin)
        ends = (self.begin if self.after_jump else -away, self.end if self.before_jump else away)
        first, last = torch.tensor(ends, dtype=torch.float64).split(1)
        return inside(field, first, last, dtype)


def numbers(times: Tensor | None) -> list[float]:
    """Times as numbers, in float64."""
    return [] if times is None else torch.as_tensor(times, dtype=torch.float64).reshape(-1).tolist()
