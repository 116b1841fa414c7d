"""Perturbed-attention guidance, against diffusers' attention processors on its own networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import PAGIdentitySelfAttnProcessor2_0
from torch import Tensor, nn

from samplers import ClassifierFreeGuidance, GuidanceInterval, PerturbedAttentionGuidance, sample
from samplers.compiled import GraphedNetwork
from scoremodels.loaders import load
from scoremodels.model import ScoreModel
from scoremodels.networks.diffusers_unet import DiffusersUNet
from scoremodels.schedule import DiscreteVP

TIME = 400.0


def small_unet(**options: Any) -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
                           norm_num_groups=4, attention_head_dim=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                           up_block_types=("AttnUpBlock2D", "UpBlock2D"), **options)
    return unet.double().eval().requires_grad_(False)


def model(**options: Any) -> ScoreModel:
    return ScoreModel(DiffusersUNet(small_unet(**options)), DiscreteVP.linear(), "epsilon", (1, 8, 8),
                      num_classes=3 if options else 0)


def states(num: int = 3) -> Tensor:
    return torch.randn(num, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def theirs(unet: nn.Module, call: Any, part: str) -> tuple[Tensor, Tensor]:
    """The plain and the perturbed half of one batch, with diffusers' processors in place."""
    layers = [m for name, m in unet.named_modules() if hasattr(m, "set_processor") and part in name
              and not name.endswith("attn2")]
    usual = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(PAGIdentitySelfAttnProcessor2_0())
    plain, perturbed = call().chunk(2)
    for layer, processor in zip(layers, usual, strict=True):
        layer.set_processor(processor)
    return plain, perturbed


@pytest.mark.parametrize("part", ["mid_block", "down_blocks", "up_blocks"])
def test_it_is_that_of_diffusers(part: str) -> None:
    tested, x = model(), states()
    unet = tested.network.unet
    plain, perturbed = theirs(unet, lambda: unet(torch.cat([x, x]), TIME).sample, part)
    got = PerturbedAttentionGuidance(tested, 2.5, layers=[part])(x, TIME)
    torch.testing.assert_close(got, plain + 2.5 * (plain - perturbed), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(plain, perturbed)


def test_the_network_is_left_as_it_was() -> None:
    tested, x = model(), states()
    before = tested(x, TIME)
    usual = [m.processor for m in tested.modules() if hasattr(m, "set_processor")]
    PerturbedAttentionGuidance(tested, 2.0)(x, TIME)
    assert torch.equal(tested(x, TIME), before)
    assert all(a is b for a, b in zip(usual, [m.processor for m in tested.modules() if hasattr(m, "set_processor")],
                                      strict=True))


def test_cross_attention_is_never_perturbed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
            norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        ).double().eval().requires_grad_(False)
    text = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
            return self.unet(x, t, text.expand(len(x), -1, -1)).sample

    tested, x = ScoreModel(Told(), DiscreteVP.linear(), "epsilon", (1, 8, 8)), states()
    plain, perturbed = theirs(unet, lambda: unet(torch.cat([x, x]), TIME, text.expand(6, -1, -1)).sample, "mid_block")
    got = PerturbedAttentionGuidance(tested, 2.0)(x, TIME)
    torch.testing.assert_close(got, plain + 2.0 * (plain - perturbed), rtol=1e-9, atol=1e-9)


def test_with_labels_it_perturbs_the_conditional_branch_as_diffusers_does() -> None:
    """u + s (c - u) + s' (c - p)."""
    tested, x, labels = model(num_class_embeds=4), states(), torch.tensor([0, 1, 2])
    guided = ClassifierFreeGuidance(tested, 3.0)
    conditional = tested(x, TIME, labels)
    push = PerturbedAttentionGuidance(tested, 1.0)(x, TIME, labels) - conditional
    wanted = guided(x, TIME, labels) + 2.0 * push
    for inner in (guided, GuidanceInterval(guided, 0.0)):
        torch.testing.assert_close(PerturbedAttentionGuidance(inner, 2.0)(x, TIME, labels), wanted)


def test_it_spends_two_evaluations_a_row_and_none_at_scale_zero() -> None:
    tested = load("fashion-mnist-ddpm")
    assert sample(PerturbedAttentionGuidance(tested, 2.0), num=1, nfe=3).nfe == 6
    assert sample(PerturbedAttentionGuidance(tested, 0.0), num=1, nfe=3).nfe == 3


def test_models_without_such_layers_are_refused_with_a_remedy() -> None:
    graphed = ScoreModel(GraphedNetwork(DiffusersUNet(small_unet())), DiscreteVP.linear(), "epsilon", (1, 8, 8))
    for make, message in ((lambda: PerturbedAttentionGuidance(load("fashion-mnist-flow")), "use Autoguidance"),
                          (lambda: PerturbedAttentionGuidance(model(), layers=["encoder"]), "mid_block.attentions.0"),
                          (lambda: PerturbedAttentionGuidance(model(), float("nan")), "scale=nan"),
                          (lambda: PerturbedAttentionGuidance(graphed), "CUDA graph")):
        with pytest.raises(ValueError, match=message):
            make()
