"""How long the first step may be, from the size of the solution and of its first two derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from odecore.driver.fetch import fetch_largest
from odecore.stepper import Field, column, send


class FirstStep(NamedTuple):
    """The length of the first step.

    Attributes:
        length: of shape (samples,), float64, on the host.
        nfe: evaluations of the field that it took.
    """

    length: Tensor
    nfe: int


@torch.no_grad()
def automatic_first_step(
    field: Field, t: Tensor, direction: Tensor, y: Tensor, error_order: int, norm: Callable[[Tensor, Tensor], Tensor],
) -> FirstStep:
    """Choose each sample's first step such that an explicit Euler step would err by a hundredth of the solution.

    With ``d_0 = ‖y‖``, ``d_1 = ‖f‖`` and ``d_2 = ‖f(y + h_0 f) - f‖ / h_0``::

        h_0 = .01 d_0 / d_1        h_1 = (.01 / max(d_1, d_2))^{1/k}        h = min(100 h_0, h_1)

    Args:
        field: the right-hand side.
        t: start of each sample, float64, on the host.
        direction: 1 or -1 for each.
        y: states there.
        error_order: k, the power of h with which the error estimate shrinks.
        norm: of a tensor like y with the magnitude that relative tolerances refer to; one a sample.

    Cost: two evaluations, and one host synchronisation.

    Source: Hairer, Nørsett & Wanner 1993, Solving ordinary differential equations I, section II.4.
    """
    start, forward = send(t, y.device), send(direction, y.device)
    magnitude = y.abs()
    slope = field(y, start)
    size, speed = norm(y, magnitude).double(), norm(slope, magnitude).double()
    known = (size >= 1e-5) & (speed >= 1e-5) & torch.isfinite(speed)
    trial = torch.where(known, 0.01 * size / speed, 1e-6)
    following = field(y + column(forward * trial, y) * slope, start + forward * trial)
    bend = norm(following - slope, magnitude).double() / trial
    steepest = torch.maximum(speed, bend)
    length = torch.where(steepest > 1e-15, (0.01 / steepest) ** (1 / error_order), (1e-3 * trial).clamp(min=1e-6))
    length = torch.where(torch.isfinite(steepest), torch.minimum(100 * trial, length), trial)
    return FirstStep(-fetch_largest(-length), 2)
