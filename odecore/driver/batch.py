"""The samples that take part in a step: their rows of the arguments and of times, and the field of them alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from odecore.driver.fetch import fetch_largest, refuse_mapped
from odecore.problem import bind
from odecore.stepper import Carry, Dense, Field, Step, Stepper, send

HALF = (torch.float16, torch.bfloat16)
"""What is too coarse to accumulate a solution in."""


def rows_of(tensors: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
    """The chosen rows of each tensor; ``rows`` is on the host."""
    return tuple(tensor.index_select(0, send(rows, tensor.device)) for tensor in tensors)


def bound(field: Callable[..., Tensor], args: tuple[Tensor, ...], dtype: torch.dtype) -> Field:
    """Fix the arguments of a problem, and hand its functions states of the caller's dtype.

    Raises:
        ValueError: when called, if the field changes the shape of the state.
    """
    def change(part: Callable[..., Tensor]) -> Field:
        def function(y: Tensor, t: Tensor) -> Tensor:
            value = part(y if y.dtype is dtype else y.to(dtype), t, *args)
            if value.shape != y.shape:
                raise ValueError(f"field returned shape {tuple(value.shape)} for a state of shape {tuple(y.shape)}: "
                                 "they must be the same")
            return value if value.dtype is y.dtype else value.to(y.dtype)

        return function

    return bind(field, change)


def partial_step(
    stepper: Stepper, field: Callable[..., Tensor], args: tuple[Tensor, ...], dtype: torch.dtype,
    t0: Tensor, t1: Tensor, y: Tensor, carry: Carry,
) -> Step:
    """Step the samples whose interval is not empty; the others stay as they are and are not evaluated."""
    moving = (t0 != t1).detach()
    if not bool(moving.any()):
        return Step(y, carry, torch.zeros_like(y), y.abs(), 0)
    if bool(moving.all()):
        return stepper.step(bound(field, args, dtype), t0, t1, y, carry)
    rows = moving.nonzero().squeeze(1)
    y_rows, *carry_rows = rows_of((y, *carry), rows)
    step = stepper.step(bound(field, rows_of(args, rows), dtype), t0[rows], t1[rows], y_rows, tuple(carry_rows))

    def spread(new: Tensor, old: Tensor) -> Tensor:
        return old.index_copy(0, send(rows, old.device), new)

    def dense() -> Dense:
        assert step.dense is not None
        made = step.dense()
        rest = made.coefficients.new_zeros(len(y), *made.coefficients.shape[1:])
        return Dense(spread(made.coefficients, rest), made.nfe)

    return step._replace(
        y=spread(step.y, y), carry=tuple(map(spread, step.carry, carry)), error=spread(step.error, torch.zeros_like(y)),
        magnitude=spread(step.magnitude, y.abs()), dense=None if step.dense is None else dense)


def times_of(name: str, value: float | Tensor, samples: int) -> Tensor:
    """Read one time, or one a sample, as a float64 vector on the host.

    Raises:
        ValueError: another shape, times that are not finite, or mapped ones.
    """
    refuse_mapped(name, value)
    times = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    if times.ndim > 1 or (times.ndim == 1 and len(times) != samples):
        raise ValueError(f"{name} has shape {tuple(times.shape)}: give one time, or {samples} of them")
    if not bool(torch.isfinite(times).all()):
        raise ValueError(f"{name}={times.tolist()}: all times must be finite")
    return times.expand(samples).clone()


def check_states(y0: Tensor, args: tuple[Tensor, ...]) -> int:
    """Check initial states and arguments, and count the samples.

    Raises:
        ValueError: no floating-point or complex states, not finite ones, or arguments without one row a sample.
    """
    if not (y0.is_floating_point() or y0.is_complex()) or y0.ndim < 1:
        raise ValueError(f"y0 has dtype {y0.dtype} and shape {tuple(y0.shape)}: give floating-point or complex states "
                         "of shape (samples, …)")
    if bool(fetch_largest(~torch.isfinite(y0).all())):
        raise ValueError("y0 holds non-finite values: give finite states")
    for index, tensor in enumerate(args):
        if tensor.ndim < 1 or len(tensor) != len(y0):
            raise ValueError(f"args[{index}] has shape {tuple(tensor.shape)}: give one row for each of {len(y0)} "
                             "samples")
    return len(y0)


def check_tolerances(rtol: float, atol: float) -> None:
    """Check the tolerances of an adaptive solve.

    Raises:
        ValueError: negative, not finite, or both zero.
    """
    if not (0 <= rtol < math.inf and 0 <= atol < math.inf and rtol + atol > 0):
        raise ValueError(f"rtol={rtol}, atol={atol}: give finite tolerances, not negative and not both zero")
