"""A step that keeps the energy balance of ``dy/dt = B(y) ∇H(y) + g(y, t)`` exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from odecore.implicit.newton import Chord, RootFinder
from odecore.implicit.root import root
from odecore.problem import Change, RightHandSide, require
from odecore.stepper import Carry, Field, Step, column, send


@dataclass(frozen=True, slots=True)
class Energetic:
    """``dy/dt = B(y) ∇H(y) + g(y, t)``: a flow on an energy, with states of shape (samples, n).

    A skew B conserves the energy H, a B with negative symmetric part loses it, g brings it in.

    Args:
        energy: H, ``y -> energies`` of shape (samples,).
        structure: B, ``y -> matrices`` of shape (samples, n, n).
        forcing: g, ``(y, t, *args) -> value``; None for none.
    """

    energy: Callable[[Tensor], Tensor]
    structure: Callable[[Tensor], Tensor]
    forcing: RightHandSide | None = None

    def __call__(self, y: Tensor, t: Tensor, *args: Tensor) -> Tensor:
        """The right-hand side."""
        flow = self.flow(y, self.gradient(y))
        return flow if self.forcing is None else flow + self.forcing(y, t, *args)

    def gradient(self, y: Tensor) -> Tensor:
        """``∇H(y)`` of each sample, differentiable."""
        return torch.func.grad(lambda z: self.energy(z).sum())(y)

    def flow(self, y: Tensor, gradient: Tensor) -> Tensor:
        """``B(y) v``."""
        return torch.einsum("...ij,...j->...i", self.structure(y), gradient)

    def map(self, change: Change) -> Energetic:
        """The problem with its forcing changed; energy and structure know neither time nor arguments."""
        return Energetic(self.energy, self.structure, None if self.forcing is None else change(self.forcing))


@dataclass(frozen=True, slots=True)
class DiscreteGradient:
    """Gonzalez' discrete gradient method, of order 2.

    ::

        (y⁺ - y) / h = B(ȳ) ∇̄H(y, y⁺) + g(ȳ, t + h/2)          ȳ = (y + y⁺) / 2
        ∇̄H = ∇H(ȳ) + (H(y⁺) - H(y) - ∇H(ȳ)·d) d / |d|²         d = y⁺ - y

    As ``∇̄H · d = H(y⁺) - H(y)``, the energy balance of the equation holds for the step, to the
    tolerance of the solver and the rounding of H: conserved if B is skew, never rising if it is dissipative.

    Args:
        solver: how the step is solved.

    Cost: one residual is an energy and a gradient; the iterations of the solver on n unknowns. No error estimate.

    Source: Gonzalez 1996, Time integration and discrete Hamiltonian systems, doi:10.1007/BF02440162.
    """

    solver: RootFinder = field(default_factory=lambda: Chord(tolerance=1e-12))

    @property
    def order(self) -> int:
        """The order of convergence."""
        return 2

    @property
    def error_order(self) -> int:
        """0: there is no error estimate."""
        return 0

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """Nothing to hand on."""
        return (), 0

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1."""
        problem = require(field, Energetic, "a discrete gradient method")
        length, middle = column(t1 - t0, y), send(torch.lerp(t0, t1, 0.5), y.device)
        before = problem.energy(y)

        def rise(move: Tensor) -> Tensor:
            point = y + move / 2
            flow = problem.flow(point, _gradient(problem, y, before, move))
            return length * (flow if problem.forcing is None else flow + problem.forcing(point, middle))

        found = root(self.solver, lambda move: move - rise(move), length * problem(y, middle), scale=y.abs())
        error = torch.where(found.converged.unsqueeze(1), torch.zeros_like(y), torch.inf)
        new = y + found.z
        return Step(new, (), error, torch.maximum(y.abs(), new.abs()), found.nfe + 1, found.newton)


def _gradient(problem: Energetic, y: Tensor, before: Tensor, move: Tensor) -> Tensor:
    """``∇̄H``; without a move it is the gradient."""
    middle = problem.gradient(y + move / 2)
    missed = problem.energy(y + move) - before - (middle * move).sum(1)
    square = move.square().sum(1)
    still = square == 0
    ratio = torch.where(still, 0.0, missed) / torch.where(still, 1.0, square)
    return middle + ratio.unsqueeze(1) * move
