"""What a network is told besides the state: sinusoids of a time, and class labels."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoids(t: Float[Tensor, " batch"], width: int, *, last: int) -> Float[Tensor, "batch width"]:
    """Give ``[cos(ω_i t), sin(ω_i t)]`` with ``ω_i = 10000^(-i/last)``, i = 0, …, width/2 - 1.

    Args:
        t: times, in float32 or float64, as half precision would lose the phase.
        width: an even number.
        last: index at which the frequency would be 1/10000: width/2 - 1 in DDPM's code, width/2 in later ones.

    Source: Vaswani et al. 2017, arXiv:1706.03762; Ho et al. 2020, arXiv:2006.11239.
    """
    steps = torch.arange(width // 2, dtype=t.dtype, device=t.device)
    phase = t[:, None] * torch.exp(steps * (-math.log(10000.0) / last))
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def embed_label(
    layer: nn.Linear, label: Int[Tensor, " batch"] | None, batch: int, scale: float = 1.0
) -> Float[Tensor, "batch width"]:
    """Apply a layer to one-hot labels times ``scale``; no label, or one out of range, is all zeros."""
    weight = layer.weight
    if label is None:
        one_hot = weight.new_zeros(batch, layer.in_features)
    else:
        one_hot = (label[:, None] == torch.arange(layer.in_features, device=label.device)).to(weight.dtype)
    return F.linear(one_hot * scale, weight, layer.bias)


class FourierFeatures(nn.Module):
    """``[cos(2π f t), sin(2π f t)]`` at frequencies f that were drawn once and belong to the weights.

    Args:
        width: of the result, an even number.

    Source: Tancik et al. 2020, arXiv:2006.10739; Song et al. 2021, arXiv:2011.13456, appendix C.2.
    """

    freqs: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.zeros(width // 2))

    def forward(self, t: Tensor) -> Tensor:
        phase = t[:, None] * (2 * math.pi * self.freqs.to(t.dtype))
        return torch.cat([phase.cos(), phase.sin()], dim=1)
