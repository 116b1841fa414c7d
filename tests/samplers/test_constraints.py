"""Constrained samples: nearest points in closed form, and violations on the embedded model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from samplers import sample
from samplers.constraints import (
    ConstrainedModel,
    SampleConstraint,
    constrained,
    known_pixels,
    mean_at_most,
    mean_value,
    mirrored,
)
from scoremodels.loaders import load

X0 = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)[:, None, None, None]


def test_the_nearest_sample_of_a_given_mean_is_a_shift() -> None:
    torch.testing.assert_close(constrained(X0, [mean_value(0.3)]), X0 - mean(X0) + 0.3, rtol=0, atol=1e-4)


def test_the_nearest_symmetric_sample_is_the_mean_of_both() -> None:
    torch.testing.assert_close(constrained(X0, [mirrored()]), (X0 + X0.flip(-1)) / 2, rtol=0, atol=1e-4)


def test_an_ink_limit_moves_only_the_samples_above_it() -> None:
    found = constrained(X0, [mean_at_most(0.0)])
    torch.testing.assert_close(found, torch.where(mean(X0) > 0, X0 - mean(X0), X0), rtol=0, atol=1e-4)


def test_known_pixels_are_met_and_the_others_stay() -> None:
    mask = torch.zeros(1, 6, 6, dtype=torch.bool)
    mask[:, :3] = True
    found = constrained(X0, [known_pixels(torch.zeros(1, 6, 6), mask)])
    assert float(found[:, :, :3].abs().max()) < 1e-4 and torch.equal(found[:, :, 3:], X0[:, :, 3:])


def test_samples_of_the_embedded_model_keep_two_constraints_at_the_same_evaluations() -> None:
    demands = [mirrored(), mean_at_most(-0.6)]
    model = ConstrainedModel(load("fashion-mnist-edm"), demands)
    result = sample(model, num=2, solver="ddim", nfe=4, condition=3, end="clean")
    free = sample(model.model, num=2, solver="ddim", nfe=4, condition=3, end="clean")
    assert result.nfe == free.nfe == 4
    assert all(float(demand.violation(result.samples).max()) < 1e-2 for demand in demands)
    assert float(demands[0].violation(free.samples).max()) > 0.1


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="choose equality or inequality"):
        SampleConstraint(constrained, mean)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one constraint"):
        ConstrainedModel(load("fashion-mnist-edm"), [])
