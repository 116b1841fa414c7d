"""Newton's method for many small independent systems ``F(z) = 0`` at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from odecore.implicit.jacobian import Dense, Factors, Function, Inverse, MatrixFree, Shifted, Structure, jacobian

TIGHT = 1e-10
"""Relative size of a change of a root that is as good as none, where nobody says how exact it has to be."""


_FEW = 10
"""Iterations after which a shorter step costs less than to go on."""


class Root(NamedTuple):
    """What a root finder returns.

    Attributes:
        z: roots; where none was found, the last finite iterate.
        converged: which samples met the tolerance, of shape (samples,), bool.
        newton: iterations for the batch.
        krylov: Krylov iterations for the batch.
        nfe: evaluations of F for the batch, with or without tangents.
        inverse: of the last Jacobian, for who can use it again; None if the method has none.
    """

    z: Tensor
    converged: Tensor
    newton: int
    krylov: int
    nfe: int
    inverse: Inverse | None = None


Measure = Callable[[Tensor, Tensor], Tensor]
"""``(change of z, z) -> size`` of the change of each sample; up to 1 it is none."""


class RootFinder(Protocol):
    """A method for ``F(z) = 0`` with real z of shape (samples, n), as a value."""

    def find(
        self, function: Function, guess: Tensor, scale: Tensor, inverse: Inverse | None = None,
        measure: Measure | None = None,
    ) -> Root:
        """Iterate, without gradients; an inverse found earlier may be used while it serves.

        A measure stands for a tolerance where the method has none of its own.
        """

    def linearised(self, function: Function, z: Tensor, *, accurate: bool = False) -> tuple[Inverse, int]:
        """The inverse Jacobian at z and its evaluations; ``accurate`` for gradients, close to rounding."""


def thresholds(z: Float[Tensor, "samples n"], scale: Float[Tensor, "samples n"], tolerance: float) -> Tensor:
    """How small a change of z is no change.

    ``tolerance · max(|z_i|, scale_i, RMS/1000) + 32 ε RMS`` with RMS of ``max(|z|, scale)`` over the
    sample and the rounding unit ε of its dtype: relative to each component, but no closer to zero
    than the size of the whole lets rounding come.
    """
    size = torch.maximum(z.abs(), scale)
    whole = size.square().mean(1, keepdim=True).sqrt()
    return tolerance * torch.maximum(size, 1e-3 * whole) + 32 * torch.finfo(z.dtype).eps * whole


def violation(change: Float[Tensor, "samples n"], threshold: Float[Tensor, "samples n"]) -> Tensor:
    """``RMS(change / threshold)`` of each sample; no change never violates."""
    return torch.where(change == 0, 0.0, change / threshold).square().mean(1).sqrt()


def measured(scale: Float[Tensor, "samples n"], tolerance: float | None, measure: Measure | None) -> Measure:
    """What tells how large changes are: a tolerance, else a measure, else the tolerance ``TIGHT``."""
    if tolerance is None and measure is not None:
        return measure
    return lambda change, z: violation(change, thresholds(z, scale, TIGHT if tolerance is None else tolerance))


def patience(limit: int, measure: Measure | None) -> int:
    """Most iterations: few where a driver measures, which may shorten the step instead."""
    return limit if measure is None else min(limit, _FEW)


Preconditioner = Callable[[Tensor, Tensor], Tensor]
"""``(v, reach) -> P^{-1} v``, linear in v, with P near ``I - reach · J``."""

Relinearise = Callable[[Tensor, Inverse | None, Tensor], tuple[Inverse, int]]
"""``(z, inverse so far, samples that converge slowly) -> (inverse to use, evaluations)``."""


@torch.no_grad()
def newton_iteration(
    function: Function, guess: Float[Tensor, "samples n"], relinearise: Relinearise, *, measure: Measure, limit: int,
    slow: float, inverse: Inverse | None = None,
) -> Root:
    """Repeat ``z ← z - J^{-1} F(z)`` until the change, or what the rate of convergence leaves of it, is small.

    With the sizes of changes δ_k and the rate ``θ = ‖δ_k‖ / ‖δ_{k-1}‖``, a sample has
    converged where ``θ / (1 - θ) · ‖δ_k‖ ≤ 1``, or ``‖δ_k‖ ≤ 1``. It is then left alone, so that its root
    does not depend on the batch. A change by an old Jacobian that is no smaller than the one before is
    not made.

    Args:
        function: F.
        guess: first iterate.
        relinearise: makes the inverse, before the first iteration if none is given and whenever
            samples converge slowly.
        measure: of changes.
        limit: most iterations.
        slow: rate above which a sample asks for a new linearisation.
        inverse: to start with.

    Source: Hairer & Wanner 1996, Solving ordinary differential equations II, IV.8, (8.10).
    """
    z, nfe, krylov, newton = guess.detach(), 0, 0, 0
    active = torch.ones(len(z), dtype=torch.bool, device=z.device)
    none = converged = ~active
    stale, before = active, torch.full_like(z[:, 0], torch.inf)
    renew = inverse is None
    going = True
    while going and newton < limit:
        fresh = stale if renew else none
        if renew:
            inverse, cost = relinearise(z, inverse, stale)
            nfe += cost
        assert inverse is not None
        solved = inverse.solve(torch.where(active.unsqueeze(1), -function(z), 0.0))
        newton, krylov, nfe = newton + 1, krylov + solved.krylov, nfe + 1 + solved.krylov
        size = measure(solved.x, z + solved.x)
        rate = size / before
        # An unsolved linear system must not pass for a root, nor changes that grow for progress.
        sound = torch.isfinite(size) & (solved.residual < 0.1)
        taken = active & sound & (fresh | (rate < 1))
        z = torch.where(taken.unsqueeze(1), z + solved.x, z)
        left = torch.where(rate < 0.5, rate / (1 - rate), 1.0)
        converged = converged | (taken & (torch.where(before.isfinite(), left, 1.0) * size <= 1))
        active = active & (sound | ~fresh) & ~converged
        stale = active & (~taken | (rate > slow))
        before = torch.where(taken, size, before)
        going, renew = torch.stack((active.any(), stale.any())).tolist()
    return Root(z, converged, newton, krylov, nfe, inverse)


@dataclass(frozen=True, slots=True)
class Newton:
    """Newton's method with the Jacobian of every sample at every iterate, for small systems.

    Args:
        tolerance: relative size of the change at which a sample has converged, see :func:`thresholds`; None
            takes what an adaptive driver would notice, and ``TIGHT`` elsewhere.
        limit: most iterations; under an adaptive driver 10 if it is more.
        jacobian: how Jacobians are found.

    Raises:
        ValueError: a tolerance outside of (0, 1), or a limit below 1.

    Cost: an iteration takes 1 + n evaluations, l + u + 2 with ``Banded(l, u)``, and an LU factorisation.
    """

    tolerance: float | None = None
    limit: int = 12
    jacobian: Structure = field(default_factory=Dense)

    def __post_init__(self) -> None:
        check(self.tolerance, self.limit)

    def find(
        self, function: Function, guess: Tensor, scale: Tensor, inverse: Inverse | None = None,
        measure: Measure | None = None,
    ) -> Root:
        """Iterate from a guess; an inverse given is not used."""
        return newton_iteration(function, guess, _factorised(self.jacobian, function),
                                measure=measured(scale, self.tolerance, measure), limit=patience(self.limit, measure),
                                slow=-1.0)

    def linearised(self, function: Function, z: Tensor, *, accurate: bool = False) -> tuple[Inverse, int]:
        """The factorised Jacobian at z."""
        return _factors(self.jacobian, function, z)


@dataclass(frozen=True, slots=True)
class Chord:
    """Newton's method that keeps its first Jacobian, or the one given, while it serves.

    Where a sample converges more slowly than ``slow``, its Jacobian is found anew (and only its).

    Args:
        tolerance: relative size of the change at which a sample has converged, see :func:`thresholds`; None
            takes what an adaptive driver would notice, and ``TIGHT`` elsewhere.
        limit: most iterations; under an adaptive driver 10 if it is more.
        slow: factor that an iteration must reduce the change to, between 0 and 1.
        jacobian: how Jacobians are found.

    Raises:
        ValueError: a number out of range.

    Cost: one evaluation an iteration; n more, l + u + 1 with ``Banded(l, u)``, and an LU factorisation
        for each Jacobian.
    """

    tolerance: float | None = None
    limit: int = 30
    slow: float = 0.3
    jacobian: Structure = field(default_factory=Dense)

    def __post_init__(self) -> None:
        check(self.tolerance, self.limit)
        if not 0 < self.slow < 1:
            raise ValueError(f"slow={self.slow}: give a factor between 0 and 1")

    def find(
        self, function: Function, guess: Tensor, scale: Tensor, inverse: Inverse | None = None,
        measure: Measure | None = None,
    ) -> Root:
        """Iterate from a guess, with the factors given or those of the guess."""
        return newton_iteration(function, guess, _factorised(self.jacobian, function),
                                measure=measured(scale, self.tolerance, measure), limit=patience(self.limit, measure),
                                slow=self.slow, inverse=inverse)

    def linearised(self, function: Function, z: Tensor, *, accurate: bool = False) -> tuple[Inverse, int]:
        """The factorised Jacobian at z."""
        return _factors(self.jacobian, function, z)


@dataclass(frozen=True, slots=True)
class NewtonKrylov:
    """Newton's method whose linear systems GMRES solves from products with the Jacobian, for large systems.

    Args:
        tolerance: relative size of the change at which a sample has converged, see :func:`thresholds`; None
            takes what an adaptive driver would notice, and ``TIGHT`` elsewhere.
        limit: most Newton iterations; under an adaptive driver 10 if it is more.
        linear_tolerance: relative residual of the linear systems of an iteration.
        adjoint_tolerance: the same for gradients.
        restart: largest dimension of the Krylov subspace.
        linear_limit: most Krylov iterations of a linear system.
        preconditioner: ``(v, reach) -> P^{-1} v``, linear in v, of shape (samples, n), with P near ``I - reach · J``
            and reach, of shape (samples, 1), the h γ of a stage: the linear part of a field, say, solved by
            Fourier's series. Written in differentiable operations, for gradients need its transpose.

    Raises:
        ValueError: a number out of range; when used, a preconditioner where nothing has a reach: it serves
            diagonally implicit and additive methods.

    Cost: an iteration takes an evaluation, and one with its tangent for each Krylov iteration;
        ``restart`` vectors.

    Source: Knoll & Keyes 2004, Jacobian-free Newton–Krylov methods, doi:10.1016/j.jcp.2003.08.010.
    """

    tolerance: float | None = None
    limit: int = 20
    linear_tolerance: float = 1e-2
    adjoint_tolerance: float = 1e-13
    restart: int = 30
    linear_limit: int = 300
    preconditioner: Preconditioner | None = None

    def __post_init__(self) -> None:
        check(self.tolerance, self.limit)
        check(self.linear_tolerance, self.linear_limit, "linear_")
        check(self.adjoint_tolerance, self.restart, "adjoint_", limit_name="restart")

    def find(
        self, function: Function, guess: Tensor, scale: Tensor, inverse: Inverse | None = None,
        measure: Measure | None = None,
    ) -> Root:
        """Iterate from a guess; an inverse given is not used."""
        return newton_iteration(function, guess, lambda z, *_: self.linearised(function, z),
                                measure=measured(scale, self.tolerance, measure), limit=patience(self.limit, measure),
                                slow=-1.0)

    def linearised(self, function: Function, z: Tensor, *, accurate: bool = False) -> tuple[Inverse, int]:
        """GMRES with the Jacobian at z."""
        tolerance = self.adjoint_tolerance if accurate else self.linear_tolerance
        return MatrixFree(function, z, tolerance, self.restart, self.linear_limit, self._near(function)), 0

    def _near(self, function: Function) -> Function | None:
        """The preconditioner of a function."""
        preconditioner = self.preconditioner
        if preconditioner is None:
            return None
        if not isinstance(function, Shifted):
            raise ValueError(f"preconditioner={preconditioner!r}: it serves diagonally implicit and additive methods, "
                             "whose stages have a reach h γ; leave it out elsewhere")
        reach = function.reach
        return lambda v: preconditioner(v, reach)


def _factorised(structure: Structure, function: Function) -> Relinearise:
    def relinearise(z: Tensor, inverse: Inverse | None, stale: Tensor) -> tuple[Inverse, int]:
        fresh, cost = _factors(structure, function, z)
        return (inverse.replaced(stale, fresh) if isinstance(inverse, Factors) else fresh), cost

    return relinearise


def _factors(structure: Structure, function: Function, z: Tensor) -> tuple[Factors, int]:
    matrices = jacobian(structure, function, z)
    return Factors.of(matrices.values), matrices.nfe


def check(tolerance: float | None, limit: int, prefix: str = "", *, limit_name: str = "") -> None:
    """Refuse tolerances and limits out of range.

    Raises:
        ValueError: a tolerance outside of (0, 1), or a limit that is no whole number of at least 1.
    """
    if tolerance is not None and not 0 < tolerance < 1:
        raise ValueError(f"{prefix}tolerance={tolerance}: give a relative size between 0 and 1")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise ValueError(f"{limit_name or prefix + 'limit'}={limit!r}: give a whole number, at least 1")
