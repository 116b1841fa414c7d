"""The adaptive driver: one loop for every stepper, one step size for every sample."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Inexact
from numpy.typing import NDArray
from torch import Tensor

from odecore.driver.batch import HALF, bound, check_states, check_tolerances, partial_step, rows_of, times_of
from odecore.driver.control import BALANCED, Controller, Memory
from odecore.driver.dense import bootstrapped
from odecore.driver.events import Event, EventFunction, EventWatch, events_of
from odecore.driver.fetch import array_of, fetch_largest
from odecore.driver.first_step import automatic_first_step
from odecore.driver.moving import followed, moving_end, moving_start, shift
from odecore.driver.pytree import Tree, on_trees
from odecore.driver.record import Pieces, Recorder, StatesAt, Taken, Watch
from odecore.driver.solution import Solution, SolveError, Status, checked
from odecore.stepper import Carry, Iterative, Step, Stepper, column, send

__all__ = ["Norm", "Solution", "SolveError", "Status", "larger_tolerance", "solve", "summed_tolerance"]

Norm = Callable[[Tensor, Tensor, float, float], Tensor]
"""``(error, magnitude, rtol, atol) -> error ratio``, one per sample."""


def summed_tolerance(error: Tensor, magnitude: Tensor, rtol: float, atol: float) -> Tensor:
    """``RMS(error / (atol + rtol · magnitude))`` over each sample."""
    return _root_mean_square(error, rtol * magnitude + atol, atol)


def larger_tolerance(error: Tensor, magnitude: Tensor, rtol: float, atol: float) -> Tensor:
    """``RMS(error / max(atol, rtol · magnitude))`` over each sample."""
    return _root_mean_square(error, (rtol * magnitude).clamp(min=atol), atol)


def judged(stepper: Stepper, rtol: float, atol: float, norm: Norm = summed_tolerance) -> Stepper:
    """The method as the driver runs it: what it iterates, it iterates as far as the norm of errors notices."""
    if not isinstance(stepper, Iterative):
        return stepper
    return stepper.judged(lambda error, magnitude: norm(error, magnitude, rtol, atol))


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
    controller: Controller = BALANCED,
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
    for all of them, and it ends where one of them fails. Times must be the same for all copies, and
    events are refused; copies that should step each for itself are further samples.

    Args:
        stepper: the method.
        field: ``field(y, t, *args) -> value`` of the shape of y.
        y0: initial states of shape (samples, …), floating-point or complex. Half precision is
            accumulated in float32; the field sees the dtype of y0.
        t0: start, for all samples or one a sample. A tensor gets its gradient, for a loss L with the
            gradient λ of the initial state ``dL/dt0 = -λ · f(y0, t0)``; the steps are constants.
        t1: end likewise, ``dL/dt1 = ∂L/∂y · f(y, t1) + ∂L/∂t``; t1 < t0 integrates backwards.
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
        One evaluation for each of t0 and t1 that has a gradient.

    Source: Hairer, Nørsett & Wanner 1993, Solving ordinary differential equations I, section II.4;
        per-sample steps as in torchode, Lienen & Günnemann 2022, arXiv:2210.12375.
    """
    samples = check_states(y0, args)
    check_tolerances(rtol, atol)
    if stepper.error_order < 1:
        raise ValueError("stepper estimates no error (error_order=0): give it a grid, in odecore.driver.integrate, or "
                         "let odecore.half_steps estimate its error")
    _check(first_step, max_steps, shortest, longest)
    stepper = judged(stepper, rtol, atol, norm)
    begin, end = times_of("t0", t0, samples), times_of("t1", t1, samples)
    complete = bound(field, args, y0.dtype)
    result = moving_start(complete, y0.float() if y0.dtype in HALF else y0, t0)
    events = None if event is None else EventWatch(events_of(event), args, y0.dtype, begin, result)
    if events is not None and watch is not None:
        raise ValueError("event and watch are both given: let the watch call an odecore.driver.events.EventWatch")
    recorder = _recorder(ts, dense, watch if events is None else events, begin, end, result)
    stops: list[tuple[Tensor, Tensor]] = []
    # Times and decisions are NumPy arrays, whose operations on the few numbers of a batch cost a third of torch's.
    t, goal = array_of(begin).copy(), array_of(end)
    status = np.where(t == goal, int(Status.FINISHED), int(Status.STEP_LIMIT))
    accepted, rejected = np.zeros_like(status), np.zeros_like(status)

    rows = (t != goal).nonzero()[0]  # the samples that still run; what follows has one row for each
    y, *left_args = (result, *args) if len(rows) == samples else rows_of((result, *args), torch.from_numpy(rows))
    now, goal, count, memory = t[rows], goal[rows], accepted[rows], controller.start(len(rows))
    forward, whole = np.sign(goal - now), np.abs(goal - now)
    active, nfe, newton, krylov = bound(field, tuple(left_args), y0.dtype), 0, 0, 0
    asked = followed(t0) + followed(t1)
    carry: Carry = ()
    h = np.full_like(now, math.nan if first_step is None else first_step)
    if len(rows):
        carry, nfe = stepper.start(active, torch.from_numpy(now), y)
        if first_step is None:
            automatic = automatic_first_step(active, torch.from_numpy(now), torch.from_numpy(forward), y,
                                             stepper.error_order, lambda value, size: norm(value, size, rtol, atol))
            h, nfe = np.minimum(array_of(automatic.length), whole), nfe + automatic.nfe
    h = h.clip(shortest, longest)
    attempt = 0
    while len(rows) and attempt < max_steps:
        attempt += 1
        remaining = np.abs(goal - now)
        last = h >= remaining * (1 - 1e-10)  # leave no sliver
        target = np.where(last, goal, now + forward * h)
        step = trial = stepper.step(active, torch.from_numpy(now), torch.from_numpy(target), y, carry)
        nfe, newton, krylov = nfe + step.nfe, newton + step.newton, krylov + step.krylov
        ratio = _error_ratio(step, norm, rtol, atol)  # the one synchronisation
        good = ratio <= 1.0
        if shortest > 0:
            good |= np.isfinite(ratio) & (np.abs(target - now) <= shortest * (1 + 1e-10))
        every = np.count_nonzero(good) == len(good)
        if not every and step.y.requires_grad and good.any() and not np.isfinite(ratio).all():
            # Autograd multiplies non-finite values with zero, which is not zero: repeat the step of the others alone.
            target = np.where(good, target, now)
            step = partial_step(stepper, field, tuple(left_args), y0.dtype, torch.from_numpy(now),
                                torch.from_numpy(target), y, carry)
            nfe, newton, krylov = nfe + step.nfe, newton + step.newton, krylov + step.krylov

        factor, memory = controller.next(ratio, memory, stepper.error_order)
        h = np.minimum(h, remaining) * factor
        if shortest > 0 or longest < math.inf:
            h = h.clip(shortest, longest)
        count = count + good
        reached, ended = (target, last) if every else (np.where(good, target, now), good & last)
        if not every:
            # Below some rounding units of t a step no longer moves it; near t = 0 the interval sets the limit.
            stuck = ~good & (h <= 16 * np.finfo(np.float64).eps * np.abs(now) + 1e-20 * whole)
            if stuck.any():
                status[rows[stuck]], ended = _causes(trial, ratio)[stuck], ended | stuck
        before, stopped = y, np.zeros(0, dtype=np.int64)
        y, carry = (step.y, step.carry) if every else _select(good, step, y, carry)
        if recorder is not None and good.any():
            start, end_ = torch.from_numpy(now), torch.from_numpy(target)
            make = step.dense or functools.partial(bootstrapped, active, start, end_, before, step.y, stepper.order)
            taken = Taken.of(torch.from_numpy(rows), torch.from_numpy(good), start, end_, before, step.y, make)
            stop = recorder.add(taken)
            nfe += taken.nfe
            if stop is not None:
                where, which = good.nonzero()[0], array_of(stop.stopped)
                stopped, reached, ended = where[which], reached.copy(), ended.copy()
                reached[where], ended[stopped] = array_of(stop.t.detach()), True
                stops.append((taken.rows[stop.stopped], stop.t[stop.stopped]))
                y = y.index_copy(0, send(torch.from_numpy(where), y.device), stop.y)
        now = reached
        if callback is not None:
            t[rows] = now
            callback(attempt, torch.from_numpy(t.copy()))

        if np.count_nonzero(ended):
            status[rows[ended & good]] = int(Status.FINISHED)
            status[rows[stopped]] = int(Status.STOPPED)
            t[rows], accepted[rows], rejected[rows] = now, count, attempt - count
            over, left = ended.nonzero()[0], (~ended).nonzero()[0]
            result = _spread(result, rows[over], rows_of((y,), torch.from_numpy(over))[0])
            y, *carried = rows_of((y, *carry), torch.from_numpy(left))
            carry = tuple(carried)
            if left_args:
                left_args = list(rows_of(tuple(left_args), torch.from_numpy(left)))
                active = bound(field, tuple(left_args), y0.dtype)
            rows, now, goal, forward, whole, h, count = (
                x[left] for x in (rows, now, goal, forward, whole, h, count))
            memory = Memory(*(m[left] for m in memory))
    if len(rows):
        t[rows], accepted[rows], rejected[rows] = now, count, attempt - count
        result = _spread(result, rows, y)
    times, outcome, pieces = torch.from_numpy(t), torch.from_numpy(status), None
    if recorder is not None and recorder.pieces is not None:
        pieces = recorder.pieces.result(begin, times, result, y0.dtype)
    for places, at in stops:  # with their gradients, which no step of other samples had to carry
        times = times.index_copy(0, places, at)
    if followed(t1):
        at_end = outcome == Status.FINISHED
        result = moving_end(complete, result, t1, at_end)
        times = times + torch.where(at_end, shift(torch.as_tensor(t1), samples), 0.0)
    return checked(Solution(
        result.to(y0.dtype), times, outcome, torch.from_numpy(accepted), torch.from_numpy(rejected), nfe + asked,
        newton, krylov,
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


def _error_ratio(step: Step, norm: Norm, rtol: float, atol: float) -> NDArray[np.float64]:
    """Error ratio of each sample on the host; not finite where the step is not."""
    with torch.no_grad():
        error = torch.add(step.error, step.y, alpha=0.0)  # nan where y is inf or nan, though the error may not be
        return array_of(fetch_largest(norm(error, step.magnitude, rtol, atol))).astype(np.float64, copy=False)


def _select(good: NDArray[np.bool_], step: Step, y: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    """The new state and carry where the step was good, else the old ones."""
    if not good.any():
        return y, carry

    mask = column(torch.from_numpy(good), y)

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(mask if new.ndim == y.ndim else column(torch.from_numpy(good), new), new, old)

    return choose(step.y, y), tuple(choose(new, old) for new, old in zip(step.carry, carry, strict=True))


def _spread(states: Tensor, rows: NDArray[np.int64], values: Tensor) -> Tensor:
    """States with new values in some rows."""
    return values if len(rows) == len(states) else states.index_copy(
        0, send(torch.from_numpy(rows), states.device), values)


def _root_mean_square(error: Tensor, tolerance: Tensor, least: float) -> Tensor:
    scaled = error / tolerance
    if least < torch.finfo(tolerance.dtype).tiny:
        scaled = torch.where(error == 0, 0.0, scaled)  # no error violates no tolerance, even of zero
    rows = scaled.reshape(len(scaled), -1)
    return torch.linalg.vector_norm(rows, dim=1) / math.sqrt(rows.shape[1])


def _causes(step: Step, ratio: NDArray[np.float64]) -> NDArray[np.int64]:
    """Why each sample's step was rejected; waits for the device, so it is asked only where samples are given up."""
    def anywhere(flags: Tensor) -> NDArray[np.bool_]:
        return array_of(fetch_largest(flags.reshape(len(flags), -1).any(1)))

    unfinished = anywhere(torch.isinf(step.error)) & ~anywhere(~torch.isfinite(step.y))
    failed = np.where(unfinished, int(Status.NOT_CONVERGED), int(Status.NON_FINITE))
    return np.where(np.isfinite(ratio), int(Status.STEP_TOO_SMALL), failed)


def _check(first_step: float | None, max_steps: Any, shortest: float, longest: float) -> None:
    if not 0 <= shortest <= longest or not longest > 0 or shortest == math.inf:
        raise ValueError(f"shortest={shortest}, longest={longest}: give 0 ≤ shortest ≤ longest, and longest above 0")
    if first_step is not None and not 0 < first_step < math.inf:
        raise ValueError(f"first_step={first_step}: give a length above 0, whatever the direction")
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps={max_steps!r}: give a whole number, at least 1")
