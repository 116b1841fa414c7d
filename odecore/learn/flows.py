"""Continuous normalising flows: densities carried by an ODE."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odecore.divergence import estimated_divergence, exact_divergence
from odecore.learn.blocks import Integrator, WithTolerance


class ContinuousFlow(nn.Module):
    """A density that is standard normal noise at the start of the span, carried by a field to its end.

    ::

        dy/dt = f(y, t)        d log p(y, t)/dt = -tr ∂f/∂y

    Args:
        field: f, called with states of shape (samples, size) and one time a sample; samples must not mix.
        size: numbers in a sample.
        integrator: how it is integrated, with the log-density as one more number of the state.
        span: the time of the noise and that of the data.

    Source: Chen et al. 2018, arXiv:1806.07366, section 4; Grathwohl et al. 2019, arXiv:1810.01367.
    """

    def __init__(
        self, field: nn.Module, size: int, integrator: Integrator | None = None,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        super().__init__()
        self.field = field
        self.size = size
        self.integrator = WithTolerance() if integrator is None else integrator
        self.span = span

    def forward(
        self, x: Float[Tensor, "samples size"], probes: Float[Tensor, "samples probes size"] | None = None
    ) -> Float[Tensor, " samples"]:
        """Evaluate ``log p(x)``.

        Args:
            x: data.
            probes: ε of Hutchinson's estimate of the trace, see :func:`signs`; None for the exact trace.

        Raises:
            ValueError: data or probes of another shape.

        Cost: one solve; each evaluation with ``size`` or as many vector–Jacobian products as there are probes.
        """
        if x.ndim != 2 or x.shape[1] != self.size:
            raise ValueError(f"x has shape {tuple(x.shape)}: give (samples, {self.size})")
        start = torch.cat([x, x.new_zeros(len(x), 1)], 1)
        args = () if probes is None else (probes,)
        end = self.integrator(self._with_density, start, (self.span[1], self.span[0]), args=args,
                              parameters=self.field.parameters())[-1]
        noise, gained = end[:, :-1], end[:, -1]
        return gained - (noise.square().sum(1) + self.size * math.log(2 * math.pi)) / 2

    def sample(self, num: int, *, seed: int = 0) -> Float[Tensor, "samples size"]:
        """Carry noise of a seed to data."""
        like = next(self.field.parameters())
        noise = torch.randn(num, self.size, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)
        return self.path(noise.to(like.device), self.span)[-1]

    def path(self, noise: Float[Tensor, "samples size"], times: tuple[float, ...]) -> Float[Tensor, "times samples s"]:
        """Where noise is at times, of which the first is that of the noise."""
        return self.integrator(self.field, noise, times, parameters=self.field.parameters())

    def _with_density(self, y: Tensor, t: Tensor, *probes: Tensor) -> Tensor:
        def field(x: Tensor) -> Tensor:
            return self.field(x, t)

        found = exact_divergence(field, y[:, :-1]) if not probes else estimated_divergence(field, y[:, :-1], *probes)
        return torch.cat([found.value, found.divergence.unsqueeze(1)], 1)


def signs(x: Tensor, *, seed: int, probes: int = 1) -> Float[Tensor, "samples probes ..."]:
    """Random signs for Hutchinson's estimate, the choice of least variance."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (len(x), probes, *x.shape[1:]), generator=generator)
    return (2 * bits - 1).to(x.device, x.dtype)


def negative_log_likelihood(probes: int = 0) -> Callable[[nn.Module, tuple[Tensor, int]], Tensor]:
    """The loss that trains a flow in `fit`, of batches ``(x, seed)``.

    Args:
        probes: of the trace, new ones for each seed; 0 for the exact trace.
    """
    def loss(flow: nn.Module, batch: tuple[Tensor, int]) -> Tensor:
        x, seed = batch
        return -flow(x, signs(x, seed=seed, probes=probes) if probes else None).mean()

    return loss
