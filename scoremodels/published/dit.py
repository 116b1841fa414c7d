"""State dicts of DiT and SiT, which have the same names and shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from scoremodels.model import ScoreModel
from scoremodels.networks.dit import DiT
from scoremodels.networks.preconditioning import ReversedFlow
from scoremodels.published.settings import LATENT_RANGE, told
from scoremodels.schedule import DiscreteVP, RectifiedFlow
from scoremodels.weights import assign_weights

_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""By the width of a token: sizes S, B, L and XL."""

_CHOICES: dict[str, Any] = {"family": ("dit", "sit"), "heads": int}


def is_dit(state: Mapping[str, Tensor]) -> bool:
    """Say whether tensors have the names of a DiT or SiT."""
    named = {"x_embedder.proj.weight", "t_embedder.mlp.0.weight", "pos_embed", "final_layer.linear.weight"}
    return named <= state.keys()


def read_dit(state: Mapping[str, Tensor], path: Path, settings: Mapping[str, Any]) -> ScoreModel:
    """Make a model of the latents of an autoencoder, of whose labels one is "no label".

    Args:
        state: named tensors.
        path: of the checkpoint; "dit" or "sit" in its name says which it is, as nothing inside does.
        settings: "family" ("dit" or "sit") and "heads", where name and width do not tell.

    Raises:
        ValueError: the family or the number of heads is not known.

    Source: DiT, with DDPM's linear betas: Peebles & Xie 2023, arXiv:2212.09748; SiT, with a linear path and velocities:
        Ma et al. 2024, arXiv:2401.08740.
    """
    given = told(settings, _CHOICES, path)
    named = [family for family in ("dit", "sit") if family in path.name.lower()]
    family = given.get("family", named[0] if len(named) == 1 else None)
    if family is None:
        raise ValueError(f"{path} is a DiT or a SiT, which are stored alike: give settings={{'family': 'dit'}}, or "
                         "'sit', or put one of them in its name")
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    heads = given.get("heads", _HEADS.get(width))
    if heads is None:
        raise ValueError(f"{path} has tokens of width {width}, none of the published: give "
                         "settings={'heads': 16}, say")
    resolution = patch * math.isqrt(state["pos_embed"].shape[1])
    classes = len(state["y_embedder.embedding_table.weight"]) - 1
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    network = DiT(
        resolution, patch, channels, len(state["final_layer.linear.weight"]) // patch**2, classes, width, depth, heads,
        len(state["blocks.0.mlp.fc1.weight"]) / width)
    assign_weights(network, state, path)
    shape = (channels, resolution, resolution)
    if family == "sit":
        return ScoreModel(ReversedFlow(network), RectifiedFlow(), "flow", shape, num_classes=classes, name=path.stem,
                          value_range=LATENT_RANGE)
    return ScoreModel(network, DiscreteVP.linear(), "epsilon", shape, num_classes=classes, name=path.stem,
                      value_range=LATENT_RANGE)
