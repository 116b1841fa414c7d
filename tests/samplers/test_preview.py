"""Previews and mixed precision: what is shown, and what stays in float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from odecore.plan import Registers, Row
from samplers import ClassifierFreeGuidance, MixedPrecision, Preview, sample
from scoremodels.loaders import load
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM


@pytest.mark.parametrize("name", ["fashion-mnist-edm", "fashion-mnist-ddpm", "fashion-mnist-flow"])
def test_previews_show_the_denoised_prediction_of_each_row_and_change_nothing(name: str) -> None:
    model = load(name)
    shown: list[tuple[float, Tensor]] = []
    result = sample(Preview(model, lambda t, x0: shown.append((t, x0))), num=3, nfe=4, batch=2, solver="ddim",
                    trajectory=True)
    assert torch.equal(result.samples, sample(model, num=3, nfe=4, batch=2, solver="ddim").samples)
    assert result.plan is not None and result.trajectory is not None and result.nfe == 4
    assert [(t, len(x0)) for t, x0 in shown] == [(row.t, n) for n in (2, 1) for row in result.plan.rows]
    for (t, x0), state in zip(shown[:4], result.trajectory.states, strict=False):
        with torch.no_grad():
            torch.testing.assert_close(x0, model.denoise(state[:2], t))


def test_the_last_preview_of_a_run_to_clean_data_is_the_sample_itself() -> None:
    shown: list[Tensor] = []
    result = sample(Preview(load("fashion-mnist-edm"), lambda t, x0: shown.append(x0)), num=1, nfe=3, solver="ddim",
                    end="clean")
    torch.testing.assert_close(shown[-1], result.samples)


class Watching(nn.Module):
    """A linear network that keeps the dtype of its product."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.seen: set[torch.dtype] = set()

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        product = self.linear(x)
        self.seen.add(product.dtype)
        return product.tanh() / (1 + t[:, None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_network_works_in_half_precision_and_the_state_in_float32(dtype: torch.dtype) -> None:
    network = Watching()
    states: set[torch.dtype] = set()

    def after(index: int, row: Row, registers: Registers) -> None:
        states.update(t.dtype for t in (registers.anchor, registers.point, *registers.predictions))

    model = ScoreModel(network, EDM(), "sample", (8,))
    result = sample(MixedPrecision(model, dtype), num=3, nfe=5, callback=after)
    assert network.seen == {dtype} and states == {torch.float32} == {result.samples.dtype}
    torch.testing.assert_close(result.samples, sample(model, num=3, nfe=5).samples, rtol=3e-2, atol=3e-2)
    assert network.linear.weight.dtype == torch.float32


def test_half_precision_changes_a_pretrained_models_samples_little_and_wraps_guidance() -> None:
    model = ClassifierFreeGuidance(load("fashion-mnist-edm"), 1.5)
    half, full = (sample(m, num=2, nfe=4, condition=7) for m in (MixedPrecision(model), model))
    difference = float((half.samples - full.samples).square().mean().sqrt())
    assert 0.0 < difference < 0.05 and (half.nfe, half.passes) == (4, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int8])
def test_other_precisions_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="choose torch.bfloat16"):
        MixedPrecision(load("fashion-mnist-edm"), dtype)
