"""ADM, the U-Net of Dhariwal and Nichol."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoremodels.networks.embeddings import embed_label, sinusoids
from scoremodels.networks.unet_block import BlockStyle, UNetBlock
from scoremodels.networks.unet_layout import Stage, decoder_stages, encoder_stages


class ADMUNet(nn.Module):
    """Map a state, a time and a label to an image; a second half of output channels, a variance, is dropped.

    Args:
        resolution: rows and columns of the images.
        channels: of the images.
        channels_out: of the output, at least ``channels``.
        classes: labels 0, …, classes - 1; 0 if unconditional.
        width: features that multipliers refer to.
        multipliers: of the width, one a level.
        blocks: residual blocks a level.
        attention: resolutions with attention.
        heads: of each attention; None for one per 64 channels.
        group_width: least channels of a group of the norms.

    ``forward(x, t, label=None)``; a label out of range is no label.

    Source: Dhariwal & Nichol 2021, arXiv:2105.05233; names of the weights: Karras et al. 2022, arXiv:2206.00364.
    """

    def __init__(
        self, resolution: int, channels: int = 3, channels_out: int = 3, classes: int = 0, width: int = 192,
        multipliers: Sequence[float] = (1, 2, 3, 4), blocks: int = 3, attention: Sequence[int] = (32, 16, 8),
        heads: int | None = None, group_width: int = 4,
    ) -> None:
        super().__init__()
        self.config = dict(
            resolution=resolution, channels=channels, channels_out=channels_out, classes=classes, width=width,
            multipliers=list(multipliers), blocks=blocks, attention=list(attention), heads=heads,
            group_width=group_width)
        self.width = width
        style = BlockStyle(4 * width, scale_shift=True, rescale=1.0, project=False, epsilon=1e-5,
                           group_width=group_width)
        self.map_layer0 = nn.Linear(width, 4 * width)
        self.map_layer1 = nn.Linear(4 * width, 4 * width)
        self.map_label = nn.Linear(classes, 4 * width, bias=False) if classes else None

        def block(stage: Stage) -> nn.Module:
            if stage.kind == "stem":
                return nn.Conv2d(channels, stage.width_out, 3, padding=1)
            attends = stage.kind == "first" or (stage.kind == "block" and stage.resolution in attention)
            return UNetBlock(
                style, stage.width_in, stage.width_out, stage.kind if stage.kind in ("down", "up") else "",
                (heads or stage.width_out // 64) if attends else 0)

        widths = [int(width * multiplier) for multiplier in multipliers]
        encoder = encoder_stages(resolution, channels, widths[0], widths, blocks)
        decoder = decoder_stages(encoder, widths, blocks)
        self.enc = nn.ModuleDict({stage.name: block(stage) for stage in encoder})
        self.dec = nn.ModuleDict({stage.name: block(stage) for stage in decoder})
        self.joins = [stage.kind == "block" for stage in decoder]
        self.out_norm = style.norm(widths[0])
        self.out_conv = nn.Conv2d(widths[0], channels_out, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        embedding = sinusoids(t, self.width, last=self.width // 2).to(x.dtype)
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if self.map_label is not None:
            embedding = embedding + embed_label(self.map_label, label, len(x))
        embedding = F.silu(embedding)
        stem, *blocks = self.enc.values()
        h, skips = stem(x), []
        skips.append(h)
        for block in blocks:
            h = block(h, embedding)
            skips.append(h)
        for block, joins in zip(self.dec.values(), self.joins, strict=True):
            h = block(torch.cat([h, skips.pop()], dim=1) if joins else h, embedding)
        return self.out_conv(F.silu(self.out_norm(h)))[:, : x.shape[1]]
