"""Models whose denoiser is known exactly: Gaussian data, mixtures of Gaussians, and finite sets of images.

Each is E[x0 | x_t] for ``x_t = α x0 + σ ε`` under its distribution of x0. States are denoised in
their own dtype, or in float32 if that is shorter.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from scoremodels.follow import followed
from scoremodels.model import ScoreModel
from scoremodels.schedule import NoiseSchedule


class GaussianModel(ScoreModel):
    """Denoise data that are normally distributed.

    ``E[x0 | x] = μ + α Σ (α² Σ + σ² I)⁻¹ (x - α μ)``, in the eigenbasis of Σ.

    Args:
        mean: μ; its shape is that of a sample.
        covariance: Σ over the flattened sample, symmetric and positive semidefinite.
        schedule: noise schedule.

    Raises:
        ValueError: shapes that do not fit, or no covariance.

    Cost: one product with a D × D matrix, and one with its transpose.
    """

    def __init__(
        self, mean: Float[ArrayLike, "..."], covariance: Float[ArrayLike, "d d"], schedule: NoiseSchedule
    ) -> None:
        centre = torch.as_tensor(mean, dtype=torch.float64)
        matrix = torch.as_tensor(covariance, dtype=torch.float64)
        size = centre.numel()
        if centre.ndim == 0 or matrix.shape != (size, size):
            raise ValueError(f"covariance has shape {tuple(matrix.shape)}: a mean of shape {tuple(centre.shape)} needs "
                             f"({size}, {size})")
        if not (torch.isfinite(centre).all() and torch.isfinite(matrix).all()):
            raise ValueError("mean and covariance must be finite")
        variances, basis = torch.linalg.eigh(matrix)
        if not torch.allclose(matrix, matrix.T, rtol=1e-9, atol=1e-12) or variances[0] < -1e-9 * variances[-1].abs():
            raise ValueError("covariance is not symmetric and positive semidefinite (least eigenvalue "
                             f"{variances[0]}): symmetrise it, or add to its diagonal")
        network = _Gaussian(schedule, centre.flatten(), variances.clamp_min(0.0), basis)
        super().__init__(network, schedule, "sample", tuple(centre.shape), name="gaussian")


class MixtureModel(ScoreModel):
    """Denoise data from a mixture of isotropic Gaussians ``Σ_k w_k N(μ_k, s_k² I)``.

    ``E[x0 | x] = Σ_k r_k (μ_k + α s_k² / v_k (x - α μ_k))`` with ``v_k = α² s_k² + σ²`` and
    responsibilities ``r_k ∝ w_k N(x; α μ_k, v_k I)``.

    Args:
        means: μ_k, of shape (K, …), the dots being the shape of a sample.
        stds: s_k ≥ 0, of shape (K,).
        weights: w_k > 0, of shape (K,); they are normalised to sum to one.
        schedule: noise schedule.

    Raises:
        ValueError: shapes that do not fit, or numbers out of range.

    Cost: K distances of one sample.
    """

    def __init__(self, means: ArrayLike, stds: ArrayLike, weights: ArrayLike, schedule: NoiseSchedule) -> None:
        centres, widths, shares = (torch.as_tensor(v, dtype=torch.float64) for v in (means, stds, weights))
        count = len(centres) if centres.ndim else 0
        if centres.ndim < 2 or not count or widths.shape != (count,) or shares.shape != (count,):
            raise ValueError(f"means, stds and weights have shapes {tuple(centres.shape)}, {tuple(widths.shape)} and "
                             f"{tuple(shares.shape)}: give (K, …), (K,) and (K,)")
        if not (torch.isfinite(centres).all() and (widths >= 0).all() and torch.isfinite(widths).all()):
            raise ValueError(f"means must be finite, and stds={widths.tolist()} finite and at least 0")
        if not ((shares > 0).all() and torch.isfinite(shares).all()):
            raise ValueError(f"weights={shares.tolist()}: give positive finite numbers")
        network = _Mixture(schedule, centres.flatten(1), widths, (shares / shares.sum()).log())
        super().__init__(network, schedule, "sample", tuple(centres.shape[1:]), name="mixture")


class EmpiricalModel(ScoreModel):
    """Denoise towards a finite set of images, each of them equally likely: the best that any network can learn.

    ``E[x0 | x] = Σ_i softmax_i(-‖x - α y_i‖² / (2σ²)) y_i``.

    Args:
        images: y_i, floating-point, of shape (N, …), in the range in which the model should work.
        schedule: noise schedule.
        chunk: how many images to compare at a time.
        value_range: least and largest value of the images.

    Raises:
        ValueError: no images, integers, or values that are not finite.

    Cost: two products of (batch, D) with (D, N) in float64; memory for the images and one chunk in float64.
    """

    def __init__(
        self, images: Float[Tensor, "n ..."], schedule: NoiseSchedule, *, chunk: int = 4096,
        value_range: tuple[float, float] = (-1.0, 1.0),
    ) -> None:
        if images.ndim < 2 or not len(images) or not images.is_floating_point():
            raise ValueError(f"images have shape {tuple(images.shape)} and dtype {images.dtype}: give at least one, in "
                             "floating point; bytes become images / 127.5 - 1")
        if not torch.isfinite(images).all():
            raise ValueError("images hold values that are not finite")
        if chunk < 1:
            raise ValueError(f"chunk={chunk}: give a whole number of images, at least 1")
        super().__init__(_Empirical(schedule, images.flatten(1), chunk), schedule, "sample", tuple(images.shape[1:]),
                         name="empirical", value_range=value_range)


class _ExactDenoiser(nn.Module, ABC):
    """A network that knows α and σ, which is what exact denoisers depend on.

    The schedule answers on the host, so that times on an accelerator are waited for.
    """

    any_dtype = True

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.schedule = schedule

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        work = torch.float64 if x.dtype == torch.float64 else torch.float32
        low, high = float(self.schedule.t_clean), float(self.schedule.t_last)
        alpha, sigma = (followed(f, t, low, high)[:, None] for f in (self.schedule.alpha, self.schedule.sigma))
        mean = self.posterior_mean(x.to(work).flatten(1), alpha, sigma).to(work)
        # Without noise the state is the sample; there the formulas may divide zero by zero.
        # Its divisor is 1 elsewhere: an infinite one, though not chosen, would make gradients nan at pure noise.
        clean = x.flatten(1) / torch.where(sigma == 0.0, alpha, 1.0)
        mean = torch.where(sigma == 0.0, clean.to(work), mean)
        return mean.reshape(x.shape).to(x.dtype)

    @abstractmethod
    def posterior_mean(
        self, x: Float[Tensor, "batch d"], alpha: Float[Tensor, "batch 1"], sigma: Float[Tensor, "batch 1"]
    ) -> Float[Tensor, "batch d"]:
        """E[x0 | x], from float64 scales."""


class _Gaussian(_ExactDenoiser):
    def __init__(self, schedule: NoiseSchedule, mean: Tensor, variances: Tensor, basis: Tensor) -> None:
        super().__init__(schedule)
        self.register_buffer("mean", mean)
        self.register_buffer("variances", variances)
        self.register_buffer("basis", basis)
        self.mean: Tensor
        self.variances: Tensor
        self.basis: Tensor

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        mean, basis = self.mean.to(x.dtype), self.basis.to(x.dtype)
        gains = alpha * self.variances / (alpha.square() * self.variances + sigma.square())
        return mean + ((x - alpha.to(x.dtype) * mean) @ basis * gains.to(x.dtype)) @ basis.T


class _Mixture(_ExactDenoiser):
    def __init__(self, schedule: NoiseSchedule, means: Tensor, stds: Tensor, log_weights: Tensor) -> None:
        super().__init__(schedule)
        self.register_buffer("means", means)
        self.register_buffer("stds", stds)
        self.register_buffer("log_weights", log_weights)
        self.means: Tensor
        self.stds: Tensor
        self.log_weights: Tensor

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        x = x.double()
        variances = (alpha * self.stds).square() + sigma.square()
        offsets = x[:, None] - alpha[..., None] * self.means
        log_densities = -offsets.square().sum(-1) / (2 * variances) - x.shape[1] / 2 * variances.log()
        shares = torch.softmax(self.log_weights + log_densities, dim=1)
        gains = alpha * self.stds.square() / variances
        return torch.einsum("bk,bkd->bd", shares, self.means + gains[..., None] * offsets)


class _Empirical(_ExactDenoiser):
    def __init__(self, schedule: NoiseSchedule, images: Tensor, chunk: int) -> None:
        super().__init__(schedule)
        self.register_buffer("images", images)
        self.images: Tensor
        self.chunk = chunk

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        # ‖x‖² is the same for all images and left out. What remains cancels to a few units out of
        # 10⁸ where σ is small, which float32 does not hold.
        x = x.double()
        largest = torch.full((len(x), 1), -math.inf, dtype=torch.float64, device=x.device)
        total, weighted = torch.zeros_like(largest), torch.zeros_like(x)
        for part in self.images.split(self.chunk):
            part = part.double()
            logits = alpha * (x @ part.T - alpha / 2 * part.square().sum(1)) / sigma.square()
            peak = torch.maximum(largest, logits.amax(1, keepdim=True))
            shares = (logits - peak).exp_()
            decay = (largest - peak).exp_()
            total = total * decay + shares.sum(1, keepdim=True)
            weighted = torch.addmm(weighted * decay, shares, part)
            largest = peak
        return weighted / total
