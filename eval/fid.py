"""Fréchet distance between Gaussians fitted to features, from float64 sums that merge."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and covariance of features.

    Args:
        mean: float64, shape (D,).
        covariance: float64, symmetric, shape (D, D), with the divisor ``count - 1``.
        count: number of samples behind them; None if unknown.

    Raises:
        ValueError: shapes that do not fit, non-finite or asymmetric values.
    """

    mean: Float[Tensor, " features"]
    covariance: Float[Tensor, "features features"]
    count: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", self.mean.detach().cpu().double())
        object.__setattr__(self, "covariance", self.covariance.detach().cpu().double())
        if self.mean.ndim != 1 or self.covariance.shape != (len(self.mean),) * 2:
            raise ValueError(f"mean has shape {tuple(self.mean.shape)} and covariance {tuple(self.covariance.shape)}: "
                             "give (D,) and (D, D)")
        if not (self.mean.isfinite().all() and self.covariance.isfinite().all()):
            raise ValueError("mean or covariance holds non-finite values: give finite statistics")
        scale = self.covariance.abs().max().item()
        if (self.covariance - self.covariance.T).abs().max().item() > 1e-6 * scale:
            raise ValueError("covariance is not symmetric: give a covariance matrix")

    @property
    def dimension(self) -> int:
        """Number of features."""
        return len(self.mean)

    def save(self, path: str | Path) -> None:
        """Write an npz file with ``mu``, ``sigma`` (the names that FID programs share) and ``count``."""
        arrays = {"mu": self.mean.numpy(), "sigma": self.covariance.numpy()}
        if self.count is not None:
            arrays["count"] = np.array(self.count)
        np.savez(path, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Read an npz file with ``mu`` and ``sigma``, and ``count`` if it has one.

        Raises:
            ValueError: the file is missing, damaged, needs pickle, or lacks an array.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                mean, covariance = torch.from_numpy(data["mu"]), torch.from_numpy(data["sigma"])
                count = int(data["count"]) if "count" in data else None
        except FileNotFoundError as error:
            raise ValueError(f"reference statistics {path} do not exist: give an npz file with mu and sigma") from error
        except Exception as error:  # zipfile, numpy and zlib raise half a dozen kinds for a damaged file
            raise ValueError(f"{path} holds no statistics ({error}): give an npz file with mu and sigma") from error
        return cls(mean, covariance, count)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Sums over features that give their mean and covariance, and that add up over batches.

    ``sum = Σ f``, ``outer = Σ f fᵀ``; both in float64.

    Args:
        count: number of samples.
        sum: shape (D,).
        outer: shape (D, D).
    """

    count: int
    sum: Float[Tensor, " features"]
    outer: Float[Tensor, "features features"]

    @classmethod
    def empty(cls, dimension: int) -> Statistics:
        """Return the statistics of no sample."""
        zeros = torch.zeros(dimension, dimension, dtype=torch.float64)
        return cls(0, zeros.sum(0), zeros)

    @classmethod
    def of(cls, features: Float[Tensor, "batch features"]) -> Statistics:
        """Sum up one batch of features.

        Raises:
            ValueError: not a matrix, or non-finite values.
        """
        if features.ndim != 2:
            raise ValueError(f"features have shape {tuple(features.shape)}: give (batch, features)")
        f = features.detach().cpu().double()
        if not f.isfinite().all():
            raise ValueError("features hold non-finite values: the images are not finite")
        return cls(len(f), f.sum(0), f.T @ f)

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both sets of samples.

        Raises:
            ValueError: another number of features.
        """
        if self.sum.shape != other.sum.shape:
            raise ValueError(f"other has {len(other.sum)} features and self {len(self.sum)}: use one extractor")
        return Statistics(self.count + other.count, self.sum + other.sum, self.outer + other.outer)

    def moments(self) -> Moments:
        """Return mean and unbiased covariance.

        Raises:
            ValueError: fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"count={self.count}: a covariance takes at least 2 samples")
        mean = self.sum / self.count
        covariance = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return Moments(mean, (covariance + covariance.T) / 2, self.count)


def frechet_distance(a: Moments | Statistics, b: Moments | Statistics) -> float:
    """Return the squared Fréchet (2-Wasserstein) distance between two Gaussians.

    ``|μ_a - μ_b|² + tr(C_a + C_b) - 2 tr (C_a^{1/2} C_b C_a^{1/2})^{1/2}``, the last term from the
    eigenvalues of a symmetric matrix, which a general matrix root has no need of and no accuracy over.
    From few samples the estimate is biased upwards by about a constant over their number.

    Args:
        a: statistics of one set.
        b: statistics of the other.

    Returns:
        The distance, at least 0.

    Raises:
        ValueError: different numbers of features, or too few samples for a covariance.

    Warns:
        UserWarning: a set has no more samples than features, so its covariance is singular.

    Cost: two symmetric eigenvalue problems of size D.

    Source: Dowson & Landau (1982), doi:10.1016/0047-259X(82)90077-X; Heusel et al. 2017, arXiv:1706.08500.
    """
    a = a.moments() if isinstance(a, Statistics) else a
    b = b.moments() if isinstance(b, Statistics) else b
    if a.dimension != b.dimension:
        raise ValueError(f"a has {a.dimension} features and b {b.dimension}: use one extractor for both")
    for moments in (a, b):
        if moments.count is not None and moments.count <= moments.dimension:
            warnings.warn(f"{moments.count} samples for {moments.dimension} features: the covariance is singular and "
                          "the distance is biased upwards; use more samples", stacklevel=2)
    values, vectors = torch.linalg.eigh(a.covariance)
    # An eigenvalue below the rounding of the largest is zero; its root would be noise of size 1e-8.
    values = torch.where(values > values[-1] * len(values) * torch.finfo(torch.float64).eps, values, 0.0)
    root = vectors * values.sqrt()
    cross = torch.linalg.eigvalsh(root.T @ b.covariance @ root).clamp_min(0.0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(distance.item(), 0.0)
