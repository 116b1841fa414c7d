"""Latent ODEs: a series is the decoded path of a hidden state, whose start is inferred from the series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odecore.learn.blocks import Integrator, WithTolerance

Series = Float[Tensor, "samples times size"]


class Normal(NamedTuple):
    """A normal distribution with independent components.

    Attributes:
        mean: its mean.
        log_std: logarithm of its standard deviations.
    """

    mean: Tensor
    log_std: Tensor

    def divergence_from_standard(self) -> Tensor:
        """``KL(q ‖ N(0, I))`` of each sample, in nats."""
        return ((self.mean.square() + (2 * self.log_std).exp() - 1) / 2 - self.log_std).sum(-1)


class LatentODE(nn.Module):
    """A series as the decoded path of an ODE from a random start.

    ::

        q(z_0 | x) = N(μ, s²), (μ, s) by a GRU that reads the series from its end to its start
        dz/dt = f(z, t)        x_i ~ N(decoder(z(t_i)), σ² I)

    Args:
        field: f, called with latent states of shape (samples, latent) and one time a sample.
        decoder: from latent states to observations, over the last axis.
        size: numbers in an observation.
        latent: numbers in a latent state.
        hidden: width of the GRU.
        noise: σ.
        integrator: how the field is integrated.

    Source: Chen et al. 2018, arXiv:1806.07366, section 5.
    """

    def __init__(
        self, field: nn.Module, decoder: nn.Module, *, size: int, latent: int, hidden: int = 25, noise: float = 0.1,
        integrator: Integrator | None = None,
    ) -> None:
        super().__init__()
        if not noise > 0.0:
            raise ValueError(f"noise={noise}: give a positive standard deviation")
        self.field, self.decoder, self.noise = field, decoder, noise
        self.reader = nn.GRU(size + 1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 2 * latent)
        self.integrator = WithTolerance(rtol=1e-3, atol=1e-4) if integrator is None else integrator

    def posterior(self, x: Series, times: Sequence[float]) -> Normal:
        """Infer where the latent path starts, at the first time, from all observations.

        Raises:
            ValueError: another number of times than of observations.
        """
        if x.ndim != 3 or x.shape[1] != len(times):
            raise ValueError(f"x has shape {tuple(x.shape)}: give (samples, {len(times)}, size), for as many times")
        t = torch.tensor(times, dtype=torch.float64)
        gaps = torch.cat([t.diff(), t.new_zeros(1)]).to(x.device, x.dtype)  # to the observation that was read before
        _, last = self.reader(torch.cat([x, gaps[:, None].expand(len(x), -1, 1)], 2).flip(1))
        return Normal(*self.head(last[0]).chunk(2, 1))

    def decode(self, start: Float[Tensor, "samples latent"], times: Sequence[float]) -> Series:
        """Follow a latent state from the first time through the others and decode it at all of them."""
        path = self.integrator(self.field, start, times, parameters=self.field.parameters())
        return self.decoder(path.transpose(0, 1))

    def forward(self, x: Series, times: Sequence[float], wanted: Sequence[float] | None = None) -> Series:
        """Reconstruct and extrapolate: the path from the posterior's mean.

        Args:
            x: observations.
            times: of the observations.
            wanted: times of the answer, the first being that of the first observation; None for ``times``.
        """
        return self.decode(self.posterior(x, times).mean, times if wanted is None else wanted)

    def negative_elbo(self, x: Series, times: Sequence[float], seed: int) -> dict[str, Tensor]:
        """Bound ``-log p(x)`` from above, in nats a series: what to minimise in `fit`, by its two terms.

        Args:
            x: observations.
            times: of the observations.
            seed: of the draw from the posterior.
        """
        posterior = self.posterior(x, times)
        draws = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(seed)).to(posterior.mean)
        reached = self.decode(posterior.mean + posterior.log_std.exp() * draws, times)
        misfit = ((x - reached) / self.noise).square() / 2 + math.log(self.noise) + math.log(2 * math.pi) / 2
        return {"misfit": misfit.sum((1, 2)).mean(), "divergence": posterior.divergence_from_standard().mean()}
