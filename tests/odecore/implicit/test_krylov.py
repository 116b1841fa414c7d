"""Arnoldi's basis and batched GMRES, against dense linear algebra and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

from odecore.implicit.krylov import arnoldi, gmres, orthogonalise

SEED = torch.Generator().manual_seed(5)
N = 12
MATRICES = torch.eye(N, dtype=torch.float64) + 0.3 * torch.randn(3, N, N, dtype=torch.float64, generator=SEED)
RIGHT = torch.randn(3, N, dtype=torch.float64, generator=SEED)


def apply(v: Tensor) -> Tensor:
    return torch.einsum("sij,sj->si", MATRICES.to(v.dtype), v)


def test_a_vector_is_the_sum_of_its_parts() -> None:
    basis = torch.linalg.qr(torch.randn(3, N, 4, dtype=torch.float64, generator=SEED))[0].mT
    split = orthogonalise(basis, RIGHT)
    torch.testing.assert_close(torch.einsum("sk,skn->sn", split.coefficients, basis) + split.norm[:, None] * split.unit,
                               RIGHT)
    assert torch.einsum("skn,sn->sk", basis, split.unit).abs().max() <= 1e-14


def test_a_vector_in_the_span_leaves_no_direction() -> None:
    split = orthogonalise(torch.eye(N, dtype=torch.float64)[:3].expand(3, 3, N), RIGHT * (torch.arange(N) < 3))
    assert not split.norm.any() and not split.unit.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_arnoldi_projects_the_operator_onto_an_orthonormal_basis(dtype: torch.dtype) -> None:
    start = RIGHT.to(dtype) * (1 + 2j if dtype.is_complex else 1)
    found = arnoldi(apply, start, 6)
    gram = torch.einsum("sin,sjn->sij", found.basis.conj(), found.basis)
    torch.testing.assert_close(gram, torch.eye(7, dtype=dtype).expand(3, 7, 7), rtol=0, atol=1e-13)
    products = torch.stack([apply(v) for v in found.basis[:, :6].unbind(1)], 1)
    torch.testing.assert_close(products, torch.einsum("skj,skn->sjn", found.hessenberg, found.basis))
    torch.testing.assert_close(found.basis[:, 0] * found.norm[:, None], start)


def test_arnoldi_ends_in_an_invariant_subspace() -> None:
    found = arnoldi(lambda v: 2 * v, RIGHT, 3)
    assert not found.basis[:, 1:].any()
    torch.testing.assert_close(found.hessenberg[:, 0, 0], torch.full((3,), 2.0, dtype=torch.float64))


@pytest.mark.parametrize("restart", [N, 5])
def test_gmres_solves_to_its_tolerance(restart: int) -> None:
    exact = torch.linalg.solve(MATRICES, RIGHT)
    found = gmres(apply, RIGHT, tolerance=1e-12, restart=restart, limit=600)
    assert found.converged.all()
    assert ((RIGHT - apply(found.x)).norm(dim=1) <= 2e-12 * RIGHT.norm(dim=1)).all()
    torch.testing.assert_close(found.x, exact, rtol=0, atol=1e-10)


def test_gmres_has_the_residuals_of_scipy() -> None:
    for size in (3, 6, 9):
        found = gmres(apply, RIGHT, tolerance=1e-14, restart=size, limit=size)
        for sample in range(3):
            theirs, _ = scipy.sparse.linalg.gmres(MATRICES[sample].numpy(), RIGHT[sample].numpy(), rtol=1e-14,
                                                  restart=size, maxiter=1)
            np.testing.assert_allclose(found.x[sample], theirs, rtol=0, atol=1e-10)


def test_a_sample_is_solved_as_it_is_alone() -> None:
    scaled = RIGHT * torch.tensor([[1.0], [0.0], [1e-9]], dtype=torch.float64)
    easy = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).reshape(-1, 1, 1)
    matrices = MATRICES * (1 - easy) + easy * 2 * torch.eye(N, dtype=torch.float64)

    def product(rows: slice, v: Tensor) -> Tensor:
        return torch.einsum("sij,sj->si", matrices[rows], v)

    together = gmres(lambda v: product(slice(0, 3), v), scaled, tolerance=1e-8, restart=5)
    for i in range(3):
        alone = gmres(lambda v, i=i: product(slice(i, i + 1), v), scaled[i:i + 1], tolerance=1e-8, restart=5)
        torch.testing.assert_close(together.x[i:i + 1], alone.x, rtol=1e-12, atol=0)
    assert not together.x[1].any() and together.converged.all()


def test_a_singular_matrix_is_told() -> None:
    diagonal = torch.ones(3, N, dtype=torch.float64)
    diagonal[1, 0] = 0.0
    found = gmres(lambda v: diagonal * v, RIGHT, tolerance=1e-10)
    assert found.converged.tolist() == [True, False, True]
    torch.testing.assert_close(found.x[0], RIGHT[0])
    assert found.iterations < 20


def test_right_hand_sides_that_are_not_finite_fail_alone() -> None:
    right = RIGHT.clone()
    right[2, 0] = torch.nan
    assert gmres(apply, right, tolerance=1e-10).converged.tolist() == [True, True, False]


def test_an_empty_subspace_is_refused() -> None:
    with pytest.raises(ValueError, match="size=0"):
        arnoldi(apply, RIGHT, 0)
