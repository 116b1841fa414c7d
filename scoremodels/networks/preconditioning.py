"""Wrappers that stand between a network's own arguments and a model's state and time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def evaluate_in_own_dtype(
    network: Callable[[Tensor, Tensor, Tensor | None], Tensor], x: Tensor, t: Tensor, condition: Tensor | None
) -> Tensor:
    """Evaluate a network in the dtype of its parameters; the result is in that of ``x``."""
    parameters = network.parameters() if isinstance(network, nn.Module) else ()
    dtype = next((p.dtype for p in parameters if p.is_floating_point()), x.dtype)
    return network(x.to(dtype), t, condition).to(x.dtype)


class EDMInput(nn.Module):
    """Scale the state and the noise level for an EDM network: ``F = body(c_in(σ) x, log(σ)/4, label)``.

    Args:
        body: the raw network F.
        sigma_data: standard deviation of the data.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    any_dtype = True

    def __init__(self, body: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.body = body
        self.sigma_data = float(sigma_data)

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return self._raw(x, sigma, condition).to(x.dtype)

    def _raw(self, x: Tensor, sigma: Tensor, condition: Tensor | None) -> Tensor:
        c_in = torch.rsqrt(sigma.square() + self.sigma_data**2).reshape(-1, *[1] * (x.ndim - 1))
        # σ = 0 has no logarithm; the output's weight is zero there, so any finite number will do.
        c_noise = sigma.clamp_min(1e-30).log() / 4
        return evaluate_in_own_dtype(self.body, x * c_in, c_noise, condition)


class EDMPreconditioned(EDMInput):
    """EDM's denoiser: ``D(x; σ) = c_skip(σ) x + c_out(σ) F``, F as in :class:`EDMInput`.

    With ``c_skip = σ_d²/(σ² + σ_d²)`` and ``c_out = σ σ_d/sqrt(σ² + σ_d²)``; the sum is taken in the
    state's dtype, whatever the body's.
    """

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        inverse = torch.rsqrt(sigma.square() + self.sigma_data**2)
        skip = (self.sigma_data * inverse).square()
        out = sigma * self.sigma_data * inverse
        skip, out = (c.reshape(-1, *[1] * (x.ndim - 1)) for c in (skip, out))
        return torch.addcmul(skip * x, out, self._raw(x, sigma, condition)).to(x.dtype)


class FlowTime(nn.Module):
    """Tell a network the log-odds of a flow's time: ``body(x, log(t/(1-t))/4, label)``, cut at ±2.

    Args:
        body: the network.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.body(x, (torch.logit(t) / 4).clamp(-2.0, 2.0), condition)


class ScaledTime(nn.Module):
    """Tell a network ``scale · t``, as score_sde's VP networks are told 999 t for t in [0, 1].

    Args:
        body: the network.
        scale: of the time.
    """

    def __init__(self, body: nn.Module, scale: float) -> None:
        super().__init__()
        self.body = body
        self.scale = float(scale)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.body(x, self.scale * t, condition)


class VEInput(nn.Module):
    """Tell a network the noise level: ``ε = -body(x, log(σ/2), label)`` for data in [-1, 1].

    Score_sde's VE networks are told log σ for data in [0, 1], whose σ is half as large, and give σ times the score.

    Args:
        body: the network.

    Source: Song et al. 2021, arXiv:2011.13456; Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None = None) -> Tensor:
        return -self.body(x, (0.5 * sigma).clamp_min(1e-30).log(), condition)


class ReversedFlow(nn.Module):
    """Turn a flow's clock round: ``ε - x0 = -body(x, 1 - t, label)``, where the body's time is 1 at the data.

    Args:
        body: the network, which gives x0 - ε.

    Source: Ma et al. 2024, arXiv:2401.08740.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return -self.body(x, 1 - t, condition)
