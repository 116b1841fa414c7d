"""Port-Hamiltonian fields that are learned in parts and put together: passive whatever their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odecore.implicit.discrete_gradient import Energetic


def canonical(degrees: int, dtype: torch.dtype = torch.float64) -> Float[Tensor, "n n"]:
    """``J = [[0, I], [-I, 0]]`` of a mechanical system with the state (q, p)."""
    one, zero = torch.eye(degrees, dtype=dtype), torch.zeros(degrees, degrees, dtype=dtype)
    return torch.cat((torch.cat((zero, one), 1), torch.cat((-one, zero), 1)))


class Energy(nn.Module):
    """A scalar energy: a network with one output, without its last axis."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, y: Float[Tensor, "... n"]) -> Float[Tensor, " ..."]:
        """H(y)."""
        return self.network(y).squeeze(-1)


class Damping(nn.Module):
    """A factor L of the dissipation ``R = L Lᵀ``: a network gives the entries of some rows, the others are zero.

    Args:
        network: with ``len(rows) · columns`` outputs.
        rows: states that lose energy.
        size: of the state.
        columns: of L.
    """

    def __init__(self, network: nn.Module, rows: Sequence[int], *, size: int, columns: int = 1) -> None:
        super().__init__()
        self.network = network
        placed = torch.zeros(size, len(rows))
        placed[list(rows), range(len(rows))] = 1.0
        self.register_buffer("placed", placed)
        self.columns = columns
        self.placed: Tensor

    def forward(self, y: Float[Tensor, "... n"]) -> Float[Tensor, "... n columns"]:
        """L(y)."""
        entries = self.network(y).unflatten(-1, (-1, self.columns))
        return self.placed.to(entries.dtype) @ entries


class PortHamiltonian(nn.Module):
    """``dy/dt = (J - R(y)) ∇H(y) + G u`` with skew J and ``R = L Lᵀ``, and the output ``z = Gᵀ ∇H(y)``.

    Its energy obeys ``dH/dt = -∇HᵀR∇H + zᵀu ≤ zᵀu``: it is passive, trained or not. The controls u are the
    first argument of the field, ``field(y, t, u)``; without them it is the free system.

    Args:
        energy: H, a module ``(…, n) -> (…)``.
        structure: J, skew, or any square B, of which ``B - Bᵀ`` is taken.
        damping: L, a module ``(…, n) -> (…, n, k)``; None for a system that loses nothing.
        ports: G, of shape (n, inputs); None for a system without ports.
        learn_structure: whether J is trained; it stays skew.

    Raises:
        ValueError: matrices that do not fit.

    Cost: one gradient of H, one evaluation of L.

    Source: Neary & Topcu 2023, Compositional learning of dynamical system models using port-Hamiltonian neural
        networks, arXiv:2212.00893; the full text was not at hand, this is our reading.
    """

    def __init__(
        self, energy: nn.Module, structure: Float[Tensor, "n n"], *, damping: nn.Module | None = None,
        ports: Float[Tensor, "n inputs"] | None = None, learn_structure: bool = False,
    ) -> None:
        if structure.ndim != 2 or structure.shape[0] != structure.shape[1]:
            raise ValueError(f"structure has shape {tuple(structure.shape)}: give a square matrix")
        size = len(structure)
        ports = structure.new_zeros(size, 0) if ports is None else ports
        if ports.ndim != 2 or len(ports) != size:
            raise ValueError(f"ports have shape {tuple(ports.shape)}: give one row for each of {size} states")
        super().__init__()
        self.energy = energy
        self.damping = damping
        half = structure / 2 if torch.equal(structure, -structure.T) else structure
        self.upper = nn.Parameter(half.clone(), requires_grad=learn_structure)
        self.register_buffer("ports", ports)
        self.ports: Tensor

    @property
    def size(self) -> int:
        """Numbers in a state."""
        return len(self.upper)

    @property
    def skew(self) -> Float[Tensor, "n n"]:
        """J."""
        return self.upper - self.upper.T

    def dissipation(self, y: Float[Tensor, "... n"]) -> Float[Tensor, "... n n"]:
        """R(y), positive semidefinite."""
        if self.damping is None:
            return y.new_zeros(*y.shape, y.shape[-1])
        factor = self.damping(y)
        return factor @ factor.mT

    def problem(self) -> Energetic:
        """The same for :class:`~odecore.implicit.discrete_gradient.DiscreteGradient`, which keeps its balance."""
        return Energetic(self.energy, lambda y: self.skew.to(y.dtype) - self.dissipation(y),
                         lambda y, t, *args: self.inflow(y, *args))

    def gradient(self, y: Float[Tensor, "samples n"]) -> Float[Tensor, "samples n"]:
        """``∇H(y)``."""
        return torch.func.grad(lambda z: self.energy(z).sum())(y)

    def output(self, y: Float[Tensor, "samples n"]) -> Float[Tensor, "samples inputs"]:
        """``z = Gᵀ ∇H(y)``, whose product with the controls is the power that they bring in."""
        return self.gradient(y) @ self.ports.to(y.dtype)

    def inflow(self, y: Tensor, u: Float[Tensor, "samples inputs"] | None = None) -> Tensor:
        """``G u``."""
        return torch.zeros_like(y) if u is None else u @ self.ports.to(y.dtype).T

    def forward(self, y: Float[Tensor, "samples n"], t: Tensor, u: Tensor | None = None) -> Tensor:
        """The right-hand side."""
        gradient = self.gradient(y)
        flow = gradient @ self.skew.to(y.dtype).T
        if self.damping is not None:
            factor = self.damping(y)
            flow = flow - torch.einsum("...ik,...jk,...j->...i", factor, factor, gradient)
        return flow if u is None else flow + self.inflow(y, u)


class _Parts(nn.Module):
    """The same function of each part's own states."""

    def __init__(self, parts: Sequence[nn.Module], sizes: Sequence[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.sizes = list(sizes)

    def values(self, y: Tensor) -> list[Tensor]:
        return [part(own) for part, own in zip(self.parts, y.split(self.sizes, -1), strict=True)]


class _SumOfEnergies(_Parts):
    def forward(self, y: Tensor) -> Tensor:
        return torch.stack(self.values(y)).sum(0)


class _BlockDamping(_Parts):
    def forward(self, y: Tensor) -> Tensor:
        blocks = self.values(y)
        rows, columns = sum(self.sizes), sum(block.shape[-1] for block in blocks)
        whole, row, column = y.new_zeros(*y.shape[:-1], rows, columns), 0, 0
        for block in blocks:
            below, right = rows - row - block.shape[-2], columns - column - block.shape[-1]
            whole = whole + nn.functional.pad(block, (column, right, row, below))
            row, column = row + block.shape[-2], column + block.shape[-1]
        return whole


class _NoDamping(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y.new_zeros(*y.shape, 0)


def compose(
    systems: Sequence[PortHamiltonian], coupling: Float[Tensor, "n n"] | None = None, *, learn_coupling: bool = False
) -> PortHamiltonian:
    """Put systems together: ``H = Σ H_i``, ``J = blockdiag(J_i) + C``, ``R = blockdiag(R_i)``, ``G = blockdiag(G_i)``.

    The whole has the states and the controls of its parts, one after the other, shares their weights, and is
    passive as they are.

    Args:
        systems: the parts.
        coupling: C, skew; None for parts that know nothing of each other.
        learn_coupling: whether the whole J is trained.

    Raises:
        ValueError: no systems, or a coupling of another size or that is not skew.
    """
    if not systems:
        raise ValueError("systems is empty: give at least one")
    skew = torch.block_diag(*(system.skew.detach() for system in systems))
    if coupling is not None:
        if coupling.shape != skew.shape or not torch.allclose(coupling, -coupling.mT):
            raise ValueError(f"coupling has shape {tuple(coupling.shape)}: give a skew matrix of shape "
                             f"{tuple(skew.shape)}")
        skew = skew + coupling.to(skew.dtype)
    sizes = [system.size for system in systems]
    damping = _BlockDamping([_NoDamping() if s.damping is None else s.damping for s in systems], sizes)
    return PortHamiltonian(_SumOfEnergies([system.energy for system in systems], sizes), skew, damping=damping,
                           ports=torch.block_diag(*(system.ports for system in systems)),
                           learn_structure=learn_coupling)


class Coupling(NamedTuple):
    """What :func:`recover_coupling` finds.

    Attributes:
        matrix: C, skew, zero within the parts.
        residual: root mean square of what it leaves unexplained of the derivatives.
        rank: of the least-squares problem; below the number of unknowns the data do not say all of C.
        unknowns: entries of C above the diagonal that could be something.
    """

    matrix: Tensor
    residual: float
    rank: int
    unknowns: int


@torch.no_grad()
def recover_coupling(
    systems: Sequence[PortHamiltonian], y: Float[Tensor, "points n"], derivatives: Float[Tensor, "points n"],
    u: Float[Tensor, "points inputs"] | None = None,
) -> Coupling:
    """Find the skew C between known parts from a few derivatives: least squares of ``C ∇H = dy/dt - f_apart``.

    Raises:
        ValueError: tensors that do not fit.

    Cost: one evaluation of each part, and a least-squares problem with a column for each pair of states.
    """
    apart = compose(systems)
    if y.shape != derivatives.shape or y.shape[1] != apart.size:
        raise ValueError(f"y and derivatives have shapes {tuple(y.shape)} and {tuple(derivatives.shape)}: give "
                         f"(points, {apart.size})")
    part = torch.cat([torch.full((system.size,), k) for k, system in enumerate(systems)])
    pairs = torch.triu(part.unsqueeze(1) != part).nonzero()
    gradient, missing = apart.gradient(y), derivatives - apart(y, torch.zeros(len(y)), u)
    columns = torch.zeros(len(y), apart.size, len(pairs), dtype=y.dtype)
    for k, (i, j) in enumerate(pairs.tolist()):
        columns[:, i, k], columns[:, j, k] = gradient[:, j], -gradient[:, i]
    design = columns.flatten(0, 1)
    entries = torch.linalg.lstsq(design, missing.reshape(-1, 1), driver="gelsd").solution.squeeze(1)
    matrix = torch.zeros(apart.size, apart.size, dtype=y.dtype)
    matrix[pairs[:, 0], pairs[:, 1]] = entries
    residual = (missing.flatten() - design @ entries).square().mean().sqrt()
    return Coupling(matrix - matrix.T, float(residual), int(torch.linalg.matrix_rank(design)), len(pairs))
