"""State dicts of guided-diffusion: ADM networks, unconditional or with labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scoremodels.model import ScoreModel
from scoremodels.networks.adm_unet import ADMUNet
from scoremodels.networks.unet_block import UNetBlock
from scoremodels.published.settings import told
from scoremodels.schedule import DiscreteVP
from scoremodels.weights import assign_weights

_PUBLISHED: dict[tuple[float, ...], dict[str, Any]] = {
    (1, 2, 3, 4): dict(image_size=64, noise_schedule="cosine", heads=0, attention_order="new"),
    (1, 1, 2, 3, 4): dict(image_size=128, noise_schedule="linear", heads=4, attention_order="legacy"),
    (1, 1, 2, 2, 4, 4): dict(image_size=256, noise_schedule="linear", heads=0, attention_order="legacy"),
    (0.5, 1, 1, 2, 2, 4, 4): dict(image_size=512, noise_schedule="linear", heads=0, attention_order="legacy"),
}
"""What the flags of the published networks were, by the multipliers of their widths; 0 heads: one per 64 channels."""

_CHOICES: dict[str, Any] = {"image_size": int, "noise_schedule": ("linear", "cosine"), "heads": int,
            "attention_order": ("new", "legacy")}
_BLOCK = {"in_layers.0": "norm0", "in_layers.2": "conv0", "emb_layers.1": "affine", "out_layers.0": "norm1",
          "out_layers.3": "conv1", "skip_connection": "skip"}
_ATTENTION = {"norm": "norm2", "qkv": "qkv", "proj_out": "proj"}


def is_guided_diffusion(state: Mapping[str, Tensor]) -> bool:
    """Say whether tensors have the names of guided-diffusion's U-Net or of its classifiers."""
    return {"time_embed.0.weight", "input_blocks.0.0.weight"} <= state.keys()


def read_guided_diffusion(state: Mapping[str, Tensor], path: Path, settings: Mapping[str, Any]) -> ScoreModel:
    """Make a model of a network with residual blocks for resampling, as all published ones have them.

    Args:
        state: named tensors.
        path: of the checkpoint.
        settings: "image_size", "noise_schedule" ("linear" or "cosine"), "heads" (0 for one per 64 channels) and
            "attention_order" ("new" or "legacy"), which a network with other widths than the published must be told.

    Raises:
        ValueError: a classifier, a super-resolution network, other resampling, or settings that are missing.

    Source: Dhariwal & Nichol 2021, arXiv:2105.05233.
    """
    given = told(settings, _CHOICES, path)
    channels = state["input_blocks.0.0.weight"].shape[1]
    output = state.get("out.2.weight")
    if output is None or "output_blocks.0.0.in_layers.0.weight" not in state:
        raise ValueError(f"{path} is a classifier: give the file of a diffusion network")
    if channels == 6:
        raise ValueError(f"{path} is a super-resolution network, which also takes a small image: give a network that "
                         "makes images from noise")
    if any(name.endswith((".op.weight", ".conv.weight")) for name in state):
        raise ValueError(f"{path} resamples by plain convolutions (resblock_updown=False): only networks that resample "
                         "in residual blocks can be read")
    width = state["time_embed.0.weight"].shape[1]
    levels, attended = _levels(state)
    multipliers = tuple(wide / width for wide in levels)
    found = {**_PUBLISHED.get(multipliers, {}), **given}
    missing = _CHOICES.keys() - found.keys()
    if missing:
        raise ValueError(f"{path} has the widths {levels}, none of the published networks: tell "
                         f"{', '.join(sorted(missing))} by settings={{...}}")
    labels = state.get("label_emb.weight")
    size = found["image_size"]
    network = ADMUNet(
        size, channels, output.shape[0], 0 if labels is None else len(labels), width, multipliers,
        _blocks_per_level(state, len(levels)), [size >> level for level in attended], found["heads"] or None,
        group_width=1)
    assign_weights(network, dict(_renamed(network, state, found["attention_order"])), path)
    schedule = DiscreteVP.cosine() if found["noise_schedule"] == "cosine" else DiscreteVP.linear()
    return ScoreModel(network, schedule, "epsilon", (channels, size, size),
                      num_classes=network.config["classes"], label_dropout=False, name=path.stem)  # type: ignore[arg-type]


def _count(state: Mapping[str, Tensor], side: str) -> int:
    return 1 + max(int(name.split(".")[1]) for name in state if name.startswith(side + "."))


def _blocks_per_level(state: Mapping[str, Tensor], levels: int) -> int:
    return _count(state, "input_blocks") // levels - 1


def _levels(state: Mapping[str, Tensor]) -> tuple[list[int], list[int]]:
    """The width of each level, and the levels with attention; a level of the decoder ends with a second block."""
    count = _count(state, "output_blocks")
    ups = sum(f"output_blocks.{index}.{last}.in_layers.0.weight" in state for index in range(count) for last in (1, 2))
    per_level = _count(state, "input_blocks") // (ups + 1)
    widths, attended = [], []
    for level in range(ups + 1):
        first = level * per_level + 1
        widths.append(len(state[f"input_blocks.{first}.0.out_layers.3.weight"]))
        if f"input_blocks.{first}.1.qkv.weight" in state:
            attended.append(level)
    return widths, attended


def _renamed(network: ADMUNet, state: Mapping[str, Tensor], order: str) -> Iterator[tuple[str, Tensor]]:
    for theirs, ours in (("time_embed.0", "map_layer0"), ("time_embed.2", "map_layer1"),
                         ("input_blocks.0.0", f"enc.{next(iter(network.enc))}"), ("out.0", "out_norm"),
                         ("out.2", "out_conv")):
        yield from _under(state, theirs, ours)
    if "label_emb.weight" in state:
        yield "map_label.weight", state["label_emb.weight"].T
    places = _places(state)
    blocks = [*list(network.enc.items())[1:], *network.dec.items()]
    sides = ["enc"] * (len(network.enc) - 1) + ["dec"] * len(network.dec)
    for (name, block), side in zip(blocks, sides, strict=True):
        assert isinstance(block, UNetBlock)
        yield from _block(block, state, f"{side}.{name}", places, order)


def _places(state: Mapping[str, Tensor]) -> Iterator[str]:
    """Where residual blocks and attention lie, in order."""
    for side, count in (("input_blocks", _count(state, "input_blocks")), ("middle_block", 1),
                        ("output_blocks", _count(state, "output_blocks"))):
        for index in range(count):
            place = side if side == "middle_block" else f"{side}.{index}"
            yield from (f"{place}.{part}" for part in range(3)
                        if {f"{place}.{part}.in_layers.0.weight", f"{place}.{part}.qkv.weight"} & state.keys())


def _block(
    block: nn.Module, state: Mapping[str, Tensor], name: str, places: Iterator[str], order: str
) -> Iterator[tuple[str, Tensor]]:
    assert isinstance(block, UNetBlock)
    place = next(places)
    for theirs, ours in _BLOCK.items():
        yield from _under(state, f"{place}.{theirs}", f"{name}.{ours}")
    if not block.heads:
        return
    place = next(places)
    for theirs, ours in _ATTENTION.items():
        for key, tensor in _under(state, f"{place}.{theirs}", f"{name}.{ours}"):
            if ours == "qkv":
                tensor = _interleaved(tensor, block.heads, order)
            yield key, tensor[..., None] if tensor.ndim == 3 else tensor


def _interleaved(qkv: Tensor, heads: int, order: str) -> Tensor:
    """From (q, k, v) by heads ("new") or heads by (q, k, v) ("legacy") to components by (q, k, v)."""
    parts = qkv.unflatten(0, (3, heads, -1) if order == "new" else (heads, 3, -1))
    return parts.movedim(0 if order == "new" else 1, 2).flatten(0, 2)


def _under(state: Mapping[str, Tensor], theirs: str, ours: str) -> Iterator[tuple[str, Tensor]]:
    for kind in ("weight", "bias"):
        if f"{theirs}.{kind}" in state:
            yield f"{ours}.{kind}", state[f"{theirs}.{kind}"]
