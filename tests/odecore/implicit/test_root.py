"""Roots as differentiable values: gradients, forward mode, complex states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from odecore.implicit.anderson import Anderson
from odecore.implicit.jacobian import Banded
from odecore.implicit.newton import Chord, Newton, NewtonKrylov, RootFinder
from odecore.implicit.root import root

FINDERS: dict[str, RootFinder] = {
    "newton": Newton(tolerance=1e-13), "chord": Chord(tolerance=1e-13), "banded": Newton(1e-13, jacobian=Banded(2, 2)),
    "krylov": NewtonKrylov(tolerance=1e-13), "anderson": Anderson(tolerance=1e-13)}

every_finder = pytest.mark.parametrize("finder", FINDERS.values(), ids=FINDERS)

TORCH = torch.Generator().manual_seed(3)
START = torch.randn(4, 3, dtype=torch.float64, generator=TORCH)
MATRIX = 0.3 * torch.randn(3, 3, dtype=torch.float64, generator=TORCH)


def solved(finder: RootFinder, y: Tensor, a: Tensor) -> Tensor:
    """The root of z = y + A tanh z - z³/20."""
    found = root(finder, lambda z: z - y - torch.tanh(z) @ a.mT + z**3 / 20, y)
    assert found.converged.all()
    return found.z


def unrolled(y: Tensor, a: Tensor) -> Tensor:
    """The same root by so many plain iterations that autograd through them is exact."""
    z = y
    for _ in range(200):
        z = 0.5 * z + 0.5 * (y + torch.tanh(z) @ a.mT - z**3 / 20)
    return z


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@every_finder
def test_gradients_are_those_of_the_unrolled_iteration(finder: RootFinder) -> None:
    results = []
    for solve in (lambda y, a: solved(finder, y, a), unrolled):
        y, a = START.clone().requires_grad_(), MATRIX.clone().requires_grad_()
        z = solve(y, a)
        results.append((z.detach(), *torch.autograd.grad((z.sin() * torch.arange(1, 4)).sum(), (y, a))))
    for ours, theirs in zip(*results, strict=True):
        assert relative(ours, theirs) <= 1e-11


@every_finder
def test_a_root_used_twice_gives_both_gradients(finder: RootFinder) -> None:
    a = MATRIX.clone().requires_grad_()
    z = solved(finder, START, a)
    (first,) = torch.autograd.grad(z.sum(), a, retain_graph=True)
    (second,) = torch.autograd.grad(z.square().sum(), a, retain_graph=True)
    (both,) = torch.autograd.grad(z.sum() + z.square().sum(), a)
    assert relative(both, first + second) <= 1e-11


@pytest.mark.parametrize("finder", [FINDERS["newton"], FINDERS["krylov"]], ids=["newton", "krylov"])
def test_tangents_are_the_products_with_the_jacobian(finder: RootFinder) -> None:
    direction = torch.ones_like(MATRIX)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(solved(finder, START, forward_ad.make_dual(MATRIX, direction))).tangent
    _, expected = torch.autograd.functional.jvp(lambda a: unrolled(START, a), MATRIX, direction)
    assert relative(tangent, expected) <= 1e-11


@pytest.mark.parametrize("finder", [Newton(1e-13), NewtonKrylov(1e-13)], ids=["newton", "krylov"])
def test_complex_roots_need_not_be_holomorphic(finder: RootFinder) -> None:
    y = torch.view_as_complex(torch.randn(2, 2, 2, dtype=torch.float64, generator=TORCH))

    def residual(z: Tensor, y: Tensor) -> Tensor:
        return z - y + 0.1j * z * z.abs().square() + 0.1 * z.conj()

    def solve(y: Tensor) -> Tensor:
        return root(finder, lambda z: residual(z, y), y).z

    assert residual(solve(y), y).abs().max() <= 1e-12
    assert torch.autograd.gradcheck(solve, y.clone().requires_grad_(), eps=1e-6, atol=1e-8)


def test_a_sample_asked_for_nothing_gives_no_gradient_where_its_jacobian_is_singular() -> None:
    y = torch.tensor([[4.0], [0.0]], dtype=torch.float64, requires_grad=True)
    found = root(Newton(1e-13, limit=60), lambda z: z * z - y, torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(found.z[0].sum(), y)
    assert gradient.squeeze(1).tolist() == pytest.approx([0.25, 0.0])


def test_gradients_of_an_unsolvable_linear_system_are_refused() -> None:
    y = torch.ones(1, 40, dtype=torch.float64, requires_grad=True)
    rates = torch.logspace(0, 6, 40, dtype=torch.float64)
    found = root(Anderson(limit=2, linear_limit=5), lambda z: z * rates - y, 1 / rates.unsqueeze(0))
    with pytest.raises(RuntimeError, match="linear_limit"):
        found.z.square().sum().backward()


def test_without_gradients_the_root_costs_one_evaluation_less() -> None:
    counts = []
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            counts.append(root(Newton(), lambda z: z - START, START + 1).nfe)
    assert counts[0] == counts[1] + 1


@pytest.mark.parametrize(("change", "message"), [
    ({"guess": torch.ones(2, 3, dtype=torch.int64)}, "guess has dtype"),
    ({"guess": torch.tensor(1.0)}, "guess has dtype"),
    ({"scale": torch.ones(2, 2)}, "scale has shape"),
    ({"guess": torch.ones(2, 3, 1), "residual": lambda z: z[:1]}, "residual returned shape")])
def test_wrong_input_is_refused(change: dict, message: str) -> None:
    arguments = {"finder": Newton(), "residual": lambda z: z, "guess": torch.ones(2, 3)} | change
    with pytest.raises(ValueError, match=message):
        root(**arguments)
