"""The adaptive driver: one loop for every stepper, one step size for every sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from odecore.control import INTEGRAL, Controller, Memory
from odecore.problem import bind
from odecore.stepper import Carry, Field, Step, Stepper, column, send

Norm = Callable[[Tensor, Tensor, float, float], Tensor]
"""``(error, magnitude, rtol, atol) -> error ratio``, one per sample."""

_HALF = (torch.float16, torch.bfloat16)


class Status(IntEnum):
    """How the solution of one sample ended."""

    FINISHED = 0
    STEP_LIMIT = 1
    STEP_TOO_SMALL = 2
    NON_FINITE = 3


class Solution(NamedTuple):
    """What :func:`solve` returns; counts, times and statuses are on the host.

    Attributes:
        y: last accepted state of each sample; finite.
        t: time of that state.
        status: :class:`Status` of each sample.
        accepted: accepted steps of each sample.
        rejected: rejected steps of each sample.
        nfe: evaluations of the field for the batch, whatever the number of samples in each.
        newton: Newton iterations for the batch.
        krylov: Krylov iterations for the batch.
    """

    y: Tensor
    t: Tensor
    status: Tensor
    accepted: Tensor
    rejected: Tensor
    nfe: int
    newton: int = 0
    krylov: int = 0


class SolveError(RuntimeError):
    """Some samples did not reach the end; ``solution`` holds what was reached."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


def summed_tolerance(error: Tensor, magnitude: Tensor, rtol: float, atol: float) -> Tensor:
    """``RMS(error / (atol + rtol · magnitude))`` over each sample."""
    return _root_mean_square(error, atol + rtol * magnitude)


def larger_tolerance(error: Tensor, magnitude: Tensor, rtol: float, atol: float) -> Tensor:
    """``RMS(error / max(atol, rtol · magnitude))`` over each sample."""
    return _root_mean_square(error, (rtol * magnitude).clamp(min=atol))


def solve(
    stepper: Stepper,
    field: Callable[..., Tensor],
    y0: Inexact[Tensor, "samples ..."],
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
    callback: Callable[[int, Tensor], None] | None = None,
) -> Solution:
    """Integrate every sample from t0 to t1 with its own sequence of steps.

    A sample's steps depend on nothing but the sample, so its solution is the same in any batch, to
    the rounding of the field. Samples that have ended leave the computation: the field then sees a
    smaller batch. A step is accepted where its error ratio is at most 1; a non-finite one is
    repeated shorter, and the sample given up where no shorter step is left.

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
        first_step: length of the first step, in units of t; None for a hundredth of the interval.
        max_steps: most attempts, accepted or not.
        controller: how step sizes follow from errors.
        norm: how the error of a sample is measured.
        partial: return what was reached where a sample fails, with its status, instead of raising.
        callback: called after each attempt with its number and the time that each sample has reached.

    Returns:
        States and statistics.

    Raises:
        ValueError: an argument is out of range, of the wrong shape, or not finite.
        SolveError: some samples failed and ``partial`` is False.

    Cost: one attempt of the stepper for each step of the slowest sample, and for each attempt one
        host synchronisation, which fetches the error ratios; times and decisions live on the host.

    Source: Hairer, Nørsett & Wanner 1993, Solving ordinary differential equations I, section II.4;
        per-sample steps as in torchode, Lienen & Günnemann 2022, arXiv:2210.12375.
    """
    samples = _check(y0, rtol, atol, args, first_step, max_steps)
    t, end = _times("t0", t0, samples), _times("t1", t1, samples)
    direction = torch.sign(end - t)
    length = (end - t).abs()
    h = length * 0.01 if first_step is None else torch.full_like(t, float(first_step))
    memory = controller.start(samples)
    status = torch.full((samples,), -1)
    accepted, rejected = torch.zeros_like(status), torch.zeros_like(status)
    status[direction == 0] = Status.FINISHED

    result = y0.float() if y0.dtype in _HALF else y0
    rows = (status < 0).nonzero().squeeze(1)  # the samples that still run; what follows has one row for each
    y = result if len(rows) == samples else result.index_select(0, send(rows, result.device))
    active, nfe, newton, krylov = _bind(field, args, rows, samples, y0.dtype), 0, 0, 0
    carry: Carry = ()
    if len(rows):
        carry, nfe = stepper.start(active, t[rows], y)
    attempt = 0
    while len(rows) and attempt < max_steps:
        attempt += 1
        now, remaining = t[rows], (end[rows] - t[rows]).abs()
        last = h[rows] >= remaining * (1 - 1e-10)  # leave no sliver
        target = torch.where(last, end[rows], now + direction[rows] * h[rows])
        step = stepper.step(active, now, target, y, carry)
        nfe, newton, krylov = nfe + step.nfe, newton + step.newton, krylov + step.krylov
        ratio = _error_ratio(step, norm, rtol, atol)  # the one synchronisation
        good = ratio <= 1.0

        factor, after = controller.next(ratio, Memory(memory.last[rows], memory.before[rows]), stepper.error_order)
        memory.last[rows], memory.before[rows] = after
        h[rows] = torch.minimum(h[rows], remaining) * factor
        t[rows] = torch.where(good, target, now)
        accepted[rows] += good
        rejected[rows] += ~good
        y, carry = _select(good, step, y, carry)
        status[rows[good & last]] = Status.FINISHED
        # Below some rounding units of t a step no longer moves it; near t = 0 the interval sets the limit.
        stuck = ~good & (h[rows] <= 16 * torch.finfo(torch.float64).eps * now.abs() + 1e-20 * length[rows])
        status[rows[stuck]] = torch.where(torch.isfinite(ratio[stuck]), Status.STEP_TOO_SMALL, Status.NON_FINITE)
        if callback is not None:
            callback(attempt, t.clone())

        running = status[rows] < 0
        if not bool(running.all()):
            ended, left = ((~running).nonzero().squeeze(1), running.nonzero().squeeze(1))
            result = result.index_copy(0, send(rows[ended], y.device), y.index_select(0, send(ended, y.device)))
            y, carry = (y.index_select(0, send(left, y.device)),
                        tuple(c.index_select(0, send(left, c.device)) for c in carry))
            rows = rows[left]
            active = _bind(field, args, rows, samples, y0.dtype)
    if len(rows):
        status[rows] = Status.STEP_LIMIT
        result = result.index_copy(0, send(rows, y.device), y)
    solution = Solution(result.to(y0.dtype), t, status, accepted, rejected, nfe, newton, krylov)
    if not partial and bool((status != Status.FINISHED).any()):
        raise SolveError(_complaint(solution, max_steps), solution)
    return solution


def _bind(
    field: Callable[..., Tensor], args: tuple[Tensor, ...], rows: Tensor, samples: int, dtype: torch.dtype
) -> Field:
    """The field of the samples ``rows``, in the dtype that the caller gave the state in."""
    chosen = args if len(rows) == samples else tuple(a.index_select(0, send(rows, a.device)) for a in args)

    def change(part: Callable[..., Tensor]) -> Field:
        def bound(y: Tensor, t: Tensor) -> Tensor:
            value = part(y.to(dtype), t, *chosen)
            if value.shape != y.shape:
                raise ValueError(f"field returned shape {tuple(value.shape)} for a state of shape {tuple(y.shape)}: "
                                 "they must be the same")
            return value.to(y.dtype)

        return bound

    return bind(field, change)


def _error_ratio(step: Step, norm: Norm, rtol: float, atol: float) -> Tensor:
    """Error ratio of each sample on the host; inf where the step is not finite."""
    with torch.no_grad():
        ratio = norm(step.error, step.magnitude, rtol, atol).double()
        finite = torch.isfinite(step.y).reshape(len(step.y), -1).all(1) & torch.isfinite(ratio)
        return torch.where(finite, ratio, math.inf).cpu()


def _select(good: Tensor, step: Step, y: Tensor, carry: Carry) -> tuple[Tensor, Carry]:
    """The new state and carry where the step was good, else the old ones."""
    if bool(good.all()):
        return step.y, step.carry
    if not bool(good.any()):
        return y, carry

    def choose(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(column(good, new), new, old)

    return choose(step.y, y), tuple(choose(new, old) for new, old in zip(step.carry, carry, strict=True))


def _root_mean_square(error: Tensor, tolerance: Tensor) -> Tensor:
    # Without error there is no violation, even of a tolerance of zero.
    scaled = torch.where(error == 0, torch.zeros_like(tolerance), error.abs() / tolerance)
    return scaled.square().reshape(len(error), -1).mean(1).sqrt()


def _times(name: str, value: float | Tensor, samples: int) -> Tensor:
    times = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    if times.ndim > 1 or (times.ndim == 1 and len(times) != samples):
        raise ValueError(f"{name} has shape {tuple(times.shape)}: give one time, or {samples} of them")
    if not bool(torch.isfinite(times).all()):
        raise ValueError(f"{name}={times.tolist()}: all times must be finite")
    return times.expand(samples).clone()


def _check(
    y0: Tensor, rtol: float, atol: float, args: tuple[Tensor, ...], first_step: float | None, max_steps: Any
) -> int:
    if not (y0.is_floating_point() or y0.is_complex()) or y0.ndim < 1:
        raise ValueError(f"y0 has dtype {y0.dtype} and shape {tuple(y0.shape)}: give floating-point or complex states "
                         "of shape (samples, …)")
    if not bool(torch.isfinite(y0).all()):
        raise ValueError("y0 holds non-finite values: give finite states")
    if not (0 <= rtol < math.inf and 0 <= atol < math.inf and rtol + atol > 0):
        raise ValueError(f"rtol={rtol}, atol={atol}: give finite tolerances, not negative and not both zero")
    for index, tensor in enumerate(args):
        if tensor.ndim < 1 or len(tensor) != len(y0):
            raise ValueError(f"args[{index}] has shape {tuple(tensor.shape)}: give one row for each of {len(y0)} "
                             "samples")
    if first_step is not None and not 0 < first_step < math.inf:
        raise ValueError(f"first_step={first_step}: give a length above 0, whatever the direction")
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"max_steps={max_steps!r}: give a whole number, at least 1")
    return len(y0)


def _complaint(solution: Solution, max_steps: int) -> str:
    remedies = {Status.STEP_LIMIT: f"reached the limit of {max_steps} steps (raise max_steps or the tolerances)",
                Status.STEP_TOO_SMALL: "need steps below rounding (raise the tolerances)",
                Status.NON_FINITE: "met non-finite values of the field (check the field at the times in solution.t)"}
    parts = []
    for status, text in remedies.items():
        where = (solution.status == status).nonzero().squeeze(1).tolist()
        if where:
            parts.append(f"{len(where)} of {len(solution.status)} samples {text}, the first being sample {where[0]} at "
                         f"t={float(solution.t[where[0]]):.6g}")
    return "; ".join(parts) + "; partial=True returns what was reached"
