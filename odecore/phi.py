"""φ-functions and exponentially weighted quadrature, without cancellation at any step size.

``φ_0(z) = e^z`` and ``φ_k(z) = ∫_0^1 e^{z(1-θ)} θ^{k-1}/(k-1)! dθ``, so that ``φ_k(0) = 1/k!`` and
``φ_{k+1}(z) = (φ_k(z) - 1/k!)/z``. The recurrence loses all digits as z → 0 and keeps them for
large |z|; the doubling formula does the reverse. Everything here is computed in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar, overload

import numpy as np
import torch
from jaxtyping import Inexact
from numpy.typing import NDArray
from torch import Tensor

Number = TypeVar("Number", float, complex, Tensor)
Rate = TypeVar("Rate", float, Tensor)

_TERMS = 20
"""Taylor terms of φ on |z| ≤ 1: the first one left out is below 1/20! = 4e-19 of the sum."""

_POINTS = 48
"""Gauss–Legendre points on [0, 1]: for e^{zθ} with |z| ≤ _SMOOTH times a polynomial the error is below 1e-20."""

_SMOOTH = 40.0
"""Up to this |rate · h| the integrand counts as smooth and is summed up; beyond, it is expanded at its peak."""

_CHUNK = 4096
"""Rates per matrix product: bounds the memory of a product to 48 values for each of these."""


def phi(k: int, z: Number) -> Number:
    """Evaluate ``φ_k(z) = ∫_0^1 e^{z(1-θ)} θ^{k-1}/(k-1)! dθ``, with ``φ_0(z) = e^z``.

    Args:
        k: order, at least 0.
        z: number, or tensor to be taken elementwise (a diagonal, a Fourier symbol); of any size.

    Returns:
        A number or tensor of the kind of ``z``, differentiable where ``z`` is. For real z the
        relative error is some units of rounding; for complex z the error is relative to the larger
        of ``|φ_k(z)|`` and ``φ_k(Re z)`` (φ_k has complex zeros). Above Re z = 709, e^z overflows.

    Raises:
        ValueError: k is negative or no integer.

    Cost: some k² + 20 operations of the size of ``z``.

    Source: recurrence and scaling with doubling, Hochbruck & Ostermann 2010,
        doi:10.1017/S0962492910000048; Al-Mohy & Higham 2011, doi:10.1137/100788860.
    """
    _check_order(k)
    if not isinstance(z, Tensor):
        kind = torch.complex128 if isinstance(z, complex) else torch.float64
        return phi(k, torch.tensor(z, dtype=kind)).item()
    return phis(k, z)[k].to(z.dtype)


def phis(k: int, z: Tensor) -> tuple[Tensor, ...]:
    """Evaluate ``φ_0(z), …, φ_k(z)`` elementwise, for little more than φ_k alone.

    Args:
        k: highest order, at least 0.
        z: tensor of any size.

    Returns:
        Tensors of the shape of ``z``, in double precision, as exact as those of :func:`phi`.

    Raises:
        ValueError: k is negative or no integer.
    """
    _check_order(k)
    wide = z.to(_wide(z))
    # The branch that is not taken gets a harmless argument, so that no gradient turns NaN.
    levels = max(4, math.ceil(math.log2(2 * k + 1)))
    near = wide.abs() < 2.0**levels
    inside = _doubled(k, torch.where(near, wide, torch.zeros_like(wide)) / 2.0**levels, None, torch.mul,
                      torch.ones_like(wide), levels)
    outside = _recurred(k, torch.where(near, torch.full_like(wide, 2.0**levels), wide))
    return tuple(torch.where(near, one, other) for one, other in zip(inside, outside, strict=True))


def phi_dense(k: int, A: Inexact[Tensor, "*batch n n"]) -> Inexact[Tensor, "*batch n n"]:  # noqa: N803
    """Evaluate ``φ_k(A)`` of square matrices by Taylor series of a scaled matrix and doubling.

    Args:
        k: order, at least 0.
        A: real or complex matrices of shape (..., n, n).

    Returns:
        Matrices of the shape and dtype of ``A``.

    Raises:
        ValueError: k is negative or no integer, or ``A`` is not finite or not square.

    Cost: (k + 1) log2‖A‖ + 20 matrix products, and one host synchronisation for the norm. For
        strongly non-normal matrices the doubling may lose digits as matrix exponentials do.

    Source: Al-Mohy & Higham 2011, doi:10.1137/100788860; Skaflestad & Wright 2009,
        doi:10.1016/j.apnum.2008.02.009.
    """
    return phis_dense(k, A)[k].to(A.dtype)


def phis_dense(k: int, A: Inexact[Tensor, "*batch n n"]) -> tuple[Tensor, ...]:  # noqa: N803
    """Evaluate ``φ_0(A), …, φ_k(A)`` in double precision, for little more than ``phi_dense(k, A)`` alone.

    Args:
        k: highest order, at least 0.
        A: real or complex matrices of shape (..., n, n).

    Raises:
        ValueError: k is negative or no integer, or ``A`` is not finite or not square.
    """
    _check_order(k)
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"A has shape {tuple(A.shape)}: give square matrices")
    wide = A.to(_wide(A))
    norms = torch.linalg.matrix_norm(wide.detach(), 1)
    most = float(norms.max()) if A.numel() else 0.0
    if not math.isfinite(most):
        raise ValueError("A holds non-finite values: give finite matrices")
    # Each matrix is doubled as often as its own norm asks for: more would cost it digits.
    doublings = norms.clamp(min=1.0).log2().ceil()[..., None, None]
    identity = torch.eye(A.shape[-1], dtype=wide.dtype, device=A.device).expand_as(wide)
    return tuple(_doubled(k, wide / 2.0**doublings, doublings, torch.matmul, identity, math.ceil(math.log2(most + 1))))


def moments(h: float, rate: Rate, count: int) -> tuple[Rate, ...]:
    """Integrate ``∫_0^h e^{-rate (h-u)} u^k du = h^{k+1} k! φ_{k+1}(-rate h)`` for k = 0, …, count - 1.

    Args:
        h: length of the step, of either sign.
        rate: number, or tensor to be taken elementwise.
        count: how many.
    """
    return tuple(h ** (k + 1) * math.factorial(k) * phi(k + 1, -rate * h) for k in range(count))


@overload
def exponential_weights(nodes: Sequence[float], h: float, rate: float = 0.0) -> tuple[float, ...]: ...
@overload
def exponential_weights(nodes: Sequence[float], h: float, rate: Tensor) -> tuple[Tensor, ...]: ...
def exponential_weights(
    nodes: Sequence[float], h: float, rate: float | Tensor = 0.0
) -> tuple[float, ...] | tuple[Tensor, ...]:
    """Weigh the values at ``nodes`` to integrate their interpolant against an exponential kernel.

    ``w_j = ∫_0^h e^{-rate (h-u)} ℓ_j(u) du`` with the Lagrange basis ℓ_j on the nodes. For rate 0
    these are the Adams weights. Where |rate·h| ≤ 40 the integral is a Gauss–Legendre sum, whose
    terms have the signs of ℓ_j, so nothing cancels that does not cancel in the integral; beyond,
    ℓ_j is expanded at the end where the kernel peaks.

    Args:
        nodes: distinct offsets from the step's start: 0 is now, negative ones are history, positive
            ones stages. Any order, any spacing.
        h: length of the step, of either sign; ``inf`` with a single node and a rate above 0.
        rate: number, or tensor to be taken elementwise (real or complex, such as a Fourier symbol).

    Returns:
        One weight per node: numbers, or tensors of the shape and dtype of ``rate``. The error is
        below 1e-12 relative to ``∫|e^{-rate (h-u)} ℓ_j(u)| |du|``, which is ``|w_j|`` itself unless
        the node polynomial changes sign in the step.

    Raises:
        ValueError: nodes missing, equal or not finite; h not finite with several nodes or without
            decay; or a kernel that overflows.

    Cost: host arithmetic; for a tensor some 48 operations of its size for each node.

    Source: Hochbruck & Ostermann 2010, doi:10.1017/S0962492910000048, section 2.
    """
    offsets = np.asarray([float(node) for node in nodes], dtype=np.float64)
    if len(offsets) == 0 or not np.isfinite(offsets).all() or len(np.unique(offsets)) != len(offsets):
        raise ValueError(f"nodes={list(nodes)}: give at least one node; all must be finite and distinct")
    if not math.isfinite(h):
        return _infinite(offsets, h, rate)
    if not isinstance(rate, Tensor):
        if not -rate * h < 709.0:
            raise ValueError(f"rate={rate} with h={h}: the kernel e^(-rate h) overflows; take a shorter step")
        if len(offsets) == 1:  # the commonest case in closed form
            return (-math.expm1(-rate * h) / rate if rate * h != 0.0 else h,)
        exact = _weights(offsets, h, torch.tensor(float(rate), dtype=torch.float64))
        return tuple(exact.tolist())
    return tuple(_weights(offsets, h, rate.to(_wide(rate))).to(rate.dtype).unbind(-1))


def _infinite(offsets: NDArray[np.float64], h: float, rate: float | Tensor) -> tuple[float, ...] | tuple[Tensor, ...]:
    decays = bool((rate.real > 0).all()) if isinstance(rate, Tensor) else rate > 0
    if h != math.inf or len(offsets) > 1 or not decays:
        raise ValueError(f"h={h} with {len(offsets)} nodes and rate={rate}: an infinite step takes one node, h=inf "
                         "and a rate above 0")
    return (1.0 / rate,)  # type: ignore[return-value]


def _weights(offsets: NDArray[np.float64], h: float, rate: Tensor) -> Tensor:
    """Weights of shape ``(*rate.shape, nodes)`` in double precision."""
    z = (rate * h).reshape(-1)
    weights = torch.cat([_weights_chunk(offsets, h, part) for part in z.split(_CHUNK)])
    return weights.reshape(*rate.shape, len(offsets))


def _weights_chunk(offsets: NDArray[np.float64], h: float, z: Tensor) -> Tensor:
    smooth = z.abs() <= _SMOOTH
    if bool(smooth.all()):
        return _summed(offsets, h, z)
    # The branch that is not taken gets a harmless argument, so that no gradient turns NaN.
    inside = _summed(offsets, h, torch.where(smooth, z, torch.zeros_like(z)))
    outer = torch.where(smooth, torch.full_like(z, _SMOOTH), z)
    decaying = outer.real >= 0
    late = _expanded(offsets, h, h, torch.where(decaying, outer, -outer))
    early = _expanded(offsets, h, 0.0, torch.where(decaying, outer, -outer))
    growth = torch.exp(-torch.where(decaying, torch.zeros_like(outer), outer))
    outside = torch.where(decaying.unsqueeze(-1), late, growth.unsqueeze(-1) * early)
    return torch.where(smooth.unsqueeze(-1), inside, outside)


def _summed(offsets: NDArray[np.float64], h: float, z: Tensor) -> Tensor:
    """``h ∫_0^1 e^{-z(1-θ)} ℓ_j(hθ) dθ`` by Gauss–Legendre quadrature."""
    points, weights = _gauss_legendre()
    basis = np.stack([
        weights * h * np.prod([(h * points - other) / (node - other) for other in offsets if other != node], axis=0)
        for node in offsets], axis=1)
    kernel = torch.exp(-z.unsqueeze(-1) * torch.from_numpy(1.0 - points).to(z.device))
    return kernel @ torch.from_numpy(basis).to(z.device, z.dtype)


def _expanded(offsets: NDArray[np.float64], h: float, peak: float, z: Tensor) -> Tensor:
    """``h ∫_0^1 e^{-zv} ℓ_j dv``, v = distance from ``peak`` over |h|, for |z| ≥ 40 and Re z ≥ 0.

    With ``ℓ_j = Σ_k d_k v^k`` the integral is ``Σ_k d_k N_k``, where ``N_k = ∫_0^1 e^{-zv} v^k dv``
    obeys ``N_k = (k N_{k-1} - e^{-z})/z``, stable for |z| > k.
    """
    towards = -1.0 if peak == h else 1.0
    coefficients = np.zeros((len(offsets), len(offsets)))
    for j, node in enumerate(offsets):
        polynomial = np.ones(1)
        for other in offsets:
            if other != node:
                polynomial = np.convolve(polynomial, np.array([peak - other, towards * h]) / (node - other))
        coefficients[:, j] = polynomial
    decay = torch.exp(-z)
    integrals = [(1.0 - decay) / z]
    for k in range(1, len(offsets)):
        integrals.append((k * integrals[-1] - decay) / z)
    return h * torch.stack(integrals, dim=-1) @ torch.from_numpy(coefficients).to(z.device, z.dtype)


@lru_cache(maxsize=1)
def _gauss_legendre() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points, weights = np.polynomial.legendre.leggauss(_POINTS)
    return (points + 1.0) / 2.0, weights / 2.0


def _doubled(k: int, z: Tensor, doublings: Tensor | None, product: Callable[[Tensor, Tensor], Tensor], one: Tensor,
             most: int) -> list[Tensor]:
    """``φ_0, …, φ_k`` at ``2^doublings z`` for |z| ≤ 1 by Taylor series and doubling; None doubles all, ``most`` times.

    ``φ_j(2z) = 2^{-j} (φ_0(z) φ_j(z) + Σ_{i=1..j} φ_i(z)/(j-i)!)``: for real z all terms are positive.
    """
    last = one / float(math.factorial(k + _TERMS))
    for n in range(_TERMS - 1, -1, -1):
        last = product(z, last) + one / float(math.factorial(k + n))
    values = [last]  # φ_k, and below it φ_{j} = 1/j! + z φ_{j+1}, which loses nothing on |z| ≤ 1 but where φ_j is small
    for j in range(k - 1, -1, -1):
        values.insert(0, one / math.factorial(j) + product(z, values[0]))
    for level in range(most):
        doubled = [2.0**-j * sum((values[i] / math.factorial(j - i) for i in range(1, j + 1)),
                                 start=product(values[0], values[j])) for j in range(k + 1)]
        values = doubled if doublings is None else [
            torch.where(level < doublings, new, old) for new, old in zip(doubled, values, strict=True)]
    return values


def _recurred(k: int, z: Tensor) -> list[Tensor]:
    """``φ_0(z), …, φ_k(z)`` by forward recurrence, for |z| well above k."""
    values = [torch.exp(z)]
    for j in range(k):
        values.append((values[-1] - 1.0 / math.factorial(j)) / z)
    return values


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.complex128 if tensor.is_complex() else torch.float64


def _check_order(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise ValueError(f"k={k!r}: give the order of φ as an integer, at least 0")
