"""Fixed grids of :func:`odecore.facade.odeint.odeint`: the nodes, the march over them, and what lies between."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from odecore.driver.batch import HALF, bound
from odecore.driver.dense import bootstrapped, evaluate, fraction
from odecore.driver.events import Event, EventWatch
from odecore.driver.record import Taken
from odecore.facade.system import System
from odecore.stepper import Carry, Dense, Field, Step, Stepper, send

MOST_EVENT_STEPS = 20_000
"""Steps after which a march gives up waiting for an event."""

_CUBIC = 4
"""Order of a method whose interpolant is the cubic Hermite polynomial."""


@dataclass(frozen=True, slots=True)
class FixedGrid:
    """Options of a solve with given steps.

    Args:
        step_size: length of each step but the last, in either direction; None takes the output times as nodes.
        grid_constructor: ``(func, y0, t) -> nodes`` from the first to the last of t, instead.
        interp: "linear" or "cubic" (Hermite), for output times that are no nodes.
        perturb: whether the field sees times strictly inside of each step.

    Raises:
        ValueError: both ways to make nodes, a step size that is not above 0, or another interpolation.
    """

    step_size: float | None = None
    grid_constructor: Callable[..., Tensor] | None = None
    interp: str = "linear"
    perturb: bool = False

    def __post_init__(self) -> None:
        if self.step_size is not None and self.grid_constructor is not None:
            raise ValueError(f"step_size={self.step_size} and grid_constructor are both given: give one of them")
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size={self.step_size}: give a length above 0, whatever the direction")
        if self.interp not in ("linear", "cubic"):
            raise ValueError(f"interp={self.interp!r}: choose 'linear' or 'cubic'")

    def nodes(self, system: System, y0: Tensor, t: Tensor) -> Tensor:
        """The nodes from the first to the last of the output times, float64, on the host.

        Raises:
            ValueError: a constructor's nodes start or end elsewhere or turn back.
        """
        if self.grid_constructor is not None:
            made = self.grid_constructor(system.func, system.unpack(y0), t)
            grid = torch.as_tensor(made, dtype=torch.float64).cpu()
            way = torch.sign(t[-1] - t[0])
            ends = grid.ndim == 1 and len(grid) > 1 and bool(grid[0] == t[0]) and bool(grid[-1] == t[-1])
            if not ends or bool((way * grid.diff() <= 0).any()):
                raise ValueError(f"grid_constructor returned {grid.tolist()}: return times from {float(t[0])} to "
                                 f"{float(t[-1])} in strict order")
            return grid
        if self.step_size is None:
            return t
        # A last step that would be shorter than rounding is left out.
        steps = max(1, math.ceil(float((t[-1] - t[0]).detach().abs()) / self.step_size * (1 - 1e-12)))
        signed = math.copysign(self.step_size, float((t[-1] - t[0]).detach()))
        return torch.cat([t[0] + signed * torch.arange(steps, dtype=torch.float64), t[-1:]])


class Marched(NamedTuple):
    """One step of a march."""

    t0: Tensor
    t1: Tensor
    y0: Tensor
    y1: Tensor

    def coefficients(self, field: Field, interp: str) -> Tensor:
        """The step as a polynomial, linear or cubic."""
        if interp == "linear":
            return torch.stack([self.y0, self.y1 - self.y0], 1)
        return bootstrapped(field, self.t0, self.t1, self.y0, self.y1, _CUBIC).coefficients


def march(stepper: Stepper, field: Field, y: Tensor, times: Iterable[Tensor]) -> Iterator[Marched]:
    """Take one step of a method between each two times of shape (samples,).

    Raises:
        ValueError: an implicit step does not converge.
    """
    carry: Carry | None = None
    for t0, t1 in pairwise(times):
        if carry is None:
            carry, _ = stepper.start(field, t0, y)
        step = stepper.step(field, t0, t1, y, carry)
        if step.newton and bool(torch.isinf(step.error).any()):
            raise ValueError(f"the implicit step from t={t0.tolist()} to {t1.tolist()} does not converge: give a "
                             "smaller step_size or nodes closer together")
        yield Marched(t0, t1, y, step.y)
        y, carry = step.y, step.carry


def fixed_states(system: System, stepper: Stepper, y0: Tensor, t: Tensor, grid: FixedGrid) -> Tensor:
    """Integrate over the nodes of a grid.

    Args:
        system: what to integrate.
        stepper: the method; its error estimate is not used.
        y0: the driver's initial state.
        t: output times, float64, on the host, in strict order; they get their gradient.
        grid: how the nodes follow from them.

    Returns:
        States at the output times, of shape (times, samples, …).
    """
    nodes = grid.nodes(system, y0, t)
    field, method, y = prepared(system, stepper, y0, grid.perturb)
    forward = torch.sign(t[-1] - t[0]).detach()
    states, waiting = [y], 1
    for step in march(method, field, y, nodes.unsqueeze(1).expand(-1, len(y)).unbind()):
        coefficients: Tensor | None = None
        while waiting < len(t) and forward * t[waiting] <= forward * step.t1[0]:
            if t[waiting] == step.t1[0]:
                states.append(step.y1)
            else:
                coefficients = step.coefficients(field, grid.interp) if coefficients is None else coefficients
                theta = fraction(t[waiting], step.t0, step.t1)
                states.append(evaluate(coefficients, theta))
            waiting += 1
    return torch.stack(states).to(y0.dtype)


def fixed_until(
    system: System, stepper: Stepper, y0: Tensor, t: Tensor, grid: FixedGrid, event: Event, args: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """March in steps of one size until an event.

    Args:
        system: what to integrate.
        stepper: the method; its error estimate is not used.
        y0: the driver's initial state.
        t: start, and a time in the direction to go.
        grid: the step size, and the interpolation on which the event is located.
        event: where to stop.
        args: further arguments of its function, one row a sample.

    Returns:
        The time of each sample, and the states at the start and then.

    Raises:
        ValueError: no step size, or no event within :data:`MOST_EVENT_STEPS` steps.
    """
    if grid.step_size is None:
        raise ValueError("step_size=None with event_fn: there is no last time that could make a grid; give a step_size")
    field, method, y = prepared(system, stepper, y0, grid.perturb)
    signed = math.copysign(grid.step_size, float((t[1] - t[0]).detach()))
    begin, rows = t[0].expand(len(y)), torch.arange(len(y))
    watch = EventWatch((event,), args, y0.dtype, begin.detach(), y)
    reached, final, running = begin.detach(), y, torch.ones(len(y), dtype=torch.bool)
    for step in march(method, field, y, (begin + k * signed for k in range(MOST_EVENT_STEPS + 1))):
        def dense(step: Marched = step) -> Dense:
            return Dense(step.coefficients(field, grid.interp), 0)

        taken = Taken.of(rows, running, step.t0, step.t1, step.y0, step.y1, dense)
        stops = watch(taken)
        if stops is not None:
            found = ~torch.isnan(stops)
            here = taken.rows[found]
            reached = reached.index_copy(0, here, stops[found])
            states = taken.at(stops[found], found.nonzero().squeeze(1))
            final, running = final.index_copy(0, send(here, y.device), states), running.index_fill(0, here, False)
            if not bool(running.any()):
                return reached, torch.stack([y0, final.to(y0.dtype)])
    raise ValueError(f"event_fn does not change its sign within {MOST_EVENT_STEPS} steps of step_size="
                     f"{grid.step_size}: check its sign and the direction of t, or give a longer step")


def prepared(system: System, stepper: Stepper, y0: Tensor, perturb: bool) -> tuple[Field, Stepper, Tensor]:
    """The field, the method and the state of a march: half precision is accumulated in float32."""
    real = y0.real.dtype if y0.is_complex() else y0.dtype
    method = Inside(stepper, real) if perturb else stepper
    return bound(system.field, (), y0.dtype), method, y0.float() if y0.dtype in HALF else y0


@dataclass(frozen=True, slots=True)
class Inside:
    """A stepper whose field sees times strictly inside of its step, by one rounding unit of the state.

    A field that jumps at a node has then, at both ends, the value of the step's own side.

    Args:
        stepper: the method.
        dtype: real precision in which the field gets its times.
    """

    stepper: Stepper
    dtype: torch.dtype

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
        return self.stepper.step(inside(field, t0, t1, self.dtype), t0, t1, y, carry)


def inside(field: Field, t0: Tensor, t1: Tensor, dtype: torch.dtype) -> Field:
    """Keep the times of a field off the ends of an interval by one unit of a precision, in either direction."""
    def neighbour(end: Tensor, other: Tensor) -> Tensor:
        return torch.nextafter(end.detach().to(dtype), torch.where(other > end, math.inf, -math.inf).to(dtype)).double()

    ends = torch.stack([neighbour(t0, t1), neighbour(t1, t0)])
    low, high = ends.amin(0), ends.amax(0)

    def kept(y: Tensor, t: Tensor) -> Tensor:
        moved = torch.minimum(torch.maximum(t.detach(), low.to(t.device)), high.to(t.device))
        return field(y, t + (moved - t.detach()))  # the gradient of t stays

    return kept
