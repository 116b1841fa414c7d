"""From samples to 8-bit images, single or in a grid, as PNG files."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def to_bytes(
    samples: Float[Tensor, "batch channels rows columns"], value_range: tuple[float, float] = (-1.0, 1.0)
) -> UInt8[Tensor, "batch channels rows columns"]:
    """Clip samples to ``value_range`` and round them to 256 levels.

    Raises:
        ValueError: no batch of images, or non-finite values.
    """
    if samples.ndim != 4:
        raise ValueError(f"samples have shape {tuple(samples.shape)}: give (batch, channels, rows, columns)")
    if not samples.isfinite().all():
        raise ValueError("samples hold non-finite values: the solver has diverged; use more evaluations")
    low, high = value_range
    levels = (samples.detach().float() - low) * (255.0 / (high - low))
    return levels.clamp(0.0, 255.0).round().to(torch.uint8).cpu()


def from_bytes(images: UInt8[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch channels rows columns"]:
    """Map 8-bit images to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1.0


def grid(images: UInt8[Tensor, "batch channels rows columns"], columns: int, *, gap: int = 2) -> Tensor:
    """Lay images out row by row on a white ground.

    Args:
        images: 8-bit images with 1 or 3 channels.
        columns: images in a row.
        gap: pixels between them.

    Returns:
        One 8-bit image of shape (channels, rows, columns).
    """
    count, channels, height, width = images.shape
    lines = math.ceil(count / columns)
    canvas = torch.full((channels, lines * (height + gap) + gap, columns * (width + gap) + gap), 255, dtype=torch.uint8)
    for index, image in enumerate(images):
        top = gap + (index // columns) * (height + gap)
        left = gap + (index % columns) * (width + gap)
        canvas[:, top:top + height, left:left + width] = image
    return canvas


def save_png(image: UInt8[Tensor, "channels rows columns"], path: str | Path, *, zoom: int = 1) -> None:
    """Write an 8-bit image with 1 or 3 channels, each pixel ``zoom`` × ``zoom`` large.

    Raises:
        ValueError: another number of channels.
    """
    from PIL import Image

    if image.shape[0] not in (1, 3):
        raise ValueError(f"image has {image.shape[0]} channels: a PNG takes 1 (gray) or 3 (red, green, blue)")
    pixels = image.repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    array = (pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).contiguous().numpy()
    Image.fromarray(array).save(path)
