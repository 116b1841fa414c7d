"""Jacobians of samples: dense, banded, matrix-free, and linear systems with them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from odecore.implicit.jacobian import Banded, Dense, Factors, Inverse, Linearisation, MatrixFree

SEED = torch.Generator().manual_seed(4)
START = torch.randn(5, 4, dtype=torch.float64, generator=SEED)
MIXED = torch.randn(4, 4, dtype=torch.float64, generator=SEED)


def function(z: Tensor) -> Tensor:
    return 3 * z + torch.sin(z @ MIXED.mT)


def matrices() -> Tensor:
    return 3 * torch.eye(4, dtype=torch.float64) + torch.cos(START @ MIXED.mT).unsqueeze(2) * MIXED


def test_dense_jacobians_are_those_of_the_formula() -> None:
    found = Dense()(function, START)
    torch.testing.assert_close(found.values, matrices())
    assert found.nfe == 4


@pytest.mark.parametrize(("lower", "upper"), [(1, 1), (0, 0), (2, 0), (1, 3), (7, 7)])
def test_banded_jacobians_are_dense_ones_in_fewer_evaluations(lower: int, upper: int) -> None:
    index = torch.arange(8)
    band = (index[:, None] - index <= lower) & (index - index[:, None] <= upper)
    matrix = torch.randn(8, 8, dtype=torch.float64, generator=SEED) * band
    z = torch.randn(3, 8, dtype=torch.float64, generator=SEED)
    dense, banded = (structure(lambda z: torch.sin(z) @ matrix.mT, z) for structure in (Dense(), Banded(lower, upper)))
    torch.testing.assert_close(banded.values, dense.values)
    assert (dense.nfe, banded.nfe) == (8, min(lower + upper + 1, 8))


def test_products_with_a_jacobian_and_its_transpose_are_those_of_the_matrix() -> None:
    z, v = START, torch.randn(5, 4, dtype=torch.float64, generator=SEED)
    linearisation = Linearisation(function, z)
    torch.testing.assert_close(linearisation.pushed_forward(v), torch.einsum("sij,sj->si", matrices(), v))
    torch.testing.assert_close(linearisation.pulled_back(v), torch.einsum("sij,si->sj", matrices(), v))


def test_a_constant_function_has_the_jacobian_zero() -> None:
    linearisation = Linearisation(lambda z: torch.ones_like(z), START)
    assert not linearisation.pushed_forward(START).any() and not linearisation.pulled_back(START).any()


@pytest.mark.parametrize("inverse", [Factors.of(matrices()), MatrixFree(function, START, 1e-13, 10, 50)],
                         ids=["factors", "matrix-free"])
def test_linear_systems_are_solved_with_the_matrix_and_its_transpose(inverse: Inverse) -> None:
    right = torch.randn(5, 4, dtype=torch.float64, generator=SEED)
    torch.testing.assert_close(inverse.solve(right).x, torch.linalg.solve(matrices(), right), rtol=0, atol=1e-10)
    torch.testing.assert_close(inverse.solve_transposed(right).x, torch.linalg.solve(matrices().mT, right), rtol=0,
                               atol=1e-10)


def test_factors_are_replaced_for_the_samples_chosen() -> None:
    chosen = torch.tensor([True, False, True, False, False])
    both = Factors.of(matrices()).replaced(chosen, Factors.of(2 * matrices()))
    expected = Factors.of(matrices()).solve(START).x / (1.0 + chosen.unsqueeze(1))
    torch.testing.assert_close(both.solve(START).x, expected)


def test_a_negative_bandwidth_is_refused() -> None:
    with pytest.raises(ValueError, match="lower=-1"):
        Banded(-1, 0)
