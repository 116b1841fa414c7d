"""Compiled networks give what the plain ones give; a CUDA graph is recorded where there is a GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from samplers import ClassifierFreeGuidance, compiled, sample
from samplers.compiled import GraphedNetwork
from scoremodels.analytic import GaussianModel
from scoremodels.loaders import load
from scoremodels.model import ScoreModel
from scoremodels.networks.patch_unet import PatchUNet
from scoremodels.networks.preconditioning import EDMPreconditioned
from scoremodels.schedule import EDM


def tiny() -> ScoreModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = PatchUNet(width=8, width_inner=32, blocks=1, classes=10)
        nn.init.normal_(body.head.weight, std=0.1)
    return ScoreModel(EDMPreconditioned(body), EDM(), "sample", (1, 28, 28), num_classes=10).requires_grad_(False)


@pytest.mark.slow
def test_a_compiled_network_has_no_graph_break_and_gives_the_same_samples() -> None:
    model = tiny()
    fast = compiled(model)
    for num in (2, 3):  # another shape compiles anew
        wanted = sample(model, num=num, nfe=3, condition=4).samples
        torch.testing.assert_close(sample(fast, num=num, nfe=3, condition=4).samples, wanted, rtol=1e-4, atol=1e-4)
    guided = sample(ClassifierFreeGuidance(fast, 2.0), num=2, nfe=3, condition=4)
    wanted = sample(ClassifierFreeGuidance(model, 2.0), num=2, nfe=3, condition=4).samples
    torch.testing.assert_close(guided.samples, wanted, rtol=1e-4, atol=1e-4)
    assert (guided.nfe, guided.passes) == (3, 6)


def test_a_graph_break_in_the_network_is_an_error() -> None:
    class Breaking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor, t: torch.Tensor, condition: Any) -> torch.Tensor:
            return x * float(x.sum()) if x.sum() > 0 else x

    with pytest.raises(torch._dynamo.exc.Unsupported):
        sample(compiled(ScoreModel(Breaking(), EDM(), "sample", (2,))), num=1, nfe=1)


def test_a_compiled_model_keeps_all_that_describes_it() -> None:
    model = load("fashion-mnist-edm")
    fast = compiled(model)
    for name in ("schedule", "prediction", "shape", "num_classes", "label_dropout", "name", "value_range"):
        assert getattr(fast, name) == getattr(model, name)
    assert [p.data_ptr() for p in fast.parameters()] == [p.data_ptr() for p in model.parameters()]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("guided", [False, True])
def test_a_cuda_graph_replays_the_network(guided: bool) -> None:
    model = tiny().cuda()
    fast = compiled(model, "cuda-graph")
    plain, graphed = (ClassifierFreeGuidance(m, 2.0) if guided else m for m in (model, fast))
    for num in (2, 3, 2):
        wanted = sample(plain, num=num, nfe=4, condition=4).samples
        torch.testing.assert_close(sample(graphed, num=num, nfe=4, condition=4).samples, wanted, rtol=1e-4, atol=1e-4)


def test_where_gradients_are_on_a_graphed_network_is_the_network_itself() -> None:
    linear = nn.Linear(2, 2)
    network = GraphedNetwork(_Unconditional(linear))
    x = torch.ones(1, 2, requires_grad=True)
    assert torch.equal(network(x, torch.ones(1)), linear(x)) and network(x, torch.ones(1)).requires_grad


class _Unconditional(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: Any) -> torch.Tensor:
        return self.body(x)


@pytest.mark.parametrize(("model", "mode", "message"), [
    (lambda: tiny(), "fastest", "mode='fastest'"), (lambda: tiny(), "cuda-graph", "move it to a GPU first"),
    (lambda: ClassifierFreeGuidance(tiny(), 2.0), "default", "put wrappers around"),
    (lambda: GaussianModel(torch.zeros(2), torch.eye(2), EDM()), "default", "is a GaussianModel"),
    (lambda: ScoreModel(lambda x, t, c: x, EDM(), "sample", (2,)), "default", "plain function"),
])
def test_what_cannot_be_compiled_is_refused(model: Any, mode: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compiled(model(), mode)
