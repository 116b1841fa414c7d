"""Functions of an operator known by its products only, applied to a vector through a Krylov subspace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from odecore.exponential.phi_sums import PhiSum, evaluate_dense
from odecore.implicit.krylov import Operator, orthogonalise
from odecore.stepper import send

_FIRST = 4
"""Dimension at which the error is first estimated."""

_GROWTH = 1.5
"""Factor to the next such dimension: the estimates then cost little beside the products."""


class KrylovProducts(NamedTuple):
    """What :func:`krylov_phi` returns.

    Attributes:
        values: ``h f(hA) b`` for each function f, of shape (samples, n).
        converged: of shape (samples,), bool, on the device.
        iterations: products with A for the batch.
    """

    values: tuple[Tensor, ...]
    converged: Tensor
    iterations: int


class _Weights(NamedTuple):
    """``h f(hA) b ≈ Σ_j weights_j v_j`` for each function, of shape (samples, m + 1); and whether that is enough."""

    weights: tuple[Tensor, ...]
    good: Tensor


def krylov_phi(
    apply: Operator, b: Tensor, h: Tensor, sums: Sequence[PhiSum], *, allowed: Tensor, largest: int
) -> KrylovProducts:
    """Approximate ``h f(hA) b`` for sums of φ-functions f by Arnoldi's process; differentiable.

    With ``A V = V H + η v_{m+1} e_mᵀ`` and β = ‖b‖, for each term φ_k(s z) of f with its first neglected term::

        h φ_k(s h A) b ≈ h β (V φ_k(s h H) e_1 + s h η [φ_{k+1}(s h H)]_{m1} v_{m+1})

    The last summand is the error estimate. The dimension m grows until each sample is within its
    allowance; what a sample gets comes from the first dimension that was enough for it, whatever
    the batch needs.

    Args:
        apply: A, of real vectors of shape (samples, n), each sample with a matrix of its own.
        b: vectors of shape (samples, n).
        h: of shape (samples,), float64, on the host.
        sums: the functions.
        allowed: greatest norm of the error of each value, of shape (samples,), on the device.
        largest: greatest dimension of the subspace.

    Returns:
        The values, those included that did not converge.

    Raises:
        ValueError: no dimension.

    Cost: one product an iteration; for stiff symmetric A some √‖hA‖ of them, else up to ‖hA‖;
        ``largest`` + 1 vectors, and log(m) host synchronisations.

    Source: Saad 1992, doi:10.1137/0729014; Hochbruck, Lubich & Selhofer 1998,
        doi:10.1137/S1064827595295337.
    """
    if largest < 1:
        raise ValueError(f"largest={largest}: give a dimension of at least 1")
    largest = min(largest, b.shape[1])
    beta = torch.linalg.vector_norm(b, dim=1)
    vectors, columns = [b / torch.where(beta > 0, beta, 1.0).unsqueeze(1)], []
    length, scale = send(h, b.device), beta * send(h, b.device).to(beta.dtype)
    chosen: _Weights | None = None
    check = _FIRST
    for m in range(1, largest + 1):
        split = orthogonalise(torch.stack(vectors, 1), apply(vectors[-1]))
        columns.append(torch.cat((split.coefficients, split.norm.unsqueeze(1)), 1))
        vectors.append(split.unit)
        if m < min(check, largest):
            continue
        check = math.ceil(_GROWTH * m)
        hessenberg = torch.stack([pad(column, (0, m + 1 - column.shape[1])) for column in columns], 2)
        chosen = _better(chosen, _weights(hessenberg, length, scale, sums, allowed))
        if bool(chosen.good.all()):
            break
    assert chosen is not None
    basis = torch.stack(vectors, 1)
    values = tuple(torch.einsum("sk,skn->sn", weights, basis) for weights in chosen.weights)
    return KrylovProducts(values, chosen.good, len(columns))


def _weights(hessenberg: Tensor, h: Tensor, scale: Tensor, sums: Sequence[PhiSum], allowed: Tensor) -> _Weights:
    """The weights of the basis at one dimension."""
    finite = torch.isfinite(hessenberg).all(2).all(1)
    hessenberg = torch.where(finite[:, None, None], hessenberg, 0.0)
    square, last = hessenberg[:, :-1].double(), hessenberg[:, -1, -1]
    functions = evaluate_dense((*sums, *(one.raised for one in sums)), h[:, None, None] * square)
    first = [value[:, :, 0].to(scale.dtype) for value in functions]
    good, weights = finite, []
    for value, raised in zip(first[:len(sums)], first[len(sums):], strict=True):
        neglected = (h * last).to(scale.dtype) * raised[:, -1]
        weights.append(scale.unsqueeze(1) * torch.cat((value, neglected.unsqueeze(1)), 1))
        good = good & ((scale * neglected).abs() <= allowed)
    return _Weights(tuple(weights), good)


def _better(before: _Weights | None, after: _Weights) -> _Weights:
    """Keep what was good enough before."""
    if before is None:
        return after
    kept = tuple(torch.where(before.good.unsqueeze(1), pad(old, (0, new.shape[1] - old.shape[1])), new)
                 for old, new in zip(before.weights, after.weights, strict=True))
    return _Weights(kept, before.good | after.good)
