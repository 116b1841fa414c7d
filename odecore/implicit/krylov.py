"""Krylov subspaces of many small independent systems at once: Arnoldi's basis and restarted GMRES."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Operator = Callable[[Tensor], Tensor]
"""A linear map of vectors of shape (samples, n), each sample with a matrix of its own."""


class Orthogonalised(NamedTuple):
    """A vector split along a basis: ``w = basisᵀ coefficients + norm · unit``.

    Attributes:
        coefficients: of shape (samples, size).
        norm: of shape (samples,).
        unit: of shape (samples, n); zero where the basis already holds w.
    """

    coefficients: Tensor
    norm: Tensor
    unit: Tensor


def orthogonalise(basis: Float[Tensor, "samples size n"], w: Float[Tensor, "samples n"]) -> Orthogonalised:
    """Split a vector along an orthonormal basis, by classical Gram–Schmidt twice.

    Two sweeps are orthogonal to rounding, and unlike the modified form each is two matrix products.

    Source: Giraud, Langou & Rozložník 2005, doi:10.1016/j.camwa.2005.08.009.
    """
    before = torch.linalg.vector_norm(w, dim=1)
    coefficients = torch.zeros_like(basis[..., 0])
    for _ in range(2):
        along = torch.einsum("skn,sn->sk", basis.conj(), w)
        w = w - torch.einsum("sk,skn->sn", along, basis)
        coefficients = coefficients + along
    norm = torch.linalg.vector_norm(w, dim=1)
    # What is left of a vector that the basis spans is rounding, and no direction.
    norm = torch.where(norm > 10 * torch.finfo(w.dtype).eps * before, norm, torch.zeros_like(norm))
    return Orthogonalised(coefficients, norm, w / torch.where(norm > 0, norm, torch.inf).unsqueeze(1))


class Arnoldi(NamedTuple):
    """``A V_m = V_{m+1} H`` with orthonormal V: an operator seen from a Krylov subspace.

    Attributes:
        basis: V, of shape (samples, m + 1, n); rows beyond an invariant subspace are zero.
        hessenberg: H, of shape (samples, m + 1, m).
        norm: length of the starting vector, of shape (samples,): ``start = norm · V[:, 0]``.
    """

    basis: Tensor
    hessenberg: Tensor
    norm: Tensor


def arnoldi(apply: Operator, start: Float[Tensor, "samples n"], size: int) -> Arnoldi:
    """Build an orthonormal basis of ``span(v, A v, …, A^{m-1} v)``; differentiable.

    Args:
        apply: A, which may be complex.
        start: v, one a sample.
        size: m, at least 1.

    Raises:
        ValueError: no size.

    Cost: m products with A, 2 m² inner products, m + 1 vectors.

    Source: Arnoldi 1951, doi:10.1090/qam/42792.
    """
    if size < 1:
        raise ValueError(f"size={size}: give a dimension of at least 1")
    norm = torch.linalg.vector_norm(start, dim=1)
    vectors = [start / torch.where(norm > 0, norm, 1.0).unsqueeze(1)]
    columns = []
    for j in range(size):
        split = orthogonalise(torch.stack(vectors, 1), apply(vectors[-1]))
        vectors.append(split.unit)
        column = torch.cat((split.coefficients, split.norm.to(start.dtype).unsqueeze(1)), 1)
        columns.append(torch.nn.functional.pad(column, (0, size - 1 - j)))
    return Arnoldi(torch.stack(vectors, 1), torch.stack(columns, 2), norm)


class LinearSolution(NamedTuple):
    """What :func:`gmres` returns.

    Attributes:
        x: solutions of shape (samples, n).
        residual: ``‖b - A x‖ / ‖b‖`` of shape (samples,), 0 where b is.
        converged: of shape (samples,), bool.
        iterations: products with A for the batch.
    """

    x: Tensor
    residual: Tensor
    converged: Tensor
    iterations: int


@torch.no_grad()
def gmres(
    apply: Operator, b: Float[Tensor, "samples n"], *, tolerance: float, restart: int = 30, limit: int = 300
) -> LinearSolution:
    """Solve ``A x = b`` for real matrices known by their products only, every sample for itself.

    A sample that has converged keeps its solution while others go on, so that the solution does
    not depend on the batch.

    Args:
        apply: A.
        b: right-hand sides; non-finite ones fail.
        tolerance: ``‖b - A x‖ ≤ tolerance · ‖b‖`` ends a sample, no smaller than rounding.
        restart: largest dimension of the subspace.
        limit: most products with A.

    Returns:
        The solutions, with those that were reached at the limit.

    Cost: one product an iteration and one a restart, one synchronisation each; ``restart`` vectors.

    Source: Saad & Schultz 1986, doi:10.1137/0907058.
    """
    scale = torch.linalg.vector_norm(b, dim=1)
    target = max(tolerance, 4 * torch.finfo(b.dtype).eps) * scale
    x, norm, spent = torch.zeros_like(b), scale, 0
    active = (scale > 0) & torch.isfinite(scale)
    while spent < limit and bool(active.any()):
        remaining = b
        if spent:
            remaining, spent = b - apply(x), spent + 1
        cycle = _cycle(apply, torch.where(active.unsqueeze(1), remaining, 0.0), target, min(restart, limit - spent))
        x, spent = x + cycle.x, spent + cycle.iterations
        moving = active & ~cycle.converged & (cycle.residual < norm)  # a cycle that gains nothing never will
        norm, active = torch.where(active, cycle.residual, norm), moving
    return LinearSolution(x, norm / torch.where(scale > 0, scale, 1.0), norm <= target, spent)


def _cycle(apply: Operator, b: Tensor, target: Tensor, size: int) -> LinearSolution:
    """One cycle: minimise the residual over a growing subspace, by Givens rotations of the Hessenberg matrix."""
    tip = torch.linalg.vector_norm(b, dim=1)
    active = tip > target
    vectors = [b / torch.where(tip > 0, tip, 1.0).unsqueeze(1)]
    columns: list[Tensor] = []  # of the triangle that the Hessenberg matrix is rotated to
    rotation = b.new_ones(len(b), 1, 1)  # the product of all rotations so far
    right: list[Tensor] = []  # what the right-hand side is rotated to; its tip is the residual
    while len(columns) < size and bool(active.any()):
        split = orthogonalise(torch.stack(vectors, 1), apply(vectors[-1]))
        column = (rotation @ split.coefficients.unsqueeze(2)).squeeze(2)
        last = column[:, -1]
        radius = torch.hypot(last, split.norm)
        useful = active & (radius != 0)
        cosine = torch.where(useful, last / radius, 1.0)
        sine = torch.where(useful, split.norm / radius, 0.0)
        rotation = _extended(rotation, cosine, sine)
        # The columns of a sample at rest are those of the identity, and their coefficients zero.
        columns.append(torch.cat((torch.where(useful.unsqueeze(1), column[:, :-1], 0.0),
                                  torch.where(useful, radius, 1.0).unsqueeze(1)), 1))
        right.append(torch.where(useful, cosine * tip, 0.0))
        tip = torch.where(useful, -sine * tip, tip)
        vectors.append(split.unit)
        active = useful & (tip.abs() > target) & (split.norm > 0)
    if not columns:
        return LinearSolution(torch.zeros_like(b), tip.abs(), tip.abs() <= target, 0)
    upper = torch.stack([torch.nn.functional.pad(c, (0, len(columns) - c.shape[1])) for c in columns], 2)
    y = torch.linalg.solve_triangular(upper, torch.stack(right, 1).unsqueeze(2), upper=True).squeeze(2)
    x = torch.einsum("sk,skn->sn", y, torch.stack(vectors[:-1], 1))
    return LinearSolution(x, tip.abs(), tip.abs() <= target, len(columns))


def _extended(rotation: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Let a rotation of the last row and of one more follow."""
    *upper, above = torch.nn.functional.pad(rotation, (0, 1)).unbind(1)
    below = torch.zeros_like(above)
    below[:, -1] = 1.0
    cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    return torch.stack((*upper, cosine * above + sine * below, cosine * below - sine * above), 1)
