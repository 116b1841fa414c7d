"""Micro-batches under a memory limit, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samplers import (
    Autoguidance,
    ClassifierFreeGuidance,
    DenoisedGuidance,
    GuidanceInterval,
    MemoryLimit,
    PerturbedAttentionGuidance,
    sample,
)
from samplers.counting import counted
from samplers.memory import _Allocations, halving
from scoremodels.loaders import load
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM


class Wide(nn.Module):
    """Takes 4000 numbers a sample at its peak; refuses more samples at once than it is told, as a full GPU does."""

    def __init__(self, most: int = 10**6) -> None:
        super().__init__()
        self.most = most
        self.batches: list[int] = []

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        self.batches.append(len(x))
        if len(x) > self.most:
            raise torch.OutOfMemoryError("full")
        return x.tanh() + x[:, :1].tanh().expand(-1, 4000).exp().sum(1, keepdim=True).log() / 100


def wide(most: int = 10**6) -> ScoreModel:
    return ScoreModel(Wide(most), EDM(), "sample", (8,), num_classes=3)


def test_allocations_are_added_up_until_they_are_dropped_and_views_are_free() -> None:
    given = torch.zeros(1000)
    with _Allocations() as allocations:
        given.view(10, 100).add_(1)
        assert allocations.peak == 0
        a = given + 1
        b = a.reshape(-1)[:500] * 2
        del a
        c = torch.cat([b, b])
    assert allocations.peak == 4000 + 2000 or allocations.peak == 2000 + 4000
    del b, c


def test_the_batch_found_stays_within_the_limit_and_the_next_larger_does_not() -> None:
    model, limit = wide(), 2_000_000
    size = MemoryLimit(limit).batch(model, depth=2)
    state = 4 * 8 * 7  # two of history and five more

    def peak(count: int) -> int:
        with torch.no_grad(), _Allocations() as allocations:
            model(torch.ones(count, 8), 1.0)
        return allocations.peak + count * state

    assert peak(size) <= limit < peak(size + 1)


def test_guidance_halves_the_batch_also_if_it_works_in_an_interval_only() -> None:
    model, limit = wide(), MemoryLimit(2_000_000)
    alone, guided = limit.batch(model, condition=1), limit.batch(ClassifierFreeGuidance(model, 2.0), condition=1)
    assert alone / 2 - 1 <= guided < 0.55 * alone
    assert limit.batch(GuidanceInterval(ClassifierFreeGuidance(model, 2.0), 0.5, 3.0), condition=1) == guided


def test_a_gradient_through_the_network_is_found_to_take_more() -> None:
    model, limit = load("fashion-mnist-edm"), MemoryLimit(100 * 2**20)
    guided = DenoisedGuidance(model, lambda x0, _: -x0.square().flatten(1).sum(1))
    assert limit.batch(guided) < limit.batch(model) / 2


@pytest.mark.parametrize("solver", ["dpm-solver++-3m", "ddpm", "dpm-solver-12"])
def test_samples_do_not_depend_on_the_limit(solver: str) -> None:
    model, options = wide(), dict(num=9, solver=solver, nfe=4, condition=1, seed=3)
    whole = sample(model, **options).samples
    model.network.batches.clear()
    limited = sample(model, batch=MemoryLimit(60_000), **options)
    assert model.network.batches[:2] == [1, 2] and max(model.network.batches[2:]) <= 4
    torch.testing.assert_close(limited.samples, whole, rtol=1e-5, atol=1e-5)
    assert solver == "dpm-solver-12" or limited.nfe == 4


def test_a_batch_that_does_not_fit_all_the_same_is_halved_and_comes_out_in_order() -> None:
    model, full = wide(), wide(most=3)
    whole = sample(model, num=10, nfe=3).samples
    limited = sample(full, num=10, nfe=3, batch=MemoryLimit(10**7))
    torch.testing.assert_close(limited.samples, whole)
    assert limited.nfe == 3 and max(full.network.batches) == 10
    with pytest.raises(torch.OutOfMemoryError):
        sample(wide(most=3), num=10, nfe=3)  # a batch that was asked for is no guess to be corrected


def test_a_single_sample_that_does_not_fit_is_an_error() -> None:
    def never(first: int, last: int) -> None:
        raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        halving(never, 0, 4)
    with pytest.raises(ValueError, match="one sample takes"):
        sample(wide(), num=2, batch=MemoryLimit(1000))


@pytest.mark.parametrize("amount", [0, -5, 1.5, True])
def test_amounts_that_are_none_are_refused(amount: Any) -> None:
    with pytest.raises(ValueError, match="bytes="):
        MemoryLimit(amount)


def test_evaluations_are_those_of_networks_and_passes_those_of_samples() -> None:
    model, worse = wide(), wide()
    for wrapped, nfe, passes in ((model, 5, 5), (ClassifierFreeGuidance(model, 2.0), 5, 10),
                                 (Autoguidance(model, worse, 2.0), 10, 10), (Autoguidance(model, model, 2.0), 10, 10),
                                 (Autoguidance(ClassifierFreeGuidance(model, 2.0), worse, 2.0), 10, 15),
                                 (DenoisedGuidance(model, lambda x, _: -x.square().sum(1)), 5, 5)):
        result = sample(wrapped, num=6, nfe=5, condition=None if isinstance(wrapped, DenoisedGuidance) else 1, batch=4)
        assert (result.nfe, result.passes) == (nfe, passes)
    result = sample(PerturbedAttentionGuidance(load("fashion-mnist-ddpm"), 2.0), num=1, nfe=2)
    assert (result.nfe, result.passes) == (4, 4)


def test_counting_leaves_no_hook_behind() -> None:
    model = wide()
    with pytest.raises(RuntimeError), counted(model):
        raise RuntimeError
    with counted(model) as count:
        model(torch.ones(3, 8), 1.0)
    model(torch.ones(3, 8), 1.0)
    assert (count.evaluations, count.passes) == (1, 3) and not model._forward_pre_hooks
