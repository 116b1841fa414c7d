"""DDPM++ and NCSN++, the U-Nets of Song et al."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoremodels.networks.embeddings import FourierFeatures, embed_label, sinusoids
from scoremodels.networks.resample import BOX, FilteredDown, Resample
from scoremodels.networks.unet_block import BlockStyle, UNetBlock
from scoremodels.networks.unet_layout import Stage, decoder_stages, encoder_stages

INPUTS = ("standard", "residual", "skip")
OUTPUTS = ("standard", "skip")


class SongUNet(nn.Module):
    """Map a state, a time and a label to an image.

    Args:
        resolution: rows and columns of the images.
        channels: of the images.
        channels_out: of the output, at least ``channels``; only the first are kept.
        classes: labels 0, …, classes - 1; 0 if unconditional.
        width: features that multipliers refer to.
        multipliers: of the width, one a level.
        multiplier_embedding: of the width, for the embedding.
        blocks: residual blocks a level.
        attention: resolutions with attention.
        fourier: whether the time is told by Fourier features (NCSN++) or by sinusoids (DDPM++).
        multiplier_noise: of the width, for the features of the time: 2 for NCSN++, 1 for DDPM++.
        pyramid_in: how a shrunk input is fed to each level: "standard" (not at all), "residual" or "skip".
        pyramid_out: "standard", or "skip" if the output is a sum over levels.
        taps: filter of the resampling: (1, 3, 3, 1) for NCSN++, (1, 1) for DDPM++.

    ``forward(x, t, label=None)``; a label out of range is no label.

    Source: Song et al. 2021, arXiv:2011.13456; names of the weights: Karras et al. 2022, arXiv:2206.00364.
    """

    def __init__(
        self, resolution: int, channels: int = 3, channels_out: int = 3, classes: int = 0, width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2), multiplier_embedding: int = 4, blocks: int = 4,
        attention: Sequence[int] = (16,), fourier: bool = False, multiplier_noise: int = 1,
        pyramid_in: str = "standard", pyramid_out: str = "standard", taps: Sequence[float] = BOX,
    ) -> None:
        super().__init__()
        if pyramid_in not in INPUTS or pyramid_out not in OUTPUTS:
            raise ValueError(f"pyramid_in={pyramid_in!r}, pyramid_out={pyramid_out!r}: choose one of "
                             f"{', '.join(INPUTS)} and of {', '.join(OUTPUTS)}")
        self.config = dict(
            resolution=resolution, channels=channels, channels_out=channels_out, classes=classes, width=width,
            multipliers=list(multipliers), multiplier_embedding=multiplier_embedding, blocks=blocks,
            attention=list(attention), fourier=fourier, multiplier_noise=multiplier_noise, pyramid_in=pyramid_in,
            pyramid_out=pyramid_out, taps=list(taps))
        told, embedded = width * multiplier_noise, width * multiplier_embedding
        self.width_noise = told
        style = BlockStyle(embedded, scale_shift=False, rescale=math.sqrt(0.5), project=True, epsilon=1e-6, taps=taps)
        self.map_noise = FourierFeatures(told) if fourier else None
        self.map_label = nn.Linear(classes, told) if classes else None
        self.map_layer0 = nn.Linear(told, embedded)
        self.map_layer1 = nn.Linear(embedded, embedded)
        widths = [width * multiplier for multiplier in multipliers]
        encoder = encoder_stages(resolution, channels, width, widths, blocks)
        self.enc = _encoder(encoder, style, channels, attention, pyramid_in, taps)
        decoder = decoder_stages(encoder, widths, blocks)
        self.dec = _decoder(decoder, style, channels_out, attention, pyramid_out, taps)
        self.joins = {stage.name for stage in decoder if stage.kind == "block"}

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        return self._decoded(*self._encoded(x, self._embedded(x, t, label)))[:, : x.shape[1]]

    def _embedded(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        half = self.width_noise // 2
        features = sinusoids(t, 2 * half, last=half - 1) if self.map_noise is None else self.map_noise(t)
        embedding = features.roll(half, dims=1).to(x.dtype)  # these networks take the sines first
        if self.map_label is not None:
            scale = math.sqrt(self.map_label.in_features)
            embedding = embedding + embed_label(self.map_label, label, len(x), scale)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))

    def _encoded(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        skips, h, shrunk = [], x, x
        for name, block in self.enc.items():
            if name.endswith("_conv"):
                h = block(h)
                skips.append(h)
            elif name.endswith("_aux_down"):
                shrunk = block(shrunk)
            elif name.endswith("_aux_skip"):
                h = skips[-1] = h + block(shrunk)
            elif name.endswith("_aux_residual"):
                h = skips[-1] = shrunk = (h + block(shrunk)) * math.sqrt(0.5)
            else:
                h = block(h, embedding)
                skips.append(h)
        return h, skips, embedding

    def _decoded(self, h: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        image, normed = None, h
        for name, block in self.dec.items():
            if name.endswith("_aux_up"):
                image = block(image)
            elif name.endswith("_aux_norm"):
                normed = F.silu(block(h))
            elif name.endswith("_aux_conv"):
                image = block(normed) if image is None else image + block(normed)
            else:
                h = block(torch.cat([h, skips.pop()], dim=1) if name in self.joins else h, embedding)
        assert image is not None
        return image


def _block(stage: Stage, style: BlockStyle, attends: bool) -> UNetBlock:
    direction = stage.kind if stage.kind in ("down", "up") else ""
    return UNetBlock(style, stage.width_in, stage.width_out, direction, int(attends))


def _encoder(
    stages: Sequence[Stage], style: BlockStyle, channels: int, attention: Sequence[int], pyramid: str,
    taps: Sequence[float],
) -> nn.ModuleDict:
    """The blocks, and after each halving what adds the shrunk input."""
    modules: dict[str, nn.Module] = {}
    width_shrunk = channels
    for stage in stages:
        if stage.kind == "stem":
            modules[stage.name] = nn.Conv2d(channels, stage.width_out, 3, padding=1)
            continue
        modules[stage.name] = _block(stage, style, stage.kind == "block" and stage.resolution in attention)
        prefix = stage.name.removesuffix("down") + "aux_"
        if stage.kind == "down" and pyramid == "skip":
            modules[prefix + "down"] = Resample("down", taps)
            modules[prefix + "skip"] = nn.Conv2d(channels, stage.width_out, 1)
        elif stage.kind == "down" and pyramid == "residual":
            modules[prefix + "residual"] = FilteredDown(width_shrunk, stage.width_out, taps)
            width_shrunk = stage.width_out
    return nn.ModuleDict(modules)


def _decoder(
    stages: Sequence[Stage], style: BlockStyle, channels: int, attention: Sequence[int], pyramid: str,
    taps: Sequence[float],
) -> nn.ModuleDict:
    """The blocks, and after the last of each level (or of all) what makes an image of them."""
    modules: dict[str, nn.Module] = {}
    for stage in stages:
        attends = stage.kind == "first" or (stage.kind == "block" and stage.last and stage.resolution in attention)
        modules[stage.name] = _block(stage, style, attends)
        if stage.kind == "block" and stage.last and (pyramid == "skip" or stage.level == 0):
            prefix = f"{stage.resolution}x{stage.resolution}_aux_"
            if pyramid == "skip" and stage.level < stages[0].level:
                modules[prefix + "up"] = Resample("up", taps)
            modules[prefix + "norm"] = style.norm(stage.width_out)
            modules[prefix + "conv"] = nn.Conv2d(stage.width_out, channels, 3, padding=1)
    return nn.ModuleDict(modules)
