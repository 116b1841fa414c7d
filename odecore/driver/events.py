"""Events: where a function of the solution crosses zero, found on the dense output of a step.

The driver asks an :class:`EventWatch` after each step. A sample stops at the first crossing that ends it;
its event time and state are differentiable by the implicit function theorem.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from odecore.driver.dense import evaluate
from odecore.driver.fetch import refuse_mapped
from odecore.driver.record import Taken
from odecore.driver.roots import bracketed_root
from odecore.stepper import send

EventFunction = Callable[..., Tensor]
"""``g(y, t, *args) -> value`` of shape (samples,), real."""


class Direction(IntEnum):
    """Which crossings of zero count, seen in the direction of the integration."""

    FALLING = -1
    EITHER = 0
    RISING = 1


@dataclass(frozen=True, slots=True)
class Event:
    """A crossing of ``g(y(t), t) = 0``.

    A crossing is a change of the sign of g from one end of a piece of a step to the other. A
    sample that starts at g = 0 has no sign to change until it has left; where rounding puts its
    start on either side (a ball on the floor), a direction tells the crossing that is meant.

    Args:
        function: g, called with a state of shape (samples, …), one time a sample and the arguments
            of the field; samples must not mix.
        direction: which crossings count.
        after: number of crossings after which a sample stops; ``math.inf`` records all and never stops.
        pieces: parts of a step at whose ends g is looked at; two crossings in one part go unseen.

    Raises:
        ValueError: ``after`` or ``pieces`` below 1 or not whole.
    """

    function: EventFunction
    direction: Direction = Direction.EITHER
    after: float = 1
    pieces: int = 1

    def __post_init__(self) -> None:
        if not self.after >= 1 or (self.after != math.inf and self.after != int(self.after)):
            raise ValueError(f"after={self.after}: give a whole number, at least 1, or math.inf to stop never")
        if not isinstance(self.pieces, int) or self.pieces < 1:
            raise ValueError(f"pieces={self.pieces!r}: give a whole number, at least 1")
        object.__setattr__(self, "direction", Direction(self.direction))


class Crossings(NamedTuple):
    """All crossings of one event, in the order in which the driver found them.

    Attributes:
        sample: index of the sample, of shape (crossings,), on the host.
        t: time, float64, on the host; differentiable.
        y: state, of shape (crossings, …); differentiable.
    """

    sample: Tensor
    t: Tensor
    y: Tensor


class _Piece(NamedTuple):
    """A part of the last step of some samples, as a polynomial in θ = (t - t0)/(t1 - t0)."""

    coefficients: Tensor
    t0: Tensor
    t1: Tensor
    args: tuple[Tensor, ...]

    def select(self, rows: Tensor) -> _Piece:
        """The part of some rows."""
        return _Piece(_rows(self.coefficients, rows), _rows(self.t0, rows), _rows(self.t1, rows),
                      tuple(_rows(a, rows) for a in self.args))

    def state(self, theta: Tensor) -> Tensor:
        """The solution at θ, one a sample."""
        return evaluate(self.coefficients, theta)

    def time(self, theta: Tensor) -> Tensor:
        """The time at θ."""
        return torch.lerp(self.t0, self.t1, theta)


def events_of(event: Event | EventFunction | Sequence[Event | EventFunction]) -> tuple[Event, ...]:
    """Turn what a caller may give for events into a tuple of them."""
    given = event if isinstance(event, Sequence) else (event,)
    return tuple(e if isinstance(e, Event) else Event(e) for e in given)


class EventWatch:
    """Follows the events of one solve: their signs, counts and crossings.

    Args:
        events: what to look for; an index refers to this order.
        args: arguments of the field, one row a sample.
        dtype: in which the functions see the state.
        t: where each sample starts, on the host.
        y: the initial states.

    Raises:
        ValueError: a function that does not return one number a sample.

    Cost: each function once a step, and a host synchronisation; no evaluations of the field but
        those of the dense output of steps with a crossing (of all, if an event has several pieces).
    """

    def __init__(self, events: Sequence[Event], args: tuple[Tensor, ...], dtype: torch.dtype, t: Tensor,
                 y: Tensor) -> None:
        self.events, self._args, self._dtype = tuple(events), args, dtype
        self._pieces = max(event.pieces for event in self.events)
        self._direction = torch.tensor([int(event.direction) for event in self.events])
        self._after = torch.tensor([float(event.after) for event in self.events])
        self._count = torch.zeros(len(t), len(self.events))
        nothing = Crossings(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64), y[:0].to(dtype))
        self._found = [[nothing] for _ in self.events]
        self._sign = self._signs(y, send(t, y.device), args)
        self.stopped_by = torch.full((len(t),), -1)

    def __call__(self, taken: Taken) -> Tensor | None:
        """Look at a step.

        Returns:
            For each row the time at which it stops, nan for none; differentiable. None if none stops.
        """
        rows, t1, device = taken.rows, send(taken.t1, taken.y1.device), taken.y1.device
        args = self._args if len(rows) == len(self.stopped_by) else tuple(_rows(a, rows) for a in self._args)
        ends = torch.full(taken.t1.shape, math.nan, dtype=torch.float64)
        for k in range(self._pieces):
            left, right = k / self._pieces, (k + 1) / self._pieces
            if right == 1.0:
                after = self._signs(taken.y1, t1, args)
            else:
                piece, theta = self._piece(taken, args), torch.full(t1.shape, right, dtype=torch.float64, device=device)
                after = self._signs(piece.state(theta), piece.time(theta), args)
            before, running = self._sign[rows], torch.isnan(ends.detach()).unsqueeze(1)
            # A sign of zero at the end is a crossing already: at the next start it will be no sign to change.
            crossed = running & (before * after <= 0) & (before != 0)
            crossed &= (self._direction == 0) | (self._direction == -before)
            self._sign[rows] = after
            if bool(crossed.any()):
                ends = self._handle(rows, crossed, self._piece(taken, args), left, right, ends)
        return None if bool(torch.isnan(ends.detach()).all()) else ends

    @property
    def crossings(self) -> tuple[Crossings, ...]:
        """What was found, one entry an event."""
        return tuple(Crossings(*(torch.cat(parts) for parts in zip(*found, strict=True))) for found in self._found)

    @staticmethod
    def _piece(taken: Taken, args: tuple[Tensor, ...]) -> _Piece:
        device = taken.y1.device
        return _Piece(taken.coefficients, send(taken.t0, device), send(taken.t1, device), args)

    def _value(self, index: int, y: Tensor, t: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        value = self.events[index].function(y.to(self._dtype), t, *args)
        if value.shape != t.shape or value.is_complex():
            raise ValueError(f"event[{index}] returned shape {tuple(value.shape)} and dtype {value.dtype} for "
                             f"{len(t)} samples: give one real number a sample")
        return value.double()

    def _signs(self, y: Tensor, t: Tensor, args: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            values = [self._value(i, y, t, args) for i in range(len(self.events))]
            for index, value in enumerate(values):
                refuse_mapped(f"event[{index}]", value)
            return torch.nan_to_num(torch.sign(torch.stack(values, 1))).cpu()

    def _handle(
        self, rows: Tensor, crossed: Tensor, piece: _Piece, left: float, right: float, ends: Tensor
    ) -> Tensor:
        """Locate the crossings of a piece, record those that come before a stop, and enter the stops."""
        theta = torch.full(crossed.shape, math.inf, dtype=torch.float64)
        for index in range(len(self.events)):
            which = crossed[:, index].nonzero().squeeze(1)
            if len(which):
                theta[which, index] = self._locate(index, piece.select(which), left, right).cpu()
        stopping = crossed & (self._count[rows] + 1 >= self._after)
        first, winner = torch.where(stopping, theta, math.inf).min(1)
        counted = crossed & (theta <= first.unsqueeze(1))
        self._count[rows] += counted
        for index in range(len(self.events)):
            which = counted[:, index].nonzero().squeeze(1)
            if not len(which):
                continue
            part = piece.select(which)
            at = self._differentiable(index, part, send(theta[which, index], piece.coefficients.device))
            t, y = part.time(at).cpu(), part.state(at)
            self._found[index].append(Crossings(rows[which], t, y.to(self._dtype)))
            final = (stopping[which, index] & (winner[which] == index)).nonzero().squeeze(1)
            self.stopped_by[rows[which[final]]] = index
            ends = ends.index_copy(0, which[final], t[final])
        return ends

    def _locate(self, index: int, piece: _Piece, left: float, right: float) -> Tensor:
        """θ of a crossing, to rounding of the state."""
        tolerance = 4 * torch.finfo(piece.coefficients.dtype).eps
        with torch.no_grad():
            ends = [torch.full(piece.t0.shape, end, dtype=torch.float64, device=piece.t0.device)
                    for end in (left, right)]
            return bracketed_root(lambda theta: self._value(index, piece.state(theta), piece.time(theta), piece.args),
                                  ends[0], ends[1], tolerance)

    def _differentiable(self, index: int, piece: _Piece, theta: Tensor) -> Tensor:
        """Give a root the gradient ``dθ = -dg / (∂g/∂θ)`` of the implicit function theorem."""
        if not torch.is_grad_enabled():
            return theta
        value = self._value(index, piece.state(theta), piece.time(theta), piece.args)
        if not value.requires_grad:
            return theta
        still = piece._replace(coefficients=piece.coefficients.detach())

        def along(moving: Tensor) -> Tensor:
            return self._value(index, still.state(moving), still.time(moving), piece.args).sum()

        slope = _derivative(along, theta.detach())
        # A tangent root has no derivative: its time is then taken for fixed.
        inverse = torch.where(slope == 0, torch.zeros_like(slope), 1 / slope)
        return theta - (value - value.detach()) * inverse


def _derivative(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The gradient of a sum, also in a function that is transformed by :mod:`torch.func`."""
    if torch._C._are_functorch_transforms_active():
        return torch.func.grad(function)(at).detach()
    moving = at.requires_grad_()
    value = function(moving)
    (found,) = torch.autograd.grad(value, moving, allow_unused=True) if value.requires_grad else (None,)
    return torch.zeros_like(at) if found is None else found


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.index_select(0, send(rows, tensor.device))
