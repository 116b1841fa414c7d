"""The order and the names of a U-Net's blocks, which the published families of Karras et al. share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Stage(NamedTuple):
    """One entry of an encoder or a decoder.

    Args:
        name: under which its weights are stored.
        kind: "stem" (a convolution of the input), "block", "down", "up", "first" or "second" (of the middle).
        level: 0 at full resolution, +1 at each halving.
        resolution: rows of what it gives.
        width_in: channels that it takes, those of the skip connection included.
        width_out: channels that it gives.
        last: whether it is the last block of its level.
    """

    name: str
    kind: str
    level: int
    resolution: int
    width_in: int
    width_out: int
    last: bool = False


def encoder_stages(
    resolution: int, channels: int, stem: int, widths: Sequence[int], blocks: int
) -> list[Stage]:
    """List an encoder: at each level a stem or a halving, then blocks; the output of each is a skip connection.

    Args:
        resolution: rows of the input.
        channels: of the input.
        stem: width of the first convolution.
        widths: of each level's blocks.
        blocks: of each level.
    """
    stages = []
    width = channels
    for level, wide in enumerate(widths):
        rows = resolution >> level
        if level == 0:
            stages.append(Stage(f"{rows}x{rows}_conv", "stem", level, rows, width, stem))
            width = stem
        else:
            stages.append(Stage(f"{rows}x{rows}_down", "down", level, rows, width, width))
        for index in range(blocks):
            stages.append(Stage(f"{rows}x{rows}_block{index}", "block", level, rows, width, wide, index == blocks - 1))
            width = wide
    return stages


def decoder_stages(encoder: Sequence[Stage], widths: Sequence[int], blocks: int) -> list[Stage]:
    """List a decoder: two middle blocks, then at each level one block more than there, each with a skip connection."""
    skips = [stage.width_out for stage in encoder]
    resolution, width = encoder[0].resolution, skips[-1]
    stages = []
    for level, wide in reversed(list(enumerate(widths))):
        rows = resolution >> level
        entries = ("in0", "first"), ("in1", "second")
        for ending, kind in entries if level == len(widths) - 1 else (("up", "up"),):
            stages.append(Stage(f"{rows}x{rows}_{ending}", kind, level, rows, width, width))
        for index in range(blocks + 1):
            stages.append(Stage(f"{rows}x{rows}_block{index}", "block", level, rows, width + skips.pop(), wide,
                                index == blocks))
            width = wide
    return stages
