"""Anderson's acceleration: linear problems, contraction, independence of samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from odecore.implicit.anderson import Anderson
from odecore.implicit.krylov import gmres
from odecore.implicit.root import root

SEED = torch.Generator().manual_seed(2)
N = 6
MATRICES = 0.25 * torch.randn(3, N, N, dtype=torch.float64, generator=SEED)
RIGHT = torch.randn(3, N, dtype=torch.float64, generator=SEED)


def linear(z: Tensor) -> Tensor:
    return z - torch.einsum("sij,sj->si", MATRICES, z) - RIGHT


def cosine(z: Tensor) -> Tensor:
    return z - torch.cos(z)


@torch.no_grad()
def test_without_depth_it_is_the_plain_iteration() -> None:
    z = torch.zeros(1, 1, dtype=torch.float64)
    found = root(Anderson(depth=0, limit=7), cosine, z)
    for _ in range(7):
        z = torch.cos(z)
    torch.testing.assert_close(found.z, z, rtol=1e-15, atol=0)
    assert not found.converged.any() and found.newton == found.nfe == 7


@torch.no_grad()
def test_acceleration_saves_evaluations() -> None:
    start = torch.linspace(0, 1, 4, dtype=torch.float64).unsqueeze(1)
    plain, accelerated = (root(Anderson(depth=depth), cosine, start) for depth in (0, 3))
    assert plain.converged.all() and accelerated.converged.all()
    assert accelerated.nfe < plain.nfe / 3
    torch.testing.assert_close(accelerated.z, plain.z, rtol=1e-9, atol=0)


@torch.no_grad()
def test_on_linear_problems_it_does_what_gmres_does() -> None:
    """Walker & Ni, theorem 2.2: with full depth the iterate after k + 1 steps is the map of GMRES's k-th."""
    for k in (1, 2, 3, 4):
        found = root(Anderson(depth=N, limit=k + 1), linear, torch.zeros_like(RIGHT))
        krylov = gmres(lambda v: linear(v) + RIGHT, RIGHT, tolerance=1e-15, restart=k, limit=k)
        torch.testing.assert_close(found.z, krylov.x - linear(krylov.x), rtol=0, atol=1e-11)


@torch.no_grad()
def test_a_linear_problem_ends_after_as_many_steps_as_unknowns() -> None:
    found = root(Anderson(depth=N), linear, torch.zeros_like(RIGHT))
    assert found.converged.all() and found.nfe <= N + 3
    exact = torch.linalg.solve(torch.eye(N, dtype=torch.float64) - MATRICES, RIGHT)
    torch.testing.assert_close(found.z, exact, rtol=0, atol=1e-9)


@torch.no_grad()
def test_mixing_solves_what_the_plain_iteration_cannot() -> None:
    start = torch.ones(1, 1, dtype=torch.float64)
    plain, mixed = (root(Anderson(depth=0, mixing=beta), lambda z: 3 * z - 1, start) for beta in (1.0, 0.3))
    assert mixed.converged.all() and not plain.converged.any()


@torch.no_grad()
def test_one_hard_sample_leaves_the_others_as_they_are_alone() -> None:
    factor = torch.tensor([[1.0], [20.0], [0.3]], dtype=torch.float64)
    start = torch.tensor([[0.1, 0.4], [9.0, -7.0], [0.9, 0.2]], dtype=torch.float64)

    def residual(rows: slice, z: Tensor) -> Tensor:
        return z - torch.cos(factor[rows] * z.flip(1))

    together = root(Anderson(), lambda z: residual(slice(0, 3), z), start)
    for i in (0, 2):
        alone = root(Anderson(), lambda z, i=i: residual(slice(i, i + 1), z), start[i:i + 1])
        torch.testing.assert_close(together.z[i:i + 1], alone.z, rtol=1e-15, atol=1e-15)
        assert alone.nfe < together.nfe


@torch.no_grad()
def test_a_sample_that_is_not_finite_fails_alone() -> None:
    right = RIGHT.clone()
    right[1, 2] = torch.nan
    found = root(Anderson(), lambda z: z - torch.einsum("sij,sj->si", MATRICES, z) - right, torch.zeros_like(RIGHT))
    assert found.converged.tolist() == [True, False, True] and torch.isfinite(found.z).all()


@pytest.mark.parametrize(("change", "message"), [
    ({"tolerance": 1.5}, "tolerance=1.5"), ({"limit": 0}, "limit=0"), ({"depth": -1}, "depth=-1"),
    ({"mixing": 0.0}, "mixing=0.0"), ({"restart": 0}, "restart=0"), ({"adjoint_tolerance": 0.0}, "adjoint_tolerance"),
    ({"linear_limit": 0}, "linear_limit=0")])
def test_numbers_out_of_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Anderson(**change)
