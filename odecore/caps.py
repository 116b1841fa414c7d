"""Caps on a sphere: how large they may be, what they cover, and how fast a quantity changes between samples."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.special import betainc
from scipy.special import gamma as gamma_function
from torch import Tensor


def sphere_points(count: int, size: int, generator: torch.Generator) -> Float[Tensor, "count size"]:
    """Draw points uniformly on the unit sphere: Gaussians, normalised (uniform angles would crowd the poles)."""
    drawn = torch.randn(count, size, generator=generator, dtype=torch.float64)
    return drawn / drawn.norm(dim=1, keepdim=True)


def cap_fraction(angle: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Measure the part of a sphere within an angle of a point: ``I(sin² θ; (D-1)/2, 1/2) / 2`` for θ up to π/2.

    Args:
        angle: θ, from 0 to π (more counts as π).
        size: D, dimension of the ball; the sphere of D = 1 is two points.

    Source: Li 2011, Concise formulas for the area and volume of a hyperspherical cap,
        doi:10.3844/ajmssp.2011.66.70, equation 1.
    """
    angle = np.clip(angle, 0.0, math.pi)
    if size == 1:
        return np.where(angle >= math.pi, 1.0, 0.5)
    smaller = betainc((size - 1) / 2, 0.5, np.sin(angle) ** 2) / 2
    return np.where(angle > math.pi / 2, 1 - smaller, smaller)


def cap_arc(
    room: NDArray[np.float64], stretching: NDArray[np.float64], change: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Find how far a distance keeps within a bound: the largest s with ``λ s + Δ s²/2 ≤ room``.

    Along an arc on the sphere from a sample the distance grows no faster than the stretching there, which is at most
    ``λ + Δ s`` where Δ bounds its Lipschitz constant.

    Args:
        room: bound minus distance of the sample, not negative.
        stretching: λ of the sample.
        change: Δ, not negative.
    """
    below = stretching + np.sqrt(stretching**2 + 2 * change * room)
    return np.divide(2 * room, below, out=np.full_like(room, np.inf), where=below > 0)


def lipschitz_bound(quotients: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Bound difference quotients at a confidence level from a sample of them.

    The largest of each block of ``n^(1/4)`` follows a generalised extreme-value law; it is fitted by
    probability-weighted moments, and its quantile taken, but never less than the largest quotient seen.

    Args:
        quotients: of independent pairs, of shape (n, …), n at least 1.
        level: of confidence, between 0 and 1.

    Returns:
        One bound for each column.

    Source: Hosking, Wallis & Wood 1985, doi:10.1080/00401706.1985.10488049; the blocks as in Gruenbacher et al.
        2021, arXiv:2107.08467, lemma 1.
    """
    seen = quotients.max(0)
    block = max(1, round(len(quotients) ** 0.25))
    blocks = len(quotients) // block
    if blocks < 3:
        return seen
    maxima = np.sort(quotients[:blocks * block].reshape(block, blocks, *quotients.shape[1:]).max(0), 0)
    return np.fmax(seen, extreme_quantile(maxima, level))


def extreme_quantile(maxima: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Fit a generalised extreme-value law to sorted maxima, a column at a time; its quantile, nan where there is none.

    ``F(x) = exp(-(1 - k (x - ξ)/α)^(1/k))``
    """
    count = len(maxima)
    rank = np.arange(count, dtype=np.float64).reshape(-1, *[1] * (maxima.ndim - 1))
    b0 = maxima.mean(0)
    b1 = (rank / (count - 1) * maxima).mean(0)
    b2 = (rank * (rank - 1) / ((count - 1) * (count - 2)) * maxima).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        c = (2 * b1 - b0) / (3 * b2 - b0) - math.log(2) / math.log(3)
        k = 7.8590 * c + 2.9554 * c**2
        k = np.where(np.abs(k) < 1e-6, 1e-6, k)  # the limit is Gumbel's law
        alpha = (2 * b1 - b0) * k / (gamma_function(1 + k) * (1 - 2.0**-k))
        xi = b0 + alpha * (gamma_function(1 + k) - 1) / k
        return xi + alpha * (1 - (-math.log(level)) ** k) / k
