"""Attention over the positions of a feature map whose queries, keys and values are interleaved by channel."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Take q, k and v, each (B, heads, positions, C/heads), out of (B, 3C, rows, columns).

    Channel ``(head · C/heads + c) · 3 + j`` holds component c of q, k or v (j = 0, 1, 2).
    """
    parts = qkv.flatten(2).unflatten(1, (heads, -1, 3)).transpose(-1, -3)  # (B, heads, positions, 3, C/heads)
    q, k, v = parts.unbind(-2)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, rows: int) -> Tensor:
    """Attend with scale ``1/sqrt(C/heads)``, and give the feature map (B, C, rows, columns).

    Cost: memory linear in the positions where the fused kernel serves.
    """
    h = F.scaled_dot_product_attention(q, k, v)
    return h.transpose(-1, -2).flatten(1, 2).unflatten(2, (rows, -1))
