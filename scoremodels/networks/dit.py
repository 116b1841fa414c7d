"""DiT, the diffusion transformer, which SiT uses too."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoremodels.networks.embeddings import sinusoids

_FREQUENCIES = 256


class DiT(nn.Module):
    """Map a state, a time and a label to an image; a second half of output channels, a variance, is dropped.

    Args:
        resolution: rows and columns of the state, usually a latent one.
        patch: rows and columns of a patch.
        channels: of the state.
        channels_out: of the output, at least ``channels``.
        classes: labels 0, …, classes - 1; label ``classes``, or None, is no label.
        width: of a token.
        depth: blocks.
        heads: of each attention.
        ratio: width of the hidden layer over that of a token.

    ``forward(x, t, label=None)``.

    Source: Peebles & Xie 2023, arXiv:2212.09748; SiT: Ma et al. 2024, arXiv:2401.08740.
    """

    pos_embed: Tensor

    def __init__(
        self, resolution: int = 32, patch: int = 2, channels: int = 4, channels_out: int = 8, classes: int = 1000,
        width: int = 1152, depth: int = 28, heads: int = 16, ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if resolution % patch or width % heads:
            raise ValueError(f"resolution={resolution}, patch={patch}, width={width}, heads={heads}: patches must fill "
                             "the state, and heads the width")
        self.config = dict(resolution=resolution, patch=patch, channels=channels, channels_out=channels_out,
                           classes=classes, width=width, depth=depth, heads=heads, ratio=ratio)
        self.patch, self.classes = patch, classes
        self.x_embedder = _Patches(channels, width, patch)
        self.t_embedder = _Time(width)
        self.y_embedder = _Labels(classes + 1, width)
        self.register_buffer("pos_embed", torch.zeros(1, (resolution // patch) ** 2, width))
        self.blocks = nn.ModuleList(_Block(width, heads, int(width * ratio)) for _ in range(depth))
        self.final_layer = _Final(width, patch * patch * channels_out)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        if label is None:
            label = torch.full((len(x),), self.classes, device=x.device)
        told = F.silu(self.t_embedder(t, x.dtype) + self.y_embedder.embedding_table(label))
        tokens = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, told)
        patches = self.final_layer(tokens, told)
        rows = x.shape[-2] // self.patch
        image = patches.unflatten(2, (self.patch, self.patch, -1)).unflatten(1, (rows, -1))
        # (B, rows, columns, p, p, C) to (B, C, rows, p, columns, p)
        return image.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)[:, : x.shape[1]]


class _Patches(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class _Time(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(sinusoids(t, _FREQUENCIES, last=_FREQUENCIES // 2).to(dtype))


class _Labels(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)


class _Modulation(NamedTuple):
    shift: Tensor
    scale: Tensor

    def apply(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, norm(x), 1 + self.scale)


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


def _modulation(width: int, parts: int) -> nn.Sequential:
    """A layer under the name that published weights give it; the activation is shared and applied before."""
    return nn.Sequential(nn.Identity(), nn.Linear(width, parts * width))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Hidden(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _Block(nn.Module):
    """Attention and a hidden layer, each with a norm that is scaled, shifted and gated by what is told."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.attn = _Attention(width, heads)
        self.mlp = _Hidden(width, hidden)
        self.adaLN_modulation = _modulation(width, 6)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        a_shift, a_scale, a_gate, m_shift, m_scale, m_gate = self.adaLN_modulation(told)[:, None].chunk(6, dim=2)
        x = torch.addcmul(x, a_gate, self.attn(_Modulation(a_shift, a_scale).apply(self.norm, x)))
        return torch.addcmul(x, m_gate, self.mlp(_Modulation(m_shift, m_scale).apply(self.norm, x)))


class _Final(nn.Module):
    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.linear = nn.Linear(width, values)
        self.adaLN_modulation = _modulation(width, 2)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(told)[:, None].chunk(2, dim=2)
        return self.linear(_Modulation(shift, scale).apply(self.norm, x))
