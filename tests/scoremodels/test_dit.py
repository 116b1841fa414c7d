"""DiT and SiT: their key layout against diffusers' transformer with the same weights."""

from __future__ import annotations

import argparse
from pathlib import Path

import diffusers
import pytest
import torch
from torch import Tensor

from scoremodels.loaders import load, save
from scoremodels.networks.dit import DiT
from scoremodels.schedule import DiscreteVP, RectifiedFlow
from tests.scoremodels.published_files import assert_equal_but_for_rounding

WIDTH, HEADS, CLASSES, DEPTH = 32, 4, 5, 2


@pytest.fixture(scope="module")
def peer() -> diffusers.DiTTransformer2DModel:
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=4, out_channels=8, num_layers=DEPTH,
        sample_size=8, patch_size=2, num_embeds_ada_norm=CLASSES)
    for index, parameter in enumerate(network.parameters()):
        torch.nn.init.normal_(parameter, std=0.15, generator=torch.Generator().manual_seed(index))
    first = network.transformer_blocks[0].norm1.emb
    for block in network.transformer_blocks:
        block.norm1.emb.load_state_dict(first.state_dict())  # DiT has but one embedding of time and label
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # its frequencies are 10000^(-i/128), not ^(-i/127)
    return network.eval().requires_grad_(False)


def published(peer: diffusers.DiTTransformer2DModel) -> dict[str, Tensor]:
    """The weights of diffusers' network under the names that DiT's authors gave them."""
    theirs = peer.state_dict()
    time, label = "transformer_blocks.0.norm1.emb.timestep_embedder", "transformer_blocks.0.norm1.emb.class_embedder"
    pairs = {"x_embedder.proj": "pos_embed.proj", "t_embedder.mlp.0": f"{time}.linear_1",
             "t_embedder.mlp.2": f"{time}.linear_2", "final_layer.linear": "proj_out_2",
             "final_layer.adaLN_modulation.1": "proj_out_1"}
    for index in range(DEPTH):
        ours, block = f"blocks.{index}", f"transformer_blocks.{index}"
        pairs |= {f"{ours}.attn.proj": f"{block}.attn1.to_out.0", f"{ours}.mlp.fc1": f"{block}.ff.net.0.proj",
                  f"{ours}.mlp.fc2": f"{block}.ff.net.2", f"{ours}.adaLN_modulation.1": f"{block}.norm1.linear"}
    state = {"pos_embed": peer.pos_embed.pos_embed, "y_embedder.embedding_table.weight":
             theirs[f"{label}.embedding_table.weight"]}
    for kind in ("weight", "bias"):
        state |= {f"{ours}.{kind}": theirs[f"{name}.{kind}"] for ours, name in pairs.items()}
        for index in range(DEPTH):
            attention = f"transformer_blocks.{index}.attn1"
            state[f"blocks.{index}.attn.qkv.{kind}"] = torch.cat(
                [theirs[f"{attention}.to_{part}.{kind}"] for part in "qkv"])
    return state


def states() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("labels", [[1, 4], [0, CLASSES]])
def test_a_dit_equals_that_of_diffusers(
    peer: diffusers.DiTTransformer2DModel, tmp_path: Path, labels: list[int]
) -> None:
    torch.save(dict(ema=published(peer), model={}, opt={}, args=argparse.Namespace(seed=1)), tmp_path / "DiT-tiny.pt")
    model = load(tmp_path / "DiT-tiny.pt", settings={"heads": HEADS})
    assert (model.schedule, model.prediction, model.shape) == (DiscreteVP.linear(), "epsilon", (4, 8, 8))
    assert (model.num_classes, model.label_dropout) == (CLASSES, True)
    save(model, tmp_path / "converted")
    condition = torch.tensor(labels)
    for t in (0, 400, 999):
        expected = peer(states(), torch.tensor([t, t]), condition).sample[:, :4]
        assert_equal_but_for_rounding(model(states(), float(t), condition), expected)
        assert torch.equal(load(tmp_path / "converted")(states(), float(t), condition),
                           model(states(), float(t), condition))


def test_a_sit_has_its_clock_turned_round(peer: diffusers.DiTTransformer2DModel, tmp_path: Path) -> None:
    torch.save(published(peer), tmp_path / "SiT-tiny.pt")
    model = load(tmp_path / "SiT-tiny.pt", settings={"heads": HEADS})
    assert (model.schedule, model.prediction) == (RectifiedFlow(), "flow")
    condition = torch.tensor([1, 4])
    expected = -peer(states(), torch.tensor([0.25, 0.25]), condition).sample[:, :4]
    assert_equal_but_for_rounding(model(states(), 0.75, condition), expected)


def test_no_label_is_the_last_row(peer: diffusers.DiTTransformer2DModel, tmp_path: Path) -> None:
    torch.save(published(peer), tmp_path / "x.pt")
    model = load(tmp_path / "x.pt", settings={"heads": HEADS, "family": "dit"})
    assert torch.equal(model(states(), 5.0), model(states(), 5.0, torch.full((2,), CLASSES)))


def test_what_nothing_tells_is_asked_for(peer: diffusers.DiTTransformer2DModel, tmp_path: Path) -> None:
    torch.save(published(peer), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="stored alike.*settings={'family': 'dit'}"):
        load(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="tokens of width 32.*settings={'heads': 16}"):
        load(tmp_path / "x.pt", settings={"family": "sit"})


def test_patches_must_fill_the_state() -> None:
    with pytest.raises(ValueError, match="patch=3"):
        DiT(resolution=8, patch=3, width=32, heads=4)
