"""What a one-step method is to the driver: a pure function from one state to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]
"""``(y, t) -> value``: the state of shape (samples, …) and one time a sample, float64 on the device of y."""

Carry = tuple[Tensor, ...]
"""What a stepper hands on to its next step: tensors with one row a sample."""


Judge = Callable[[Tensor, Tensor], Tensor]
"""``(error, magnitude) -> error ratio`` of each sample, of tensors like the state: what accepts steps."""


class Dense(NamedTuple):
    """The solution within a step as a polynomial: ``y(t0 + θ (t1 - t0)) = Σ_k coefficients[:, k] θ^k``.

    Attributes:
        coefficients: of shape (samples, degree + 1, …), the constant first.
        nfe: evaluations of the field that it took.
    """

    coefficients: Tensor
    nfe: int


class Step(NamedTuple):
    """What a stepper returns; its arguments are left alone.

    Attributes:
        y: state at the end of the step.
        carry: what the next step needs if this one is accepted.
        error: estimate of the local error, of the shape of y.
        magnitude: size that a relative tolerance refers to, of the shape of y, not negative.
        nfe: evaluations of the field.
        newton: Newton iterations, summed over the stages.
        krylov: Krylov iterations, summed over the linear solves.
        dense: makes the dense output of the step when called, which may cost evaluations; None if the
            method has none of its own (see :func:`odecore.driver.dense.bootstrapped`).
    """

    y: Tensor
    carry: Carry
    error: Tensor
    magnitude: Tensor
    nfe: int
    newton: int = 0
    krylov: int = 0
    dense: Callable[[], Dense] | None = None


class Stepper(Protocol):
    """A one-step method with an error estimate.

    Attributes:
        order: p, the order of convergence.
        error_order: k, where the error estimate shrinks as h^k; 0 if there is none.
    """

    @property
    def order(self) -> int:
        """The order of convergence."""

    @property
    def error_order(self) -> int:
        """The power of h with which the error estimate shrinks."""

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """The carry of the first step, and the evaluations that it cost."""

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1; both times have shape (samples,), float64, on the host.

        A sample for which the step cannot be found (an iteration that does not converge) gets an
        error of inf: the driver then repeats it shorter.
        """


@runtime_checkable
class Iterative(Protocol):
    """A stepper that iterates, and needs to go no closer to its solution than the driver would notice."""

    def judged(self, judge: Judge) -> Stepper:
        """The same method for errors that are judged so; tolerances of its own stay as they are."""


def send(host: Tensor, device: torch.device) -> Tensor:
    """Copy a small host tensor to a device without waiting for what the device has still to do."""
    return host.to(device, non_blocking=True)


def column(host: Tensor, like: Tensor) -> Tensor:
    """Turn a host vector with one number a sample into a factor of ``like``, in its dtype and on its device."""
    dtype = host.dtype if host.dtype == torch.bool else like.dtype
    return host.to(like.device, dtype, non_blocking=True).reshape(-1, *[1] * (like.ndim - 1))
