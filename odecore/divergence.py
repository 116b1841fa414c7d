"""Divergence of a field, exactly or by Hutchinson's estimate, together with its value."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Divergence(NamedTuple):
    """A field and its divergence at one place for each sample.

    Attributes:
        value: f(y), of the shape of y.
        divergence: ``tr ∂f/∂y`` of each sample, or its estimate, of shape (samples,).
    """

    value: Tensor
    divergence: Tensor


def exact_divergence(
    function: Callable[[Tensor], Tensor], y: Float[Tensor, "samples ..."], *, chunk: int = 64
) -> Divergence:
    """Evaluate a function and the trace of its Jacobian, ``Σ_i e_iᵀ (∂f/∂y) e_i``.

    Args:
        function: of y, with a value of the same shape; samples must not mix.
        y: of shape (samples, …), with D numbers a sample.
        chunk: rows of the Jacobian to compute at once.

    Returns:
        Value and divergence, differentiable as the function is.

    Raises:
        ValueError: chunk is not positive.

    Cost: one evaluation and D vector–Jacobian products, ``chunk`` at a time; memory of ``chunk`` states beside
        the graph of the evaluation.
    """
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: give at least 1 row of the Jacobian")
    value, pull_back = _linearised(function, y)
    size = y[0].numel()
    units = torch.eye(size, dtype=y.dtype, device=y.device).reshape(size, 1, *y.shape[1:])
    total = torch.zeros(len(y), dtype=y.dtype, device=y.device)
    for part in units.split(chunk):
        rows = pull_back(part.expand(-1, *y.shape))
        total = total + (rows * part).flatten(2).sum((0, 2))
    return Divergence(value, total)


def estimated_divergence(
    function: Callable[[Tensor], Tensor], y: Float[Tensor, "samples ..."], probes: Float[Tensor, "samples probes ..."]
) -> Divergence:
    """Evaluate a function and Hutchinson's estimate of its divergence, the mean of ``εᵀ (∂f/∂y) ε`` over probes.

    It is unbiased for random ε with ``E εεᵀ = I``. Within one solve ε has to stay the same, or the field would
    not be a function of time.

    Args:
        function: of y, with a value of the same shape; samples must not mix.
        y: of shape (samples, …).
        probes: ε, one or more for each sample.

    Returns:
        Value and estimate, differentiable as the function is.

    Raises:
        ValueError: probes of another shape, or none.

    Cost: one evaluation, and a vector–Jacobian product for each probe.

    Source: Hutchinson 1990, doi:10.1080/03610919008812866; Grathwohl et al. 2019, arXiv:1810.01367.
    """
    if probes.ndim != y.ndim + 1 or probes.shape[0] != len(y) or probes.shape[2:] != y.shape[1:] or not probes.shape[1]:
        raise ValueError(f"probes have shape {tuple(probes.shape)}: give (samples, probes, …) for states of shape "
                         f"{tuple(y.shape)}, with at least one probe")
    value, pull_back = _linearised(function, y)
    total = (pull_back(probes.transpose(0, 1)) * probes.transpose(0, 1)).flatten(2).sum((0, 2))
    return Divergence(value, total / probes.shape[1])


def _linearised(function: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A function's value, and what multiplies stacked cotangents with its Jacobian.

    By autograd rather than :func:`torch.func.vjp`, under which a function may not read numbers off its tensors.
    """
    following = torch.is_grad_enabled()
    with torch.enable_grad():
        point = y if following and y.requires_grad else y.detach().requires_grad_()
        value = function(point)

    def pull_back(cotangents: Tensor) -> Tensor:
        several = len(cotangents) > 1
        (rows,) = torch.autograd.grad(value, point, cotangents if several else cotangents[0], retain_graph=True,
                                      create_graph=following, is_grads_batched=several)
        return rows if several else rows.unsqueeze(0)

    return value if following else value.detach(), pull_back
