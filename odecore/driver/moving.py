"""Gradients of the times at which a solution starts and ends."""

from __future__ import annotations

import torch
from torch import Tensor

from odecore.stepper import Field, column


def followed(t: float | Tensor) -> bool:
    """Whether a derivative with respect to a time is asked for."""
    if not isinstance(t, Tensor):
        return False
    return (t.requires_grad and torch.is_grad_enabled()) or torch._C._functorch.is_functorch_wrapped_tensor(t)


def moving_start(field: Field, y0: Tensor, t0: float | Tensor) -> Tensor:
    """Give an initial state the gradient of the time at which it is taken: ``∂y/∂t0 = -f(y0, t0)``.

    The solution from y0 at a later time is that from ``y0 - f dt0`` at t0. The value stays.

    Cost: one evaluation if the time has a gradient, else none.
    """
    return _moved(field, y0, t0, -1.0)


def moving_end(field: Field, y: Tensor, t1: float | Tensor, moving: Tensor | None = None) -> Tensor:
    """Give a state the gradient of the time at which it is looked at: ``∂y/∂t1 = f(y, t1)``.

    Args:
        field: f.
        y: states at t1.
        t1: one time, or one a sample.
        moving: which samples are at t1, of shape (samples,), on the host; None for all.

    Cost: one evaluation if the time has a gradient, else none.
    """
    return _moved(field, y, t1, 1.0, moving)


def shift(t: Tensor, samples: int) -> Tensor:
    """A zero for each sample, float64 on the host, that has the derivatives of a time."""
    return (t - t.detach()).to("cpu", torch.float64).expand(samples)


def _moved(field: Field, y: Tensor, t: float | Tensor, way: float, moving: Tensor | None = None) -> Tensor:
    if not followed(t):
        return y
    assert isinstance(t, Tensor)
    with torch.no_grad():
        slope = way * field(y.detach(), t.detach().to(y.device, torch.float64).expand(len(y))).detach()
        if moving is not None:  # the field may not be finite where a sample has failed
            slope = torch.where(column(moving, y), slope, torch.zeros_like(slope))
    return y + slope * column(shift(t, len(y)), y)
