"""A two-level U-Net on 2×2 pixel patches, small enough to sample on a CPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _ResidualBlock(nn.Module):
    """``x + conv(silu(scale·norm(conv(silu(norm(x)))) + shift))`` with (scale, shift) from the embedding."""

    def __init__(self, width_in: int, width_out: int, width_embedding: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(8, width_in)
        self.conv_in = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.modulation = nn.Linear(width_embedding, 2 * width_out)
        self.norm_out = nn.GroupNorm(8, width_out)
        self.conv_out = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.shortcut = nn.Identity() if width_in == width_out else nn.Conv2d(width_in, width_out, 1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.modulation.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        return self.shortcut(x) + self.conv_out(F.silu(h))


class _SelfAttention(nn.Module):
    """Residual multi-head attention over all positions of a feature map."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        batch, width, rows, columns = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, 3, self.heads, width // self.heads, rows * columns)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.transpose(-1, -2).reshape(batch, width, rows, columns))


class PatchUNet(nn.Module):
    """Map a noisy image and its noise level to an image of the same shape.

    Space-to-depth turns each 2×2 patch into channels, so that all work happens at half and at a
    quarter of the resolution; the sub-pixel shuffle at the end undoes it.

    Args:
        channels: image channels.
        width: features at half resolution; a multiple of 8.
        width_inner: features at quarter resolution; a multiple of 32.
        blocks: residual blocks at quarter resolution.
        classes: number of class labels; label ``classes`` means "no label". 0 for unconditional.

    ``forward(x, c, label=None)`` takes ``x`` of shape (B, channels, H, W) with H and W multiples
    of 4, a noise level ``c`` of shape (B,) of order one (say, log σ / 4), and labels (B,).
    """

    def __init__(self, channels: int = 1, width: int = 64, width_inner: int = 128, blocks: int = 3,
                 classes: int = 0) -> None:
        super().__init__()
        self.config = dict(channels=channels, width=width, width_inner=width_inner, blocks=blocks, classes=classes)
        self.classes = classes
        width_embedding = 2 * width_inner
        self.embed_noise = nn.Linear(width, width_embedding)
        self.embed_label = nn.Embedding(classes + 1, width_embedding) if classes else None
        self.embed_out = nn.Linear(width_embedding, width_embedding)
        self.stem = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.outer_down = _ResidualBlock(width, width, width_embedding)
        self.down = nn.Conv2d(width, width_inner, 3, stride=2, padding=1)
        self.inner = nn.ModuleList(_ResidualBlock(width_inner, width_inner, width_embedding) for _ in range(blocks))
        self.attention = _SelfAttention(width_inner, width_inner // 32)
        self.up = nn.Conv2d(width_inner, 4 * width, 1)
        self.outer_up = nn.ModuleList([
            _ResidualBlock(2 * width, width, width_embedding), _ResidualBlock(width, width, width_embedding)])
        self.norm = nn.GroupNorm(8, width)
        self.head = nn.Conv2d(width, 4 * channels, 3, padding=1)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor, c: Tensor, label: Tensor | None = None) -> Tensor:
        # Not a buffer: half precision would round it, and phases of up to 2⁶ π with it.
        dtype = torch.promote_types(x.dtype, torch.float32)
        count = self.embed_noise.in_features // 2
        frequencies = math.pi * torch.logspace(-1, 6, count, 2.0, dtype=dtype, device=x.device)
        phase = c[:, None].to(dtype) * frequencies
        embedding = self.embed_noise(torch.cat([phase.sin(), phase.cos()], dim=1).to(x.dtype))
        if self.embed_label is not None:
            if label is None:
                label = torch.full(c.shape, self.classes, device=x.device)
            embedding = embedding + self.embed_label(label)
        embedding = F.silu(self.embed_out(F.silu(embedding)))
        skip = self.outer_down(self.stem(F.pixel_unshuffle(x, 2)), embedding)
        h = self.down(skip)
        middle = len(self.inner) // 2
        for index, block in enumerate(self.inner):
            h = block(h, embedding)
            if index == middle:
                h = self.attention(h)
        h = torch.cat([F.pixel_shuffle(self.up(h), 2), skip], dim=1)
        for block in self.outer_up:
            h = block(h, embedding)
        return F.pixel_shuffle(self.head(F.silu(self.norm(h))), 2)
