"""Real functions on the unit torus by their low Fourier modes, whatever the grid that they are sampled on.

A function is ``u(x) = Σ_{|k_i| ≤ K} c_k e^{2πi k·x}`` on [0, 1)^d. Its coefficients do not depend on the grid, so
what is computed from them alone does not either. They are stored as `rfftn` stores them: the last axis holds
k = 0, …, K, the others 0, …, K, -K, …, -1.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor


def mode_shape(modes: int, dim: int) -> tuple[int, ...]:
    """Shape of the coefficients with |k| ≤ modes."""
    return (*[2 * modes + 1] * (dim - 1), modes + 1)


def wave_numbers(modes: int, dim: int) -> tuple[Float[Tensor, "..."], ...]:
    """The component of k along each axis, of shapes that broadcast to that of the coefficients; float64."""
    _check(modes, dim)
    whole = torch.cat((torch.arange(modes + 1), torch.arange(-modes, 0))).double()
    axes = [whole] * (dim - 1) + [whole[: modes + 1]]
    return tuple(torch.meshgrid(*axes, indexing="ij"))


def laplacian(modes: int, dim: int) -> Float[Tensor, "..."]:
    """The symbol ``-4π² |k|²`` of Δ; float64."""
    return -4 * math.pi**2 * sum((k.square() for k in wave_numbers(modes, dim)), start=torch.zeros(()).double())


def coefficients(values: Float[Tensor, "..."], modes: int, dim: int) -> Complex[Tensor, "..."]:
    """The coefficients with |k| ≤ modes of functions sampled at the points j/n; those beyond the grid are zero.

    The mode at half the number of points, which has no partner, is left out.

    Args:
        values: of shape (…, n, …), the last ``dim`` axes being space.
        modes: K, at least 0.
        dim: d, at least 1.

    Raises:
        ValueError: a number out of range.
    """
    _check(modes, dim)
    found = torch.fft.rfftn(values, dim=tuple(range(-dim, 0)), norm="forward")
    kept = [min(modes, (n - 1) // 2) for n in values.shape[-dim:]]
    found = _resized(found[..., : kept[-1] + 1], kept[:-1], [2 * modes + 1] * (dim - 1))
    return _padded(found, modes + 1)


def values(coefficients: Complex[Tensor, "..."], points: int, dim: int) -> Float[Tensor, "..."]:
    """Functions at the points j/n, ``j = 0, …, n - 1`` along each axis; modes beyond the grid are left out.

    Args:
        coefficients: as :func:`coefficients` returns them.
        points: n, at least 1.
        dim: d.

    Raises:
        ValueError: a number out of range.
    """
    if points < 1:
        raise ValueError(f"points={points}: give at least 1")
    modes = coefficients.shape[-1] - 1
    _check(modes, dim)
    kept = min(modes, (points - 1) // 2)
    wide = _resized(coefficients[..., : kept + 1], [kept] * (dim - 1), [points] * (dim - 1))
    return torch.fft.irfftn(wide, s=[points] * dim, dim=tuple(range(-dim, 0)), norm="forward")


def resampled(samples: Float[Tensor, "..."], points: int, dim: int) -> Float[Tensor, "..."]:
    """Project functions on the modes of another grid and sample them there."""
    return values(coefficients(samples, (points - 1) // 2, dim), points, dim)


def _resized(spectrum: Tensor, kept: list[int], sizes: list[int]) -> Tensor:
    """Keep 0…m and -m…-1 along each axis before the last, with zeros between them to the size."""
    for offset, (m, size) in enumerate(zip(reversed(kept), reversed(sizes), strict=True)):
        axis = spectrum.ndim - 2 - offset
        length = spectrum.shape[axis]
        if length == size == 2 * m + 1:
            continue
        shape = list(spectrum.shape)
        shape[axis] = size - 2 * m - 1
        spectrum = torch.cat((spectrum.narrow(axis, 0, m + 1), spectrum.new_zeros(shape),
                              spectrum.narrow(axis, length - m, m)), axis)
    return spectrum


def _padded(spectrum: Tensor, size: int) -> Tensor:
    missing = size - spectrum.shape[-1]
    if missing == 0:
        return spectrum
    return torch.cat((spectrum, spectrum.new_zeros(*spectrum.shape[:-1], missing)), -1)


def _check(modes: int, dim: int) -> None:
    if modes < 0:
        raise ValueError(f"modes={modes}: give at least 0")
    if dim < 1:
        raise ValueError(f"dim={dim}: give at least 1")
