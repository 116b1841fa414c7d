"""The magnitude-preserving U-Net of EDM2, with the normalisation of its weights done once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoremodels.networks.attention import attend, split_heads
from scoremodels.networks.embeddings import embed_label
from scoremodels.networks.resample import BOX, Resample
from scoremodels.networks.unet_layout import Stage, decoder_stages, encoder_stages


def unit_magnitude(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Divide by the root mean square over ``dim`` (plus 1e-4): Karras et al. 2024, arXiv:2312.02696, eq. 57."""
    return x / (1e-4 + x.float().square().mean(dim, keepdim=True).sqrt()).to(x.dtype)


def blend(a: Tensor, b: Tensor, t: float) -> Tensor:
    """``((1 - t) a + t b)/sqrt((1 - t)² + t²)``: eq. 88."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def join(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Concatenate so that both count by 1 - t and t whatever their widths: eq. 103."""
    n_a, n_b = a.shape[1], b.shape[1]
    total = math.sqrt(n_a + n_b) / math.hypot(1 - t, t)
    return torch.cat([a * (total * (1 - t) / math.sqrt(n_a)), b * (total * t / math.sqrt(n_b))], dim=1)


def _silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def _convolution(width_in: int, width_out: int, size: int) -> nn.Conv2d:
    return nn.Conv2d(width_in, width_out, size, padding=size // 2, bias=False)


class _Block(nn.Module):
    """One block of figure 21; ``encodes`` says on which side of the network it stands."""

    def __init__(self, stage: Stage, width_embedding: int, encodes: bool, heads: int, balances: tuple[float, float],
                 clip: float | None, taps: Sequence[float]) -> None:
        super().__init__()
        self.encodes, self.heads, self.clip = encodes, heads, clip
        self.balance, self.balance_attention = balances
        width_in, width_out = stage.width_in, stage.width_out
        self.resample = Resample(stage.kind, taps) if stage.kind in ("down", "up") else nn.Identity()
        self.conv_res0 = _convolution(width_out if encodes else width_in, width_out, 3)
        self.emb_linear = nn.Linear(width_embedding, width_out, bias=False)
        self.conv_res1 = _convolution(width_out, width_out, 3)
        self.conv_skip = _convolution(width_in, width_out, 1) if width_in != width_out else nn.Identity()
        if heads:
            self.attn_qkv = _convolution(width_out, 3 * width_out, 1)
            self.attn_proj = _convolution(width_out, width_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.resample(x)
        if self.encodes:
            x = unit_magnitude(self.conv_skip(x), 1)
        h = self.conv_res0(_silu(x))
        h = self.conv_res1(_silu(h * (self.emb_linear(embedding) + 1)[:, :, None, None]))
        x = blend(x if self.encodes else self.conv_skip(x), h, self.balance)
        if self.heads:
            q, k, v = (unit_magnitude(part, -1) for part in split_heads(self.attn_qkv(x), self.heads))
            x = blend(x, self.attn_proj(attend(q, k, v, x.shape[-2])), self.balance_attention)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)


class EDM2UNet(nn.Module):
    """Map a state, log(σ)/4 and a label to an image.

    The weights are those of the paper after its normalisation, their gains multiplied in: they do not change in use.

    Args:
        resolution: rows and columns of the images.
        channels: of the images.
        classes: labels 0, …, classes - 1; 0 if unconditional.
        width: features that multipliers refer to.
        multipliers: of the width, one a level.
        multiplier_noise: of the width, for the features of the time; None for the first multiplier.
        multiplier_embedding: of the width, for the embedding; None for the largest multiplier.
        blocks: residual blocks a level.
        attention: resolutions with attention.
        head_width: channels of a head.
        label_balance, skip_balance, balance, balance_attention: t of the sums of time and label, of state and skip
            connection, of residuals and of attention.
        clip: least bound of a block's output; None for no bound.
        taps: filter of the resampling.

    Source: Karras et al. 2024, arXiv:2312.02696, figure 21 and table 6.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(
        self, resolution: int, channels: int = 3, classes: int = 0, width: int = 192,
        multipliers: Sequence[int] = (1, 2, 3, 4), multiplier_noise: int | None = None,
        multiplier_embedding: int | None = None, blocks: int = 3, attention: Sequence[int] = (16, 8),
        head_width: int = 64, label_balance: float = 0.5, skip_balance: float = 0.5, balance: float = 0.3,
        balance_attention: float = 0.3, clip: float | None = 256.0, taps: Sequence[float] = BOX,
    ) -> None:
        super().__init__()
        self.config = dict(
            resolution=resolution, channels=channels, classes=classes, width=width, multipliers=list(multipliers),
            multiplier_noise=multiplier_noise, multiplier_embedding=multiplier_embedding, blocks=blocks,
            attention=list(attention), head_width=head_width, label_balance=label_balance, skip_balance=skip_balance,
            balance=balance, balance_attention=balance_attention, clip=clip, taps=list(taps))
        self.label_balance, self.skip_balance = label_balance, skip_balance
        widths = [width * multiplier for multiplier in multipliers]
        told = width * (multiplier_noise or multipliers[0])
        embedded = width * (multiplier_embedding or max(multipliers))
        self.register_buffer("freqs", torch.zeros(told))
        self.register_buffer("phases", torch.zeros(told))
        self.emb_noise = nn.Linear(told, embedded, bias=False)
        self.emb_label = nn.Linear(classes, embedded, bias=False) if classes else None

        def block(stage: Stage, encodes: bool) -> nn.Module:
            if stage.kind == "stem":
                return _convolution(stage.width_in, stage.width_out, 3)
            attends = stage.kind == "first" or (stage.kind == "block" and stage.resolution in attention)
            return _Block(stage, embedded, encodes, stage.width_out // head_width if attends else 0,
                          (balance, balance_attention), clip, taps)

        encoder = encoder_stages(resolution, channels + 1, widths[0], widths, blocks)
        decoder = decoder_stages(encoder, widths, blocks)
        self.enc = nn.ModuleDict({stage.name: block(stage, True) for stage in encoder})
        self.dec = nn.ModuleDict({stage.name: block(stage, False) for stage in decoder})
        self.joins = [stage.kind == "block" for stage in decoder]
        self.out_conv = _convolution(widths[0], channels, 3)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        embedding = self._embedded(x, t, label)
        stem, *blocks = self.enc.values()
        h = stem(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))
        skips = [h]
        for block in blocks:
            h = block(h, embedding)
            skips.append(h)
        for block, joins in zip(self.dec.values(), self.joins, strict=True):
            h = block(join(h, skips.pop(), self.skip_balance) if joins else h, embedding)
        return self.out_conv(h)

    def _embedded(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        phase = t[:, None] * self.freqs.to(t.dtype) + self.phases.to(t.dtype)
        embedding = self.emb_noise((math.sqrt(2) * phase.cos()).to(x.dtype))
        if self.emb_label is not None:
            scale = math.sqrt(self.emb_label.in_features)
            embedding = blend(embedding, embed_label(self.emb_label, label, len(x), scale), self.label_balance)
        return _silu(embedding)
