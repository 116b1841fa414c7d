"""A denoiser of functions: the same operator on every grid, with noise that is a random function too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from odecore.learn.spde import affine
from odecore.spde import white_noise
from odecore.torus import values, wave_numbers

_SCALES = (2.0, 4.0, 8.0, 16.0)
"""Wave numbers at which the low-pass filters of a convolution fall to 1/√e: from the whole picture to its strokes."""


def noise_spectrum(modes: int, corner: float = 8.0, decay: float = 1.25) -> Float[Tensor, "..."]:
    """Standard deviations of the Fourier coefficients of the noise, ``q_k² ∝ (1 + |k|²/corner²)^{-decay}``.

    Their squares add up to 1 over all k of the plane when decay > 1, so the noise is a function of unit variance,
    whose value at a point exists; white noise has none.

    Args:
        modes: K, up to which coefficients are wanted.
        corner: wave number up to which the noise is nearly white.
        decay: above 1.

    Raises:
        ValueError: a decay for which the variance has no limit.
    """
    if not decay > 1 or not corner > 0:
        raise ValueError(f"corner={corner}, decay={decay}: give a positive corner and a decay above 1")
    square = sum((k.square() for k in wave_numbers(modes, 2)), start=torch.zeros(()).double())
    total = math.pi * corner**2 / (decay - 1)  # the sum over the plane by its integral, up to some 1/corner²
    return ((1 + square / corner**2).pow(-decay) / total).sqrt()


def function_noise(seeds: Sequence[int], points: int, *, channels: int = 1) -> Float[Tensor, "samples channels n n"]:
    """Sample random functions of about unit variance on a grid; a coarser one sees the projection of a finer one.

    Args:
        seeds: one for each sample, 0 to 2^32 - 1.
        points: n.
        channels: independent functions of a sample.

    Raises:
        ValueError: a seed out of range.
    """
    modes = (points - 1) // 2
    drawn = [white_noise(seeds, modes, dim=2, intervals=1, stream=3 + channel)[:, 0] for channel in range(channels)]
    return values(torch.stack(drawn, 1) * noise_spectrum(modes), points, 2).float()


class SpectralConvolution(nn.Module):
    """Convolve each channel with a learned combination of fixed functions of space.

    The multiplier of a channel is ``Σ_f w_f φ_f(k)`` with φ a constant, Gaussians of several widths, and their
    first and second derivatives: functions of the wave number, not of the grid, that decay where a grid may end.

    Args:
        channels: of the fields.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1 + 6 * len(_SCALES)) / math.sqrt(1 + 6 * len(_SCALES)))

    def forward(self, x: Float[Tensor, "samples channels n n"]) -> Float[Tensor, "samples channels n n"]:
        n = x.shape[-1]
        multiplier = torch.einsum("cf,fkl->ckl", self.weight.to(torch.complex64), _filters(n, x.device))
        return torch.fft.irfft2(torch.fft.rfft2(x) * multiplier.to(_complex(x)), s=(n, n))


class _Block(nn.Module):
    """``x + V silu(U (scale · norm(conv x) + shift))``, all but the convolution pointwise."""

    def __init__(self, width: int, width_embedding: int) -> None:
        super().__init__()
        self.convolution = SpectralConvolution(width)
        self.norm = nn.GroupNorm(1, width)
        self.modulation = nn.Linear(width_embedding, 2 * width)
        self.widen, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.zeros_(self.narrow.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm(self.convolution(x)), 1 + scale)
        return x + affine(self.narrow, F.silu(affine(self.widen, h)))


class SpectralDenoiser(nn.Module):
    """Map a noisy function and its noise level to a function, on whatever square grid it is sampled.

    Convolutions are multipliers in Fourier space, all else acts at each point or through integrals; finer
    grids change the result by what the non-linearities fold back from beyond the grid alone.

    Args:
        channels: of the image.
        width: features.
        blocks: how many.

    ``forward(x, c, label=None)`` takes ``x`` of shape (B, channels, n, n), a noise level ``c`` of shape (B,) of
    order one (say, log σ / 4); labels are not used.

    Source: after Fourier neural operators, Li et al. 2020, arXiv:2010.08895; diffusion of functions: Lim et al. 2023,
        arXiv:2302.07400.
    """

    def __init__(self, channels: int = 1, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.config = dict(channels=channels, width=width, blocks=blocks)
        self.frequencies = 16
        width_embedding = 2 * width
        self.embed_in = nn.Linear(2 * self.frequencies, width_embedding)
        self.embed_out = nn.Linear(width_embedding, width_embedding)
        self.stem = nn.Linear(channels + 8, width)
        self.blocks = nn.ModuleList(_Block(width, width_embedding) for _ in range(blocks))
        self.head = nn.Linear(width, channels)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        if x.ndim != 4 or x.shape[-1] != x.shape[-2]:
            raise ValueError(f"x has shape {tuple(x.shape)}: give (batch, channels, n, n)")
        phase = c[:, None] * torch.logspace(-1, 5, self.frequencies, 2.0, dtype=x.dtype, device=x.device)
        embedding = F.silu(self.embed_in(torch.cat((phase.sin(), phase.cos()), 1)))
        embedding = F.silu(self.embed_out(embedding))
        h = affine(self.stem, torch.cat((x, _places(x)), 1))
        for block in self.blocks:
            h = block(h, embedding)
        return affine(self.head, h)


def _filters(points: int, device: torch.device) -> Tensor:
    """The functions φ_f on the modes of a grid, of shape (filters, n, n // 2 + 1)."""
    first = torch.fft.fftfreq(points, 1 / points, device=device).unsqueeze(1)
    last = torch.arange(points // 2 + 1, device=device).float()
    found = [torch.ones(points, points // 2 + 1, device=device)]
    for scale in _SCALES:
        a, b = first / scale, last / scale
        low = torch.exp(-(a.square() + b.square()) / 2)
        found += [low, 1j * a * low, 1j * b * low, a.square() * low, b.square() * low, a * b * low]
    stacked = torch.stack([one.to(torch.complex64) for one in found])
    if points % 2 == 0:  # the modes without partners would not give real functions
        stacked[1:, points // 2] = 0
        stacked[1:, :, -1] = 0
    return stacked


def _places(x: Tensor) -> Tensor:
    """Functions that tell points apart: waves along each axis, of shape (B, 8, n, n)."""
    n = x.shape[-1]
    place = 2 * math.pi / n * torch.arange(n, dtype=x.dtype, device=x.device)
    waves = torch.stack([place.cos(), place.sin(), (2 * place).cos(), (2 * place).sin()])
    both = torch.cat((waves.unsqueeze(2).expand(-1, -1, n), waves.unsqueeze(1).expand(-1, n, -1)))
    return both.expand(len(x), -1, -1, -1)


def _complex(x: Tensor) -> torch.dtype:
    return torch.complex128 if x.dtype == torch.float64 else torch.complex64
