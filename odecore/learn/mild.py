"""Learned semigroups: the linear part of a neural SPDE, as a kernel in time for each low Fourier mode.

Time is counted from 0 to 1, the horizon. Spectra have shape (samples, channels, times, K) with all modes on one axis.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Complex
from torch import Tensor, nn

from odecore.phi import phi
from odecore.torus import laplacian, mode_shape


class Propagator(NamedTuple):
    """A semigroup on a uniform grid of N intervals, ready for convolutions.

    Attributes:
        free: S at the lags 0, …, N, of shape (out, in, N + 1, K), or (channels, N + 1, K) where it mixes no channels.
        response: the transform in time of the weights of a force in the intervals before; likewise with 2N lags.
        mix: (out, in, K), what states and forces go through first; None for nothing.
    """

    free: Tensor
    response: Tensor
    mix: Tensor | None

    @classmethod
    def of(cls, free: Tensor, weights: Tensor, mix: Tensor | None = None) -> Propagator:
        """From the weights of a force 1, …, N intervals back."""
        before = torch.zeros_like(weights[..., :1, :])
        return cls(free, torch.fft.fft(torch.cat((before, weights), -2), 2 * weights.shape[-2], dim=-2), mix)

    def start(self, z0: Complex[Tensor, "samples channels K"]) -> Complex[Tensor, "samples channels times K"]:
        """``S_t z_0`` at all times."""
        return _weighted(self.free, self._mixed(z0.unsqueeze(2)))

    def convolve(
        self, force: Complex[Tensor, "samples channels intervals K"]
    ) -> Complex[Tensor, "samples channels times K"]:
        """``∫_0^t S_{t-s} H_s ds`` at all times, for a force H that is constant in each interval."""
        intervals = force.shape[2]
        spectrum = torch.fft.fft(self._mixed(force), 2 * intervals, dim=2)
        return torch.fft.ifft(_weighted(self.response, spectrum), dim=2)[:, :, : intervals + 1]

    def _mixed(self, force: Tensor) -> Tensor:
        return force if self.mix is None else torch.einsum("oik,bitk->botk", self.mix, force)


def _weighted(weights: Tensor, spectrum: Tensor) -> Tensor:
    if weights.ndim == 3:
        return weights * spectrum
    return torch.einsum("oitk,bitk->botk", weights, spectrum.expand(-1, -1, weights.shape[2], -1))


class Kernel(Protocol):
    """A learned semigroup: what :class:`FourierKernel` and :class:`Semigroup` are."""

    modes: int
    dim: int

    def at(self, intervals: int) -> Propagator:
        """The semigroup on a grid of so many intervals."""


class FourierKernel(nn.Module):
    """A kernel by low modes of space and time, ``S_t = Σ_m Θ_{k,m} e^{πi m t}`` for each mode k of space.

    The sum is read on [0, 1] alone and is zero before, so that the convolution is causal; its period 2 leaves
    the kernel free to differ at both ends. A force is held at the left end of each interval.

    Args:
        channels: of the latent state.
        modes: largest wave number of space, along each axis.
        modes_time: |m| ≤ modes_time: up to half as many cycles in the horizon.
        dim: dimension of space.

    Raises:
        ValueError: a number below 1.

    Source: Salvi, Lemercier & Gerasimovics 2021, arXiv:2110.10249 (there the kernel is periodic over the horizon).
    """

    def __init__(self, channels: int, modes: int, modes_time: int, *, dim: int = 1) -> None:
        super().__init__()
        check_sizes(channels=channels, modes=modes, modes_time=modes_time, dim=dim)
        self.modes, self.dim, self.modes_time = modes, dim, modes_time
        count = math.prod(mode_shape(modes, dim))
        scale = 0.1 / channels**2
        self.theta = nn.Parameter(scale * torch.randn(channels, channels, 2 * modes_time + 1, count, 2))

    def at(self, intervals: int) -> Propagator:
        """The kernel at the lags of a grid."""
        theta = torch.view_as_complex(self.theta)
        lags = torch.arange(intervals + 1, device=theta.device, dtype=torch.float64) / intervals
        m = torch.arange(-self.modes_time, self.modes_time + 1, device=theta.device)
        basis = torch.polar(torch.ones(()).to(lags), math.pi * lags.unsqueeze(1) * m).to(theta.dtype)
        free = torch.einsum("tm,oimk->oitk", basis, theta)
        return Propagator.of(free, free[:, :, 1:] / intervals)


class Semigroup(nn.Module):
    """An ODE for each mode, ``S_t = e^{λ_k t} M_k``, with a learned symbol λ and a learned mixing M of channels.

    λ has one value for each channel and mode, with a negative real part; at first the channels are heat
    equations of different diffusivities. On intervals with a constant force the solution is exact::

        ẑ(t_n) = e^{λ t_n} M ẑ_0 + Σ_{j<n} e^{λ (n-1-j) h} h φ_1(λh) M H_j

    Args:
        channels: of the latent state.
        modes: largest wave number of space, along each axis.
        dim: dimension of space.
        diffusivity: smallest and largest at first, in horizons.

    Raises:
        ValueError: a number below 1, or diffusivities that are not positive.
    """

    def __init__(
        self, channels: int, modes: int, *, dim: int = 1, diffusivity: tuple[float, float] = (1e-3, 0.3)
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, modes=modes, dim=dim)
        if not 0 < diffusivity[0] <= diffusivity[1]:
            raise ValueError(f"diffusivity={diffusivity}: give two positive numbers, the smaller first")
        self.modes, self.dim = modes, dim
        rates = torch.logspace(math.log10(diffusivity[0]), math.log10(diffusivity[1]), channels)
        decay = 0.1 - rates.unsqueeze(1) * laplacian(modes, dim).flatten().float()
        self.log_decay = nn.Parameter(decay.log())
        self.frequency = nn.Parameter(torch.zeros_like(decay))
        mix = torch.eye(channels).unsqueeze(2).expand(-1, -1, decay.shape[1])
        self.mix = nn.Parameter(torch.stack((mix, torch.zeros_like(mix)), -1))

    @property
    def symbol(self) -> Complex[Tensor, "channels K"]:
        """λ."""
        return torch.complex(-self.log_decay.exp(), self.frequency)

    def mixed(self, force: Complex[Tensor, "samples channels ... K"]) -> Tensor:
        """``M`` times an initial state or a force."""
        return torch.einsum("oik,bi...k->bo...k", torch.view_as_complex(self.mix), force)

    def at(self, intervals: int) -> Propagator:
        """The semigroup at the lags of a grid."""
        symbol, h = self.symbol, 1 / intervals
        lags = torch.arange(intervals + 1, device=symbol.device, dtype=symbol.real.dtype).unsqueeze(1) * h
        free = (lags * symbol.unsqueeze(1)).exp()
        weights = free[:, :-1] * (h * phi(1, h * symbol)).unsqueeze(1)
        return Propagator.of(free, weights, torch.view_as_complex(self.mix))


def check_sizes(**sizes: int) -> None:
    """Refuse sizes below 1.

    Raises:
        ValueError: one of them.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size}: give at least 1")
