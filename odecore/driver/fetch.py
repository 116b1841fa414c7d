"""What the host asks of a device, and what it hears under :func:`torch.func.vmap`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def fetch_largest(values: Tensor) -> Tensor:
    """Copy to the host, which waits for it; of the copies that ``vmap`` makes of each value, take the largest.

    The host can go one way only, so what it decides by must not differ between mapped copies: error
    ratios, flags and statuses are fetched such that the largest is the worst.

    Args:
        values: real numbers, integers or flags of any shape.

    Returns:
        A host tensor without gradient, and without mapped axes.
    """
    if not torch._C._are_functorch_transforms_active():  # as Function.apply asks itself, after much else
        return values.detach().cpu()
    return _Largest.apply(values.detach())


def mapped(values: Any) -> bool:
    """Whether :func:`torch.func.vmap` maps a tensor, at any level of transformations."""
    functorch = torch._C._functorch
    while isinstance(values, Tensor) and functorch.is_functorch_wrapped_tensor(values):
        if functorch.is_batchedtensor(values):
            return True
        values = functorch.get_unwrapped(values)
    return False


def refuse_mapped(name: str, values: Any) -> None:
    """Refuse mapped copies of what the host decides by.

    Raises:
        ValueError: a tensor that :func:`torch.func.vmap` maps.
    """
    if mapped(values):
        raise ValueError(f"{name} differs between the copies that torch.func.vmap makes, and the host can go one way "
                         "only: make the copies further samples, which take their own steps")


_KINDS = {torch.float64: np.float64, torch.float32: np.float32, torch.int64: np.int64, torch.bool: np.bool_}


def array_of(values: Tensor) -> NDArray[Any]:
    """See a host tensor as an array, also in a function that is transformed by :mod:`torch.func`."""
    if not torch._C._are_functorch_transforms_active():
        return values.numpy()
    return np.array(values.tolist(), dtype=_KINDS[values.dtype])


class _Largest(torch.autograd.Function):
    """A copy to the host with a rule for mapped axes."""

    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return values.cpu()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> None:
        return None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> None:
        return None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], values: Tensor) -> tuple[Tensor, None]:
        return fetch_largest(values.amax(in_dims[0])), None
