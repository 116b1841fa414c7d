"""Krylov approximations of functions of matrices against the functions themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from odecore.exponential.krylov_phi import KrylovProducts, krylov_phi
from odecore.exponential.phi_sums import PhiSum, evaluate_dense, varphi

GENERATOR = torch.Generator().manual_seed(2)
SUMS = (varphi(0), 0.5 * varphi(1, 0.5), 16 * varphi(3) - 48 * varphi(4))


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=GENERATOR)


def lengths(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def heat(n: int) -> Tensor:
    ones = torch.ones(n - 1, dtype=torch.float64)
    return (torch.diag(ones, 1) + torch.diag(ones, -1) - 2 * torch.eye(n, dtype=torch.float64)) * (n + 1) ** 2


def products(
    matrices: Tensor, b: Tensor, h: Tensor, sums: tuple[PhiSum, ...] = SUMS, *, allowed: float = 1e-10,
    largest: int = 60,
) -> KrylovProducts:
    return krylov_phi(lambda v: torch.einsum("sij,sj->si", matrices, v), b, h, sums,
                      allowed=torch.full((len(b),), allowed, dtype=b.dtype), largest=largest)


def exact(matrices: Tensor, b: Tensor, h: Tensor, sums: tuple[PhiSum, ...] = SUMS) -> list[Tensor]:
    return [h.unsqueeze(1) * torch.einsum("sij,sj->si", value, b)
            for value in evaluate_dense(sums, h.reshape(-1, 1, 1) * matrices)]


@pytest.mark.parametrize("allowed", [1e-4, 1e-8, 1e-11])
def test_the_error_is_within_the_allowance(allowed: float) -> None:
    matrices, b = torch.stack((heat(40), draw(40, 40))), draw(2, 40)
    h = lengths(0.01, -0.4)
    found = products(matrices, b, h, allowed=allowed)
    assert found.converged.all()
    for value, wanted in zip(found.values, exact(matrices, b, h), strict=True):
        assert (value - wanted).norm(dim=1).max() <= allowed


def test_a_tighter_allowance_takes_more_iterations_and_a_longer_step_too() -> None:
    matrices, b = heat(60).unsqueeze(0), draw(1, 60)
    counts = [products(matrices, b, lengths(h), allowed=allowed).iterations
              for h, allowed in ((1e-3, 1e-4), (1e-3, 1e-10), (1e-2, 1e-10))]
    assert counts == sorted(set(counts))


def test_what_a_sample_gets_does_not_depend_on_the_batch() -> None:
    matrices, b, h = torch.stack((draw(30, 30), heat(30), 0.1 * draw(30, 30))), draw(3, 30), lengths(0.2, 0.05, 0.1)
    whole = products(matrices, b, h, allowed=1e-6)
    for i in range(3):
        one = slice(i, i + 1)
        alone = products(matrices[one], b[one], h[one], allowed=1e-6)
        for value, wanted in zip(whole.values, alone.values, strict=True):
            torch.testing.assert_close(value[one], wanted, rtol=1e-12, atol=1e-12)


def test_an_invariant_subspace_ends_the_process_exactly() -> None:
    matrices = torch.diag(lengths(-1.0, -2.0, -3.0, -4.0, -5.0, -6.0)).unsqueeze(0)
    b = lengths(1.0, 0, 0, 2.0, 0, 0).unsqueeze(0)
    found = products(matrices, b, lengths(3.0), allowed=1e-14)
    assert found.iterations <= 6 and found.converged.all()
    for value, wanted in zip(found.values, exact(matrices, b, lengths(3.0)), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-13, atol=1e-14)


def test_zero_vectors_and_zero_steps_give_zero() -> None:
    matrices = heat(8).expand(2, 8, 8)
    b = torch.stack((torch.zeros(8, dtype=torch.float64), draw(8)))
    found = products(matrices, b, lengths(0.1, 0.0))
    assert found.converged.all() and all(value.abs().max() == 0 for value in found.values)


def test_a_subspace_that_is_too_small_is_told_for_the_sample_that_needs_more() -> None:
    matrices, b = torch.stack((heat(60), 0.01 * heat(60))), draw(2, 60)
    assert products(matrices, b, lengths(0.1, 0.001), largest=12).converged.tolist() == [False, True]


def test_a_non_finite_operator_fails_its_sample_only() -> None:
    matrices, b = torch.stack((draw(5, 5), torch.full((5, 5), torch.nan, dtype=torch.float64))), draw(2, 5)
    found = products(matrices, b, lengths(0.1, 0.1))
    assert found.converged.tolist() == [True, False]
    torch.testing.assert_close(found.values[0][:1], exact(matrices[:1], b[:1], lengths(0.1))[0])


def test_products_are_differentiable() -> None:
    def value(matrices: Tensor, b: Tensor) -> Tensor:
        return products(matrices, b, lengths(0.3, 0.5), (varphi(1),), allowed=1e-13).values[0]

    assert torch.autograd.gradcheck(value, (draw(2, 3, 3).requires_grad_(), draw(2, 3).requires_grad_()))


def test_a_subspace_without_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="largest=0"):
        products(heat(3).unsqueeze(0), draw(1, 3), lengths(0.1), largest=0)
