"""The residual block of DDPM++, NCSN++ and ADM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoremodels.networks.attention import attend, split_heads
from scoremodels.networks.resample import BOX, Resample


@dataclass(frozen=True, slots=True)
class BlockStyle:
    """In what the families' blocks differ.

    Args:
        width_embedding: of what the blocks are told.
        scale_shift: whether the embedding scales and shifts the second norm, or is added before it.
        rescale: what each residual sum is multiplied by.
        project: whether a block that resamples has a 1×1 convolution on its shortcut in any case.
        epsilon: of the norms.
        group_width: least channels of a group, of which there are at most 32.
        taps: filter of the resampling.
    """

    width_embedding: int
    scale_shift: bool
    rescale: float
    project: bool
    epsilon: float
    group_width: int = 4
    taps: Sequence[float] = BOX

    def norm(self, width: int) -> nn.GroupNorm:
        """Make a norm for so many channels."""
        return nn.GroupNorm(min(32, width // self.group_width), width, eps=self.epsilon)


class UNetBlock(nn.Module):
    """``r (shortcut(x) + conv(silu(norm(conv(silu(norm(x)))) ⊕ embedding)))``, then attention likewise.

    Args:
        style: of the family.
        width_in: channels.
        width_out: channels.
        direction: "down" or "up" to resample, "" not to.
        heads: of the attention; 0 for none.

    Source: Song et al. 2021, arXiv:2011.13456 (DDPM++, NCSN++); Dhariwal & Nichol 2021, arXiv:2105.05233 (ADM); both as
        Karras et al. 2022, arXiv:2206.00364, name their weights.
    """

    def __init__(self, style: BlockStyle, width_in: int, width_out: int, direction: str = "", heads: int = 0) -> None:
        super().__init__()
        self.scale_shift, self.rescale, self.heads = style.scale_shift, style.rescale, heads
        self.norm0 = style.norm(width_in)
        self.conv0 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.affine = nn.Linear(style.width_embedding, width_out * (2 if style.scale_shift else 1))
        self.norm1 = style.norm(width_out)
        self.conv1 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.resample = Resample(direction, style.taps) if direction else nn.Identity()
        projected = width_in != width_out or (direction and style.project)
        self.skip = nn.Conv2d(width_in, width_out, 1) if projected else nn.Identity()
        if heads:
            self.norm2 = style.norm(width_out)
            self.qkv = nn.Conv2d(width_out, 3 * width_out, 1)
            self.proj = nn.Conv2d(width_out, width_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(self.resample(F.silu(self.norm0(x))))
        told = self.affine(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
        else:
            h = self.norm1(h + told)
        x = self._sum(self.skip(self.resample(x)), self.conv1(F.silu(h)))
        if self.heads:
            q, k, v = split_heads(self.qkv(self.norm2(x)), self.heads)
            x = self._sum(x, self.proj(attend(q, k, v, x.shape[-2])))
        return x

    def _sum(self, x: Tensor, residual: Tensor) -> Tensor:
        return x + residual if self.rescale == 1.0 else (x + residual) * self.rescale
