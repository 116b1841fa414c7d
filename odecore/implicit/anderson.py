"""Fixed-point iteration with Anderson acceleration, every sample for itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from odecore.implicit.jacobian import Function, Inverse, MatrixFree
from odecore.implicit.newton import Measure, Root, check, measured


@dataclass(frozen=True, slots=True)
class Anderson:
    """The iteration ``z ← z - β F(z)``, extrapolated from the last m of its steps; needs no derivatives.

    With the differences ΔZ and ΔF of the last iterates and residuals, each sample takes::

        γ = argmin ‖F(z) - ΔF γ‖        z ← z - β F(z) - (ΔZ - β ΔF) γ

    It serves where F is the identity less a map that is nearly a contraction: mildly stiff equations
    and small steps. Gradients solve their transposed linear system by GMRES.

    Args:
        tolerance: relative size of ``β F(z)`` at which a sample has converged, see
            :func:`~odecore.implicit.newton.thresholds`; None as with :class:`~odecore.implicit.newton.Newton`.
        limit: most iterations.
        depth: m, at least 0; 0 is the plain iteration.
        mixing: β, above 0.
        adjoint_tolerance: relative residual of the linear systems of gradients.
        restart: largest dimension of the Krylov subspace in gradients.
        linear_limit: most Krylov iterations in gradients.

    Raises:
        ValueError: a number out of range.

    Cost: one evaluation an iteration, 2 m vectors, a least-squares problem with m unknowns a sample.

    Source: Walker & Ni 2011, Anderson acceleration for fixed-point iterations, doi:10.1137/10078356X.
    """

    tolerance: float | None = None
    limit: int = 100
    depth: int = 5
    mixing: float = 1.0
    adjoint_tolerance: float = 1e-13
    restart: int = 30
    linear_limit: int = 300

    def __post_init__(self) -> None:
        check(self.tolerance, self.limit)
        check(self.adjoint_tolerance, self.restart, "adjoint_", limit_name="restart")
        check(self.adjoint_tolerance, self.linear_limit, "linear_")
        if isinstance(self.depth, bool) or not isinstance(self.depth, int) or self.depth < 0:
            raise ValueError(f"depth={self.depth!r}: give a whole number, not negative")
        if not self.mixing > 0:
            raise ValueError(f"mixing={self.mixing}: give a factor above 0")

    @torch.no_grad()
    def find(
        self, function: Function, guess: Tensor, scale: Tensor, inverse: Inverse | None = None,
        measure: Measure | None = None,
    ) -> Root:
        """Iterate from a guess; an inverse given is not used."""
        z, iterations, size = guess.detach(), 0, measured(scale, self.tolerance, measure)
        active = torch.ones(len(z), dtype=torch.bool, device=z.device)
        converged = ~active
        iterates: list[Tensor] = []
        residuals: list[Tensor] = []
        while iterations < self.limit and bool(active.any()):
            residual = function(z)
            iterations += 1
            change = size(self.mixing * residual, z)
            converged = converged | (active & (change <= 1))
            iterates, residuals = [*iterates, z][-self.depth - 1:], [*residuals, residual][-self.depth - 1:]
            new = self._extrapolated(iterates, residuals)
            active = active & ~converged & torch.isfinite(new).all(1)
            z = torch.where(active.unsqueeze(1), new, z)
        return Root(z, converged, iterations, 0, iterations)

    def linearised(self, function: Function, z: Tensor, *, accurate: bool = False) -> tuple[Inverse, int]:
        """GMRES with the Jacobian at z: what this iteration is on linear problems."""
        return MatrixFree(function, z, self.adjoint_tolerance, self.restart, self.linear_limit), 0

    def _extrapolated(self, iterates: list[Tensor], residuals: list[Tensor]) -> Tensor:
        z, residual = iterates[-1], residuals[-1]
        step = z - self.mixing * residual
        if len(iterates) == 1:
            return step
        moves, changes = (torch.stack([b - a for a, b in zip(list_[:-1], list_[1:], strict=True)], 2)
                          for list_ in (iterates, residuals))
        weights = _least_squares(changes, residual)
        return step - torch.einsum("snm,sm->sn", moves - self.mixing * changes, weights)


def _least_squares(matrix: Float[Tensor, "samples n m"], right: Float[Tensor, "samples n"]) -> Tensor:
    """Minimise ``‖right - matrix · weights‖``, directions that differ by rounding alone left out.

    Non-finite samples give non-finite weights.
    """
    finite = torch.isfinite(matrix).all(2).all(1) & torch.isfinite(right).all(1)
    matrix = torch.where(finite.reshape(-1, 1, 1), matrix, 0.0)
    length = torch.linalg.vector_norm(matrix, dim=1, keepdim=True)
    length = torch.where(length > 0, length, 1.0)
    q, r = torch.linalg.qr(matrix / length)
    relative = 100 * torch.finfo(matrix.dtype).eps
    weights = (torch.linalg.pinv(r, rtol=relative) @ (q.mT @ right.unsqueeze(2))).squeeze(2) / length.squeeze(1)
    return torch.where(finite.unsqueeze(1), weights, torch.nan)
