"""Functions on the host, of times or of noise levels, as tensors that autograd can follow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

STEP = 1e-5
"""Relative step of the central differences: the slope is good to some ten digits."""


def followed(
    function: Callable[[NDArray[np.float64]], NDArray[np.float64]], x: Tensor, low: float = -np.inf,
    high: float = np.inf,
) -> Tensor:
    """Evaluate a smooth function element by element, and let gradients through by its difference quotient.

    ``f(x)`` exactly, with the derivative ``(f(x + h) - f(x - h)) / 2h``; one-sided where x ± h lies outside.

    Args:
        function: from float64 arrays to float64 arrays of the same shape.
        x: where to evaluate it, any shape; looked at on the host.
        low: least argument of the function.
        high: largest argument.

    Returns:
        float64 on the device of x.
    """
    at = x.detach().to("cpu", torch.float64).numpy()
    value = torch.from_numpy(np.array(function(at), dtype=np.float64)).to(x.device)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return value
    h = STEP * np.maximum(np.abs(at), STEP)
    above, below = np.minimum(at + h, high), np.maximum(at - h, low)
    slope = torch.from_numpy(np.array((function(above) - function(below)) / (above - below)))
    return value + slope.to(x.device) * (x - x.detach())
