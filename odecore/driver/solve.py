"""The adaptive driver: one loop for every stepper, one step size for every sample."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from odecore.driver.batch import HALF, bound, check_states, check_tolerances, partial_step, rows_of, times_of
from odecore.driver.control import INTEGRAL, Controller, Memory
from odecore.driver.dense import bootstrapped
from odecore.driver.events import Event, EventFunction, EventWatch, events_of
from odecore.driver.fetch import fetch_largest
from odecore.driver.first_step import automatic_first_step
from odecore.driver.pytree import Tree, on_trees
from odecore.driver.record import Pieces, Recorder, StatesAt, Taken, Watch
from odecore.driver.solution import Solution, SolveError, Status, checked
from odecore.stepper import Carry, Step, Stepper, column, send

__all__ = ["Norm", "Solution", "SolveError", "Status", "larger_tolerance", "solve", "summed_tolerance"]

Norm = Callable[[Tensor, Tensor, float, float], Tensor]
"""``(error, magnitude, rtol, atol) -> error ratio``, one per sample."""


def summed_tolerance(error: Tensor, magnitude: Tensor, rtol: float, atol: float) -> Tensor:
    """``RMS(error / (atol + rtol · magnitude))`` over each sample."""
    return _root_mean_square(error, rtol * magnitude + atol, atol)


def larger_tolerance(error: Tensor, magnitude: Tensor, rtol: float, atol: float) -> Tensor:
    """``RMS(error / max(atol, rtol · magnitude))`` over each sample."""
    return _root_mean_square(error, (rtol * magnitude).clamp(min=atol), atol)


@on_trees
def solve(
    stepper: Stepper,
    field: Callable[..., Tensor],
    y0: Inexact[Tensor, "samples ..."] | Tree,
    t0: float | Float[Tensor, " samples"],
    t1: float | Float[Tensor, " samples"],
    *,
    rtol: float,
    atol: float,
    args: tuple[Tensor, ...] = (),
    first_step: float | None = None,
    max_steps: int = 10_000,
    controller: Controller = INTEGRAL,
    norm: Norm = summed_tolerance,
    partial: bool = False,
    ts: Float[Tensor, " times"] | Float[Tensor, "samples times"] | None = None,
    dense: bool = False,
    event: Event | EventFunction | Sequence[Event | EventFunction] | None = None,
    watch: Watch | None = None,
    shortest: float = 0.0,
    longest: float = math.inf,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Solution:
    """Integrate every sample from t0 to t1 with its own sequence of steps.

    A sample's steps depend on nothing but the sample, so its solution is the same in any batch, to
    the rounding of the field. Samples that have ended leave the computation: the field then sees a
    smaller batch. A step is accepted where its error ratio is at most 1; a non-finite one is
    repeated shorter, and the sample given up where no shorter step is left.

    Under :func:`torch.func.vmap` the mapped copies of a sample share its steps, which are short enough
    for all of them, and it ends where one of them fails; copies that should step each for itself are
    further samples.

    Args:
        stepper: the method.
        field: ``field(y, t, *args) -> value`` of the shape of y.
        y0: initial states of shape (samples, …), floating-point or complex. Half precision is
            accumulated in float32; the field sees the dtype of y0.
        t0: start, for all samples or one a sample.
        t1: end likewise; t1 < t0 integrates backwards.
        rtol: relative tolerance of the local error, not negative.
        atol: absolute tolerance of the local error, not negative; not zero together with rtol.
        args: tensors with one row a sample (labels, say), which the field gets of the samples it sees.
        first_step: length of the first step, in units of t; None chooses one for each sample, by two
            evaluations (:func:`~odecore.driver.first_step.automatic_first_step`). Needed where the stepper's
            field is not the derivative.
        max_steps: most attempts, accepted or not.
        controller: how step sizes follow from errors.
        norm: how the error of a sample is measured.
        partial: return what was reached where a sample fails, with its status, instead of raising.
        ts: times at which states are wanted, sorted in the direction of integration, for all samples
            or one row a sample; they do not change the steps. May require a gradient.
        dense: keep the solution as a function of time, ``Solution.dense``.
        event: one or more conditions ``g(y, t, *args) = 0``, as :class:`~odecore.driver.events.Event` or as plain
            functions. A sample ends as STOPPED where the first of them crosses zero, at a time and in a
            state that are differentiable.
        watch: called with each accepted step, a :class:`~odecore.driver.record.Taken`; may return for each of its
            rows a time in the step at which the sample stops (nan: it goes on). It ends there as STOPPED.
        shortest: least length of a step but the last; a step of that length is accepted whatever its
            error, if it is finite.
        longest: greatest length of a step.
        callback: called after each attempt with its number and the time that each sample has reached.

    Returns:
        States and statistics.

    Raises:
        ValueError: an argument is out of range, of the wrong shape, or not finite.
        SolveError: some samples failed and ``partial`` is False.

    Cost: one attempt of the stepper for each step of the slowest sample, and for each attempt one
        host synchronisation, which fetches the error ratios; times and decisions live on the host.
        The interpolant of a step costs what its method says (:func:`~odecore.driver.dense.bootstrapped` if it
        has none), once for each attempt in which a sample passes one of ``ts`` between its steps, or
        for each that is accepted if ``dense``; memory as :class:`~odecore.driver.dense.DenseSolution`.

    Source: Hairer, Nørsett & Wanner 1993, Solving ordinary differential equations I, section II.4;
        per-sample steps as in torchode, Lienen & Günnemann 2022, arXiv:2210.12375.
    """
    samples = check_states(y0, args)
    check_tolerances(rtol, atol)
    if stepper.error_order < 1:
        raise ValueError("stepper estimates no error (error_order=0): give it a grid, in odecore.driver.integrate, or "
                         "let odecore.half_steps estimate its error")
    _check(first_step, max_steps, shortest, longest)
    begin, end = times_of("t0", t0, samples), times_of("t1", t1, samples)
    result = y0.float() if y0.dtype in HALF else y0
    events = None if event is None else EventWatch(events_of(event), args, y0.dtype, begin, result)
    if events is not None and watch is not None:
        raise ValueError("event and watch are both given: let the watch call an odecore.driver.events.EventWatch")
    recorder = _recorder(ts, dense, watch if events is None else events, begin, end, result)
    stops: list[tuple[Tensor, Tensor]] = []
    t, direction, length = begin.clone(), torch.sign(end - begin), (end - begin).abs()
    status = torch.full((samples,), -1)
    accepted, rejected = torch.zeros_like(status), torch.zeros_like(status)
    status[direction == 0] = Status.FINISHED

    rows = (status < 0).nonzero().squeeze(1)  # the samples that still run; what follows has one row for each
    y, *left_args = (result, *args) if len(rows) == samples else rows_of((result, *args), rows)
    now, goal, forward, h, count = t[rows], end[rows], direction[rows], length[rows], accepted[rows]
    memory = controller.start(len(rows))
    active, nfe, newton, krylov = bound(field, tuple(left_args), y0.dtype), 0, 0, 0
    carry: Carry = ()
    if len(rows):
        carry, nfe = stepper.start(active, now, y)
    if first_step is not None:
        h = torch.full_like(h, first_step)
    elif len(rows):
        automatic = automatic_first_step(active, now, forward, y, stepper.error_order,
                                         lambda value, magnitude: norm(value, magnitude, rtol, atol))
        h, nfe = torch.minimum(automatic.length, h), nfe + automatic.nfe
    h = h.clamp(shortest, longest)
    attempt = 0
    while len(rows) and attempt < max_steps:
        attempt += 1
        remaining = (goal - now).abs()
        last = h >= remaining * (1 - 1e-10)  # leave no sliver
        target = torch.where(last, goal, torch.addcmul(now, forward, h))
        step = trial = stepper.step(active, now, target, y, carry)
        nfe, newton, krylov = nfe + step.nfe, newton + step.newton, krylov + step.krylov
        ratio = _error_ratio(step, norm, rtol, atol)  # the one synchronisation
        good = ratio <= 1.0
        if shortest > 0:
            good = good | (torch.isfinite(ratio) & ((target - now).abs() <= shortest * (1 + 1e-10)))
        every = bool(good.all())
        if not every and step.y.requires_grad and bool(good.any()) and not bool(torch.isfinite(ratio).all()):
            # Autograd multiplies non-finite values with zero, which is not zero: repeat the step of the others alone.
            target = torch.where(good, target, now)
            step = partial_step(stepper, field, tuple(left_args), y0.dtype, now, target, y, carry)
            nfe, newton, krylov = nfe + step.nfe, newton + step.newton, krylov + step.krylov

        factor, memory = controller.next(ratio, memory, stepper.error_order)
        h = torch.minimum(h, remaining) * factor
        if shortest > 0 or longest < math.inf:
            h = h.clamp(shortest, longest)
        count = count + good
        reached, ended = (target, last) if every else (torch.where(good, target, now), good & last)
        if not every:
            # Below some rounding units of t a step no longer moves it; near t = 0 the interval sets the limit.
            stuck = ~good & (h <= 16 * torch.finfo(torch.float64).eps * now.abs() + 1e-20 * length[rows])
            if bool(stuck.any()):
                status[rows[stuck]], ended = _causes(trial, ratio)[stuck], ended | stuck
        before = y
        y, carry = (step.y, step.carry) if every else _select(good, step, y, carry)
        stopped = None
        if recorder is not None and bool(good.any()):
            make = step.dense or functools.partial(bootstrapped, active, now, target, before, step.y, stepper.order)
            taken = Taken.of(rows, good, now, target, before, step.y, make)
            stop = recorder.add(taken)
            nfe += taken.nfe
            if stop is not None:
                where = good.nonzero().squeeze(1)
                stopped = where[stop.stopped]
                stops.append((rows[stopped], stop.t[stop.stopped]))
                reached, ended = reached.index_copy(0, where, stop.t.detach()), ended.index_fill(0, stopped, True)
                y = y.index_copy(0, send(where, y.device), stop.y)
        now = reached
        if callback is not None:
            callback(attempt, t.index_copy(0, rows, now))

        if bool(ended.any()):
            status[rows[ended & good]] = Status.FINISHED
            if stopped is not None:
                status[rows[stopped]] = Status.STOPPED
            t[rows], accepted[rows], rejected[rows] = now, count, attempt - count
            over, left = ended.nonzero().squeeze(1), (~ended).nonzero().squeeze(1)
            result = result.index_copy(0, send(rows[over], y.device), y.index_select(0, send(over, y.device)))
            y, *carried = rows_of((y, *carry), left)
            carry, left_args = tuple(carried), list(rows_of(tuple(left_args), left))
            rows, now, goal, forward, h, count, *kept = rows_of((rows, now, goal, forward, h, count, *memory), left)
            memory, active = Memory(*kept), bound(field, tuple(left_args), y0.dtype)
    if len(rows):
        status[rows] = Status.STEP_LIMIT
        t[rows], accepted[rows], rejected[rows] = now, count, attempt - count
        result = result.index_copy(0, send(rows, y.device), y)
    pieces = None if recorder is None or recorder.pieces is None else recorder.pieces.result(begin, t, result, y0.dtype)
    for stopped, at in stops:  # with their gradients, which no step of other samples had to carry
        t = t.index_copy(0, stopped, at)
    return checked(Solution(
        result.to(y0.dtype), t, status, accepted, rejected, nfe, newton, krylov,
        None if recorder is None or recorder.states is None else recorder.states.result(y0.dtype),
        pieces, *((None, ()) if events is None else (events.stopped_by, events.crossings)),
    ), partial, max_steps)


def _recorder(
    ts: Tensor | None, dense: bool, watch: Watch | None, begin: Tensor, end: Tensor, y0: Tensor
) -> Recorder | None:
    """What follows the steps, if anything has to."""
    if ts is None and not dense and watch is None:
        return None
    return Recorder(None if ts is None else StatesAt(ts, begin, end, y0), Pieces() if dense else None, watch)


def _error_ratio(step: Step, norm: Norm, rtol: float, atol: float) -> Tensor:
    """Error ratio of each sample on the host; inf or nan where the step is not finite."""
    with torch.no_grad():
        ratio = norm(step.error, step.magnitude, rtol, atol)
        largest = torch.linalg.vector_norm(step.y.reshape(len(step.y), -1), math.inf, dim=1)
        return fetch_largest(torch.where(largest < math.inf, ratio, math.inf).double())


def _select(good: Tensor, step: Step, y: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    """The new state and carry where the step was good, else the old ones."""
    if not bool(good.any()):
        return y, carry

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(column(good, new), new, old)

    return choose(step.y, y), tuple(choose(new, old) for new, old in zip(step.carry, carry, strict=True))


def _root_mean_square(error: Tensor, tolerance: Tensor, least: float) -> Tensor:
    scaled = error / tolerance
    if least < torch.finfo(tolerance.dtype).tiny:
        scaled = torch.where(error == 0, 0.0, scaled)  # no error is no violation, even of a tolerance of zero
    rows = scaled.reshape(len(scaled), -1)
    return torch.linalg.vector_norm(rows, dim=1) / math.sqrt(rows.shape[1])


def _causes(step: Step, ratio: Tensor) -> Tensor:
    """Why each sample's step was rejected; waits for the device, so it is asked only where samples are given up."""
    def anywhere(flags: Tensor) -> Tensor:
        return fetch_largest(flags.reshape(len(flags), -1).any(1))

    unfinished = anywhere(torch.isinf(step.error)) & ~anywhere(~torch.isfinite(step.y))
    failed = torch.where(unfinished, int(Status.NOT_CONVERGED), int(Status.NON_FINITE))
    return torch.where(torch.isfinite(ratio), int(Status.STEP_TOO_SMALL), failed)


def _check(first_step: float | None, max_steps: Any, shortest: float, longest: float) -> None:
    if not 0 <= shortest <= longest or not longest > 0 or shortest == math.inf:
        raise ValueError(f"shortest={shortest}, longest={longest}: give 0 ≤ shortest ≤ longest, and longest above 0")
    if first_step is not None and not 0 < first_step < math.inf:
        raise ValueError(f"first_step={first_step}: give a length above 0, whatever the direction")
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps={max_steps!r}: give a whole number, at least 1")
