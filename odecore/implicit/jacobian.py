"""Jacobians of functions that keep samples apart, and what solves linear systems with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from odecore.implicit.krylov import gmres

Function = Callable[[Tensor], Tensor]
"""A map of real vectors of shape (samples, n) in which no sample depends on another."""


class Matrices(NamedTuple):
    """Jacobians of shape (samples, n, n), and what they cost: one evaluation a row or colour of rows."""

    values: Tensor
    nfe: int


class Structure(Protocol):
    """A way to find the Jacobian of each sample."""

    def __call__(self, function: Function, z: Float[Tensor, "samples n"]) -> Matrices:
        """The Jacobians at z."""


@runtime_checkable
class Composite(Protocol):
    """A function that knows how its Jacobian is made of smaller ones."""

    def jacobian(self, structure: Structure, z: Float[Tensor, "samples n"]) -> Matrices:
        """The Jacobians at z, with those of the parts found by ``structure``."""


@runtime_checkable
class Shifted(Protocol):
    """A function whose Jacobian is ``I - reach · J``, with J that of a field."""

    @property
    def reach(self) -> Float[Tensor, "samples 1"]:
        """The h γ of the stage that it is the residual of."""


def jacobian(structure: Structure, function: Function, z: Float[Tensor, "samples n"]) -> Matrices:
    """Find the Jacobian of each sample, from parts where the function knows them."""
    return function.jacobian(structure, z) if isinstance(function, Composite) else structure(function, z)


class Linearisation:
    """A function evaluated once, to multiply its Jacobian and its transpose with any number of vectors.

    Reverse mode throughout: it is the one that every function has, and a tangent as the transpose of a
    transposed product costs no more than forward mode and does not evaluate the function again.
    """

    def __init__(self, function: Function, z: Float[Tensor, "samples n"]) -> None:
        with torch.enable_grad():
            self._z = z.detach().requires_grad_()
            self._value = function(self._z)
        self._weights: Tensor | None = None

    def pulled_back(self, v: Float[Tensor, "*batch samples n"], *, batched: bool = False) -> Tensor:
        """``Jᵀ v``; ``batched`` for a stack of them."""
        return _gradient(self._value, self._z, v, batched=batched)

    def pushed_forward(self, v: Float[Tensor, "samples n"]) -> Tensor:
        """``J v``, as the gradient of the linear map ``u -> Jᵀ u``."""
        if self._weights is None:
            self._weights = torch.zeros_like(v).requires_grad_()
            with torch.enable_grad():
                self._product = _gradient(self._value, self._z, self._weights, create_graph=True)
        return _gradient(self._product, self._weights, v)


def _gradient(
    value: Tensor, leaf: Tensor, v: Tensor, *, batched: bool = False, create_graph: bool = False
) -> Tensor:
    """``Jᵀ v``, zero where the value does not depend on the leaf."""
    if not value.requires_grad:
        return torch.zeros_like(v)
    (product,) = torch.autograd.grad(value, leaf, v, retain_graph=True, allow_unused=True, is_grads_batched=batched,
                                     create_graph=create_graph)
    return torch.zeros_like(v) if product is None else product


@dataclass(frozen=True, slots=True)
class Dense:
    """All n rows."""

    def __call__(self, function: Function, z: Float[Tensor, "samples n"]) -> Matrices:
        """The Jacobians at z."""
        n = z.shape[1]
        directions = torch.eye(n, dtype=z.dtype, device=z.device)
        return Matrices(_rows(function, z, directions).transpose(0, 1), n)


@dataclass(frozen=True, slots=True)
class Banded:
    """Rows of a banded matrix, l + u + 1 of them at distances at which they share no column.

    Args:
        lower: l, diagonals below the main one, over the entries of a sample in memory order.
        upper: u, diagonals above.

    Raises:
        ValueError: a negative number.

    Source: Curtis, Powell & Reid 1974, doi:10.1093/imamat/13.1.117.
    """

    lower: int
    upper: int

    def __post_init__(self) -> None:
        if self.lower < 0 or self.upper < 0:
            raise ValueError(f"lower={self.lower}, upper={self.upper}: give numbers of diagonals, not negative")

    def __call__(self, function: Function, z: Float[Tensor, "samples n"]) -> Matrices:
        """The Jacobians at z."""
        n = z.shape[1]
        index = torch.arange(n, device=z.device)
        colours = min(self.lower + self.upper + 1, n)
        colour = index % colours
        directions = (colour == torch.arange(colours, device=z.device).unsqueeze(1)).to(z.dtype)
        below = index.unsqueeze(1) - index
        inside = (below <= self.lower) & (below >= -self.upper)
        rows = _rows(function, z, directions).index_select(0, colour).transpose(0, 1)
        return Matrices(torch.where(inside, rows, 0.0), colours)


def _rows(function: Function, z: Tensor, directions: Tensor) -> Tensor:
    """Transposed products with each of the directions, of shape (directions, samples, n)."""
    return Linearisation(function, z).pulled_back(directions.unsqueeze(1).expand(-1, *z.shape), batched=True)


class Solved(NamedTuple):
    """Solutions of linear systems.

    Attributes:
        x: of shape (samples, n).
        krylov: Krylov iterations, each an evaluation of the function.
        residual: relative residuals of shape (samples,).
    """

    x: Tensor
    krylov: int
    residual: Tensor


class Inverse(Protocol):
    """The inverse of the Jacobian at a point."""

    def solve(self, r: Float[Tensor, "samples n"]) -> Solved:
        """``J^{-1} r``."""

    def solve_transposed(self, r: Float[Tensor, "samples n"]) -> Solved:
        """``J^{-T} r``."""


class Factors(NamedTuple):
    """LU factors of the Jacobian of each sample, and the Jacobians themselves."""

    lu: Tensor
    pivots: Tensor
    matrices: Tensor

    @classmethod
    def of(cls, matrices: Tensor) -> Factors:
        """Factor; singular matrices give solutions that are not finite."""
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrices)
        return cls(lu, pivots, matrices)

    def replaced(self, where: Bool[Tensor, " samples"], other: Factors) -> Factors:
        """The other's factors for the samples chosen."""
        square = where.reshape(-1, 1, 1)
        return Factors(torch.where(square, other.lu, self.lu),
                       torch.where(where.unsqueeze(1), other.pivots, self.pivots),
                       torch.where(square, other.matrices, self.matrices))

    def solve(self, r: Float[Tensor, "samples n"]) -> Solved:
        """``J^{-1} r``."""
        return self._solved(r, adjoint=False)

    def solve_transposed(self, r: Float[Tensor, "samples n"]) -> Solved:
        """``J^{-T} r``."""
        return self._solved(r, adjoint=True)

    def _solved(self, r: Tensor, *, adjoint: bool) -> Solved:
        x = torch.linalg.lu_solve(self.lu, self.pivots, r.unsqueeze(2), adjoint=adjoint).squeeze(2)
        return Solved(x, 0, torch.zeros_like(r[:, 0]))


@dataclass(frozen=True, slots=True)
class MatrixFree:
    """The inverse by GMRES on products with the Jacobian.

    Args:
        function: what is linearised.
        z: where.
        tolerance: relative residual.
        restart: largest dimension of the Krylov subspace.
        limit: most iterations.
        preconditioner: a linear map near the inverse, ``v -> P^{-1} v``; None for none. On the right, so that
            residuals stay those of the system; its transpose is found by autograd.
    """

    function: Function
    z: Tensor
    tolerance: float
    restart: int
    limit: int
    preconditioner: Function | None = None

    def solve(self, r: Float[Tensor, "samples n"]) -> Solved:
        """``J^{-1} r``, one evaluation and two vector–Jacobian products each iteration."""
        return self._solved(Linearisation(self.function, self.z).pushed_forward, self.preconditioner, r)

    def solve_transposed(self, r: Float[Tensor, "samples n"]) -> Solved:
        """``J^{-T} r``, one evaluation and a vector–Jacobian product each iteration."""
        transposed = None
        if self.preconditioner is not None:
            transposed = Linearisation(self.preconditioner, torch.zeros_like(r)).pulled_back
        return self._solved(Linearisation(self.function, self.z).pulled_back, transposed, r)

    def _solved(self, apply: Function, preconditioner: Function | None, r: Tensor) -> Solved:
        near = preconditioner or (lambda v: v)
        found = gmres(lambda v: apply(near(v)), r, tolerance=self.tolerance, restart=self.restart, limit=self.limit)
        return Solved(near(found.x), found.iterations, found.residual)
