"""Resampling of feature maps by two with a separable low-pass filter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BOX = (1.0, 1.0)
"""Filter of average pooling and of nearest-neighbour interpolation."""


class Resample(nn.Module):
    """Halve ("down") or double ("up") rows and columns, with zeros beyond the border.

    Args:
        direction: "down" or "up".
        taps: filter along each axis, of even length; its sum does not matter.

    Source: StyleGAN2's filters, Karras et al. 2020, arXiv:1912.04958.
    """

    kernel: Tensor

    def __init__(self, direction: str, taps: Sequence[float] = BOX) -> None:
        super().__init__()
        self.direction = direction
        self.box = tuple(taps) == BOX
        self.padding = (len(taps) - 1) // 2
        gain = 4.0 if direction == "up" else 1.0
        self.register_buffer("kernel", gain * filter_kernel(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.box and self.direction == "down":
            return F.avg_pool2d(x, 2)
        if self.box:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        channels = x.shape[1]
        kernel = self.kernel.expand(channels, 1, -1, -1)
        if self.direction == "down":
            return F.conv2d(x, kernel, stride=2, padding=self.padding, groups=channels)
        return F.conv_transpose2d(x, kernel, stride=2, padding=self.padding, groups=channels)


class FilteredDown(nn.Conv2d):
    """A 3×3 convolution and :class:`Resample` downwards, the filter first, so that a quarter is convolved."""

    kernel: Tensor

    def __init__(self, width_in: int, width_out: int, taps: Sequence[float]) -> None:
        super().__init__(width_in, width_out, 3, stride=2)
        # The filter sees the convolution's border too: both paddings at once, and none afterwards.
        self.border = (len(taps) - 1) // 2 + 1
        self.register_buffer("kernel", filter_kernel(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.expand(channels, 1, -1, -1)
        return super().forward(F.conv2d(x, kernel, padding=self.border, groups=channels))


def filter_kernel(taps: Sequence[float]) -> Tensor:
    """The outer product of a filter with itself, of sum one and shape (1, 1, n, n)."""
    f = torch.tensor(tuple(taps), dtype=torch.float32)
    return (torch.outer(f, f) / f.sum().square())[None, None]
