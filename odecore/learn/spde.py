"""Neural SPDEs: solution operators ``(u_0, ξ) -> u`` that are learned in the mild form and know no grid.

``z_t = S_t z_0 + ∫_0^t S_{t-s} (F(z_s) + G(z_s) ξ_s) ds``, ``z_0 = L u_0``, ``u = R(z)``: L linear, F, G and R
pointwise networks, S a learned semigroup on low Fourier modes. All that is computed between L and R lives on the modes
of S and on a grid of its own; the noise is projected on that grid, so two samplings of the same functions give the
same solution.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from odecore.exponential.tableaus import ETD_RK1, ExponentialTableau
from odecore.implicit.anderson import Anderson
from odecore.implicit.newton import RootFinder
from odecore.implicit.root import root
from odecore.learn.mild import Kernel, Semigroup, check_sizes
from odecore.spde import driven, step_plan
from odecore.torus import coefficients, mode_shape, values


class Pointwise(nn.Module):
    """``W x + V tanh(U x + b) + c`` at each point, on the channels of axis 1; forward takes x.

    Args:
        inputs: channels.
        width: of the hidden layer.
        outputs: channels.
    """

    def __init__(self, inputs: int, width: int, outputs: int) -> None:
        super().__init__()
        self.skip = nn.Linear(inputs, outputs)
        self.inner = nn.Linear(inputs, width)
        self.outer = nn.Linear(width, outputs, bias=False)

    def forward(self, x: Float[Tensor, "samples inputs ..."]) -> Float[Tensor, "samples outputs ..."]:
        """Map each point."""
        return affine(self.skip, x) + affine(self.outer, torch.tanh(affine(self.inner, x)))


class Interaction(nn.Module):
    """``H(z, ξ) = F(z) + G(z) ξ`` with ``(F, G) = tanh(W z + b)`` at each point.

    Args:
        channels: of z.
        noises: channels of ξ.

    ``forward(z, ξ)`` maps each point.
    """

    def __init__(self, channels: int, noises: int) -> None:
        super().__init__()
        self.noises = noises
        self.layer = nn.Linear(channels, channels * (1 + noises))

    def forward(self, z: Float[Tensor, "samples channels ..."], noise: Float[Tensor, "samples noises ..."]) -> Tensor:
        """H at each point."""
        both = torch.tanh(affine(self.layer, z)).unflatten(1, (1 + self.noises, -1))
        return both[:, 0] + (both[:, 1:] * noise.unsqueeze(2)).sum(1)


def affine(layer: nn.Linear, x: Float[Tensor, "samples inputs ..."]) -> Float[Tensor, "samples outputs ..."]:
    """A linear layer on axis 1."""
    flat = x.flatten(2)
    weight = layer.weight.expand(len(x), -1, -1)  # as a batch of products: the plain one copies x to other strides
    bias = flat.new_zeros(()) if layer.bias is None else layer.bias.unsqueeze(1)
    return torch.baddbmm(bias, weight, flat).unflatten(2, x.shape[2:])


@dataclass(frozen=True, slots=True)
class MildEquation:
    """``z = S z_0 + S * H(z, ξ)`` of one batch.

    Args:
        kernel: S.
        interaction: H.
        z0: spectrum of the lifted initial state, of shape (samples, channels, K).
        noise: ξ on the grid of the products, of shape (samples, noises, intervals, …).
    """

    kernel: Kernel
    interaction: nn.Module
    z0: Complex[Tensor, "samples channels K"]
    noise: Float[Tensor, "samples noises intervals ..."]

    def force(self, z: Complex[Tensor, "samples channels ... K"], noise: Float[Tensor, "samples noises ..."]) -> Tensor:
        """The spectrum of H, of one time or of several, computed on the grid of the noise."""
        dim, modes = self.kernel.dim, self.kernel.modes
        on_grid = values(z.unflatten(-1, mode_shape(modes, dim)), noise.shape[-1], dim)
        return coefficients(self.interaction(on_grid, noise), modes, dim).flatten(-dim)


class MildSolver(Protocol):
    """A way to solve a mild equation: :class:`Picard`, :class:`FixedPoint` or :class:`Exponential`."""

    def __call__(self, equation: MildEquation) -> Complex[Tensor, "samples channels times K"]:
        """The spectrum of z at the ends of all intervals, the first being z0."""


@dataclass(frozen=True, slots=True)
class Picard:
    """Iterate ``z ← S z_0 + S * H(z, ξ)`` from ``S z_0``; N intervals are exact after N iterations.

    Args:
        iterations: at least 1.

    Cost: ``iterations`` evaluations of H at all times at once; autograd keeps each.

    Raises:
        ValueError: fewer than one iteration.
    """

    iterations: int = 4

    def __post_init__(self) -> None:
        check_sizes(iterations=self.iterations)

    def __call__(self, equation: MildEquation) -> Tensor:
        """The last iterate."""
        propagator = equation.kernel.at(equation.noise.shape[2])
        free = z = propagator.start(equation.z0)
        for _ in range(self.iterations):
            z = free + propagator.convolve(equation.force(z[:, :, :-1], equation.noise))
        return z


@dataclass(frozen=True, slots=True)
class FixedPoint:
    """Find the root of ``z - S z_0 - S * H(z, ξ)``; gradients by one transposed linear system, whatever the iterations.

    Args:
        finder: the method; the tolerances given first suit float32.

    Cost: that of the finder; memory for one evaluation of H.

    Source: Salvi et al. 2021, arXiv:2110.10249; Bai, Kolter & Koltun 2019, arXiv:1909.01377.
    """

    finder: RootFinder = field(default_factory=lambda: Anderson(tolerance=1e-4, limit=40, depth=3,
                                                                adjoint_tolerance=1e-5))

    def __call__(self, equation: MildEquation) -> Tensor:
        """The root."""
        propagator = equation.kernel.at(equation.noise.shape[2])
        free = propagator.start(equation.z0)

        def residual(z: Tensor) -> Tensor:
            return z - free - propagator.convolve(equation.force(z[:, :, :-1], equation.noise))

        return root(self.finder, residual, free).z


@dataclass(frozen=True, slots=True)
class Exponential:
    """March through the intervals by an exponential Runge–Kutta plan with a weight for each channel and mode.

    ETD-RK1 has the equation that the other solvers iterate on, and solves it exactly.

    Args:
        tableau: the method.
        substeps: steps in each interval.

    Raises:
        ValueError: when called, a kernel that is no :class:`~odecore.learn.mild.Semigroup`.

    Cost: ``stages · substeps`` evaluations of H at one time for each interval.
    """

    tableau: ExponentialTableau = ETD_RK1
    substeps: int = 1

    def __call__(self, equation: MildEquation) -> Tensor:
        """The states at the ends of the intervals."""
        kernel = equation.kernel
        if not isinstance(kernel, Semigroup):
            raise ValueError(f"kernel is a {type(kernel).__name__}: an exponential integrator needs a Semigroup")
        plan = step_plan(kernel.symbol, 1 / equation.noise.shape[2], self.tableau, self.substeps)
        states = driven(plan, lambda z, noise: kernel.mixed(equation.force(z, noise)),
                        kernel.mixed(equation.z0), equation.noise.unbind(2))
        return torch.stack(states, 2)


class NeuralSPDE(nn.Module):
    """A learned solution operator of an SPDE on the unit torus, the same function of (u_0, ξ) on every grid.

    ``forward(u0, noise, points=None)`` takes the initial state of shape (samples, fields, n, …) and the noise
    of shape (samples, noises, intervals, m, …), averaged over each interval, in the unit of a horizon of length 1
    (for a horizon T multiply ξ by sqrt(T)), and gives the fields at the ends of all intervals, of shape
    (samples, fields, intervals + 1, points, …), the first at time 0. Grids n, m and points may all differ;
    a grid of the noise below ``4 · modes`` points just lacks the modes beyond it.

    Args:
        kernel: S; it fixes the modes and the dimension of space.
        channels: of the latent state, those of the kernel.
        solver: of the mild equation.
        fields: channels of u.
        noises: channels of ξ.
        width: hidden width of the readout.

    Raises:
        ValueError: a size below 1; from forward, shapes that do not fit.
    """

    def __init__(
        self, kernel: Kernel, channels: int, *, solver: MildSolver | None = None, fields: int = 1, noises: int = 1,
        width: int = 16,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, fields=fields, noises=noises, width=width)
        self.kernel, self.solver = kernel, solver or Picard()
        self.lift = nn.Linear(fields, channels)
        self.interaction = Interaction(channels, noises)
        self.readout = Pointwise(channels, width, fields)

    def equation(self, u0: Float[Tensor, "samples fields ..."], noise: Tensor) -> MildEquation:
        """The mild equation of a batch."""
        dim, modes = self.kernel.dim, self.kernel.modes
        for name, given, channels, axes in (("u0", u0, self.lift.in_features, 2),
                                            ("noise", noise, self.interaction.noises, 3)):
            if given.ndim != axes + dim or given.shape[1] != channels:
                raise ValueError(f"{name} has shape {tuple(given.shape)}: give {channels} channels on axis 1 and "
                                 f"{axes + dim} axes, the last {dim} being space")
        lifted = coefficients(affine(self.lift, u0), modes, dim).flatten(-dim)
        grid = 4 * modes
        projected = values(coefficients(noise, grid // 2 - 1, dim), grid, dim)
        return MildEquation(self.kernel, self.interaction, lifted, projected)

    def forward(self, u0: Tensor, noise: Tensor, points: int | None = None) -> Tensor:
        """Solve for a batch."""
        dim, modes = self.kernel.dim, self.kernel.modes
        z = self.solver(self.equation(u0, noise)).unflatten(-1, mode_shape(modes, dim))
        return self.readout(values(z, points or u0.shape[-1], dim))


def relative_l2(found: Float[Tensor, "samples ..."], wanted: Float[Tensor, "samples ..."]) -> Float[Tensor, ""]:
    """``mean ‖found - wanted‖ / ‖wanted‖`` over samples, norms over all else."""
    error = torch.linalg.vector_norm((found - wanted).flatten(1), dim=1)
    return (error / torch.linalg.vector_norm(wanted.flatten(1), dim=1)).mean()
