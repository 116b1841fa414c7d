"""Newton's methods: convergence, evaluations, independence of samples."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import root as scipy_root
from torch import Tensor

from odecore.implicit.jacobian import Dense, Matrices, Structure
from odecore.implicit.newton import Chord, Newton, NewtonKrylov, RootFinder, thresholds
from odecore.implicit.root import root

FINDERS: dict[str, RootFinder] = {"newton": Newton(), "chord": Chord(), "krylov": NewtonKrylov()}
every_finder = pytest.mark.parametrize("finder", FINDERS.values(), ids=FINDERS)

SEED = torch.Generator().manual_seed(1)
START = torch.randn(5, 4, dtype=torch.float64, generator=SEED)


def diffusion(z: Tensor) -> Tensor:
    """A non-linear reaction and diffusion in a chain of cells."""
    left, right = torch.nn.functional.pad(z[:, :-1], (1, 0)), torch.nn.functional.pad(z[:, 1:], (0, 1))
    return z + z**3 - left - 0.5 * right - 1


class Counting:
    """Counts calls, and how many Jacobians were found."""

    def __init__(self, structure: Structure) -> None:
        self.structure, self.count = structure, 0

    def __call__(self, function: object, z: Tensor) -> Matrices:
        self.count += 1
        return self.structure(function, z)  # type: ignore[arg-type]


@torch.no_grad()
@every_finder
def test_roots_are_those_of_scipy(finder: RootFinder) -> None:
    found = root(finder, diffusion, START)
    assert found.converged.all()
    for sample, z in zip(START, found.z, strict=True):
        theirs = scipy_root(lambda v: diffusion(torch.tensor(v).unsqueeze(0))[0].numpy(), sample.numpy(), tol=1e-13)
        torch.testing.assert_close(z, torch.tensor(theirs.x), rtol=0, atol=1e-9)


@torch.no_grad()
@every_finder
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roots_are_as_accurate_as_their_dtype_allows(finder: RootFinder, dtype: torch.dtype) -> None:
    found = root(finder, diffusion, START.to(dtype))
    assert found.converged.all()
    assert found.z.dtype == dtype
    assert diffusion(found.z).abs().max() <= (3e-5 if dtype == torch.float32 else 1e-9)


@torch.no_grad()
def test_newton_converges_quadratically() -> None:
    errors = [(root(Newton(limit=n), lambda z: z * z - 2, torch.full((1, 1), 1.5, dtype=torch.float64)).z - 2**0.5)
              .abs().item() for n in (1, 2, 3)]
    assert errors[1] <= errors[0] ** 2 and errors[2] <= errors[1] ** 2


@torch.no_grad()
def test_a_linear_system_takes_one_iteration_and_one_to_see_it() -> None:
    a = torch.eye(4, dtype=torch.float64) * 3 + torch.randn(4, 4, dtype=torch.float64, generator=SEED)
    for finder, evaluations in ((Newton(), 2 + 8), (Chord(), 2 + 4)):
        found = root(finder, lambda z: z @ a.mT - 1, START)
        assert (found.newton, found.nfe, found.krylov) == (2, evaluations, 0)


@torch.no_grad()
def test_a_chord_keeps_its_jacobian_while_it_serves() -> None:
    jacobian = Counting(Dense())
    found = root(Chord(jacobian=jacobian), lambda z: z + 0.01 * z**2 - 1, START)
    assert found.converged.all() and jacobian.count == 1 and found.newton > 3
    again = root(Chord(jacobian=jacobian), lambda z: z + 0.01 * z**2 - 1.01, found.z, inverse=found.inverse)
    assert again.converged.all() and jacobian.count == 1


@torch.no_grad()
def test_a_chord_finds_the_jacobian_of_a_slow_sample_anew() -> None:
    jacobian = Counting(Dense())
    start = torch.tensor([[1.01], [30.0]], dtype=torch.float64)
    found = root(Chord(jacobian=jacobian), lambda z: z**2 - 1, start)
    assert found.converged.all() and jacobian.count > 1
    torch.testing.assert_close(found.z, torch.ones_like(start), rtol=0, atol=1e-9)


@torch.no_grad()
@every_finder
def test_one_hard_sample_leaves_the_others_as_they_are_alone(finder: RootFinder) -> None:
    hard = torch.tensor([[1.0], [1e3], [1.0]], dtype=torch.float64)  # the second wants many iterations
    start = torch.ones(3, 4, dtype=torch.float64) * torch.tensor([[1.2], [40.0], [0.3]])

    def residual(rows: slice, z: Tensor) -> Tensor:
        return diffusion(z) + torch.sinh(z) * hard[rows]

    together = root(finder, lambda z: residual(slice(0, 3), z), start)
    for i in (0, 2):
        alone = root(finder, lambda z, i=i: residual(slice(i, i + 1), z), start[i:i + 1])
        torch.testing.assert_close(together.z[i:i + 1], alone.z, rtol=1e-15, atol=1e-15)
        assert alone.newton < together.newton


@torch.no_grad()
@every_finder
def test_a_sample_without_a_root_is_told_and_stays_finite(finder: RootFinder) -> None:
    wanted = torch.tensor([[2.0], [-1.0], [torch.nan]], dtype=torch.float64)
    found = root(finder, lambda z: z * z - wanted, torch.ones(3, 1, dtype=torch.float64))
    assert found.converged.tolist() == [True, False, False]
    assert torch.isfinite(found.z).all()


@torch.no_grad()
@every_finder
def test_a_singular_jacobian_is_told(finder: RootFinder) -> None:
    found = root(finder, lambda z: z * z - 1, torch.tensor([[0.0], [2.0]], dtype=torch.float64))
    assert found.converged.tolist() == [False, True]


@torch.no_grad()
@every_finder
def test_small_components_are_found_beside_large_ones(finder: RootFinder) -> None:
    wanted = torch.tensor([[1.0, 1e-2]], dtype=torch.float64)
    found = root(finder, lambda z: z + 0.1 * z**2 / wanted - 1.1 * wanted, 1.5 * wanted)
    torch.testing.assert_close(found.z, wanted, rtol=1e-9, atol=0)


def test_a_change_is_measured_by_component_whole_and_rounding() -> None:
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    given = thresholds(z, torch.zeros_like(z), 1e-6)
    assert given.squeeze().tolist() == pytest.approx([1e-6, 1e-9 * 0.5**0.5], rel=1e-5)
    assert thresholds(z.float(), torch.zeros(1, 2), 1e-12).min() >= 20 * torch.finfo(torch.float32).eps
    assert torch.isinf(thresholds(z, torch.full_like(z, torch.inf), 1e-6)).all()


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Newton(tolerance=0.0), "tolerance=0.0"), (lambda: Newton(limit=0), "limit=0"),
    (lambda: Chord(slow=1.0), "slow=1.0"), (lambda: NewtonKrylov(restart=0), "restart=0"),
    (lambda: NewtonKrylov(linear_tolerance=2.0), "linear_tolerance=2.0"),
    (lambda: NewtonKrylov(linear_limit=0), "linear_limit=0")])
def test_numbers_out_of_range_are_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
