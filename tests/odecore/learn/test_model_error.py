"""Corrections in closed form against normal equations, and against errors that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from odecore.learn.model_error import (
    Corrected,
    Local,
    RandomFeatures,
    Regression,
    Remembering,
    Reservoir,
    central_derivatives,
    fit_ridge,
)

X = torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
T = torch.zeros(400)


def error(x: Tensor) -> Tensor:
    return torch.stack((torch.sin(x[:, 0]), x[:, 0] * x[:, 1]), 1)


def test_the_ridge_solution_is_that_of_the_augmented_least_squares_problem() -> None:
    model = RandomFeatures(2, 2, 20, seed=1)
    fit_ridge(model, X, error(X), ridge=1e-3)
    features = torch.cat((model.features(X) / math.sqrt(400), math.sqrt(1e-3) * torch.eye(20, dtype=torch.float64)))
    targets = torch.cat((error(X) / math.sqrt(400), torch.zeros(20, 2, dtype=torch.float64)))
    expected = torch.linalg.lstsq(features, targets).solution.T
    torch.testing.assert_close(model.coefficients.detach(), expected, rtol=1e-8, atol=1e-10)


def test_rows_without_weight_count_for_nothing() -> None:
    phi = RandomFeatures(2, 2, 20).features(X)
    weights = (torch.arange(400) < 100).double()
    some = Regression.of(phi, error(X), weights).coefficients(1e-3)
    torch.testing.assert_close(some, Regression.of(phi[:100], error(X)[:100]).coefficients(1e-3), rtol=1e-8, atol=1e-9)


def test_a_known_model_and_its_learned_error_are_the_truth_and_without_data_the_known_model() -> None:
    def known(x: Tensor, t: Tensor) -> Tensor:
        return -x

    model = RandomFeatures(2, 2, 300, centre=X.mean(0), scale=X.std(0), spread=2.0)
    corrected = Corrected(known, model)
    assert torch.equal(corrected(X, T), -X)
    fit_ridge(model, X, error(X), ridge=1e-10)
    inside = 0.5 * X.clamp(-2, 2)
    torch.testing.assert_close(corrected(inside, T), error(inside) - inside, rtol=0, atol=1e-3)
    torch.testing.assert_close(Corrected(None, model)(inside, T), error(inside), rtol=0, atol=1e-3)


def test_derivatives_are_exact_on_polynomials_of_degree_six() -> None:
    t = torch.linspace(-1, 1, 21, dtype=torch.float64)
    states, slopes = central_derivatives((t**6 - 2 * t).reshape(1, -1, 1), 0.1)
    torch.testing.assert_close(states[:, 0], (t**6 - 2 * t)[3:-3])
    torch.testing.assert_close(slopes[:, 0], (6 * t**5 - 2)[3:-3], rtol=0, atol=1e-11)


def test_a_reservoir_forgets_where_it_started() -> None:
    reservoir = Reservoir(1, 30, rates=(1.0, 10.0), seed=0)
    r = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for k in range(2000):
        x = torch.full((2, 1), math.sin(0.02 * k), dtype=torch.float64)
        r = r + 0.02 * reservoir(torch.cat((x, r), 1))
    torch.testing.assert_close(r[0], r[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_a_local_correction_is_the_same_function_at_every_place_of_a_ring(reach: int) -> None:
    x = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    local = Local(nn.Linear(2 * reach + 1, 1, bias=False, dtype=torch.float64), reach=reach)
    weights = torch.arange(1.0, 2 * reach + 2, dtype=torch.float64)
    with torch.no_grad():
        local.network.weight.copy_(weights[None])  # type: ignore[operator, union-attr]
    expected = torch.tensor([[sum(weights[k + reach] * row[(i + k) % 7] for k in range(-reach, reach + 1))
                              for i in range(7)] for row in x], dtype=torch.float64)
    torch.testing.assert_close(local(x).detach(), expected)


def test_memory_has_a_derivative_of_its_own() -> None:
    class Zero(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            return torch.zeros_like(y[..., :1])

    field = Remembering(lambda x, t: -x, Zero(), Reservoir(1, 4, rates=(1.0, 1.0)), observed=1)
    value = field(torch.ones(3, 5, dtype=torch.float64), torch.zeros(3))
    assert value.shape == (3, 5) and torch.equal(value[:, :1], -torch.ones(3, 1, dtype=torch.float64))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="positive spread"):
        RandomFeatures(2, 2, 10, spread=0.0)
    with pytest.raises(ValueError, match="give the same"):
        fit_ridge(RandomFeatures(2, 2, 10), X, X[:5], ridge=1.0)
    with pytest.raises(ValueError, match="leave their rows out"):
        fit_ridge(RandomFeatures(2, 2, 10), X, X * torch.nan, ridge=1.0)
    with pytest.raises(ValueError, match="give a positive number"):
        fit_ridge(RandomFeatures(2, 2, 10), X, X, ridge=0.0)
    with pytest.raises(ValueError, match="below 1"):
        Reservoir(1, 4, rates=(1.0, 2.0), contraction=1.0)
    with pytest.raises(ValueError, match="0 or more neighbours"):
        Local(nn.Identity(), reach=-1)
    with pytest.raises(ValueError, match="at least 7"):
        central_derivatives(torch.zeros(1, 6, 1), 0.1)
