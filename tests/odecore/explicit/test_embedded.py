"""Steps of explicit pairs: the formula of the tableau, evaluations, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from odecore.explicit.embedded import BOGACKI_SHAMPINE, DOP853, DORMAND_PRINCE, HEUN_EULER, TSITOURAS, EmbeddedPair
from odecore.explicit.tableaus import Tableau

PAIRS = {"Heun-Euler": HEUN_EULER, "Bogacki-Shampine": BOGACKI_SHAMPINE, "Dormand-Prince": DORMAND_PRINCE,
         "Tsitouras": TSITOURAS, "DOP853": DOP853}
each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def field(y: Tensor, t: Tensor) -> Tensor:
    return torch.sin(y) * torch.cos(3 * t).reshape(-1, 1).to(y.dtype) + y.flip(1)


def by_hand(pair: EmbeddedPair, t0: float, t1: float, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition of one step of one sample, in NumPy."""
    h, slopes = t1 - t0, []
    for a in pair.tableau.a:
        point = y + h * sum((w * k for w, k in zip(a, slopes, strict=True)), np.zeros_like(y))
        slopes.append(np.sin(point) * np.cos(3 * (t0 + sum(a) * h)) + point[::-1])
    new, low = (y + h * sum(w * k for w, k in zip(b, slopes, strict=True)) for b in (pair.tableau.b, pair.embedded))
    return new, new - low


@each_pair
def test_a_step_is_that_of_the_tableau_for_each_sample(pair: EmbeddedPair) -> None:
    y = torch.tensor([[0.3, -1.0], [2.0, 0.5], [1.0, 1.0]], dtype=torch.float64)
    t0, t1 = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64), torch.tensor([0.3, 0.4, 2.0], dtype=torch.float64)
    carry, _ = pair.start(field, t0, y)
    step = pair.step(field, t0, t1, y, carry)
    for i in range(3):
        new, error = by_hand(pair, float(t0[i]), float(t1[i]), y[i].numpy())
        np.testing.assert_allclose(step.y[i], new, rtol=0, atol=5e-15)
        np.testing.assert_allclose(step.error[i], error, rtol=1e-9, atol=5e-15)
    assert torch.equal(step.magnitude, torch.maximum(y.abs(), step.y.abs()))


@each_pair
def test_a_step_costs_its_stages_less_the_one_handed_on(pair: EmbeddedPair) -> None:
    calls = []

    def counted(y: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return field(y, t)

    y, t = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    carry, started = pair.start(counted, t, y)
    step = pair.step(counted, t, t + 0.1, y, carry)
    assert started == len(carry) == pair.first_same_as_last
    assert len(calls) == started + step.nfe and step.nfe == pair.tableau.stages - len(carry)


@pytest.mark.parametrize("pair", [BOGACKI_SHAMPINE, DORMAND_PRINCE, TSITOURAS, DOP853])
def test_the_slope_handed_on_is_that_at_the_result(pair: EmbeddedPair) -> None:
    y, t = torch.tensor([[0.3, -1.0]], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    carry, _ = pair.start(field, t, y)
    step = pair.step(field, t, t + 0.1, y, carry)
    torch.testing.assert_close(step.carry[0], field(step.y, t + 0.1), rtol=1e-14, atol=0)


@each_pair
def test_a_step_has_the_gradient_of_what_it_computes(pair: EmbeddedPair) -> None:
    t0 = torch.tensor([0.1, 0.7], dtype=torch.float64, requires_grad=True)
    t1 = torch.tensor([0.2, 0.9], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0.3, -1.0], [2.0, 0.5]], dtype=torch.float64, requires_grad=True)

    def step(t0: Tensor, t1: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        taken = pair.step(field, t0, t1, y, pair.start(field, t0, y)[0])
        return taken.y, taken.error

    assert torch.autograd.gradcheck(step, (t0, t1, y))


def test_a_step_leaves_its_arguments_alone() -> None:
    def identity(y: Tensor, t: Tensor) -> Tensor:
        return y  # the very tensor: writing to a stage would write to its slope

    y, t = torch.tensor([[1.0], [2.0]], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    step = DORMAND_PRINCE.step(identity, t, t + 0.01, y, (y,))
    torch.testing.assert_close(step.y, y * torch.tensor(0.01, dtype=torch.float64).exp(), rtol=1e-14, atol=0)
    assert y.flatten().tolist() == [1.0, 2.0]


def test_a_pair_without_estimate_has_an_error_of_zero() -> None:
    tableau = Tableau(a=((), (0.5,)), b=(0.0, 1.0), order=2)
    y, t = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    step = EmbeddedPair(tableau, tableau.b, error_order=0).step(field, t, t + 0.1, y, ())
    assert torch.equal(step.error, torch.zeros_like(y))
