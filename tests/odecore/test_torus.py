from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odecore.torus import coefficients, laplacian, mode_shape, resampled, values, wave_numbers


def function(points: int, dim: int) -> torch.Tensor:
    x = torch.arange(points).double() / points
    u = 1 + torch.sin(2 * math.pi * x) - 3 * torch.cos(6 * math.pi * x)
    return u if dim == 1 else u.unsqueeze(1) + torch.sin(2 * math.pi * (2 * x.unsqueeze(1) - x))


@pytest.mark.parametrize("dim", [1, 2])
@settings(max_examples=20, deadline=None)
@given(coarse=st.integers(8, 20), fine=st.integers(8, 20), modes=st.integers(3, 12))
def test_coefficients_do_not_depend_on_the_grid(dim: int, coarse: int, fine: int, modes: int) -> None:
    one, other = (coefficients(function(n, dim), modes, dim) for n in (coarse, fine))
    assert one.shape == mode_shape(modes, dim)
    assert torch.allclose(one, other, atol=1e-14)
    assert torch.allclose(values(one, fine, dim), function(fine, dim), atol=1e-13)


def test_a_sine_has_the_coefficients_of_its_formula() -> None:
    found = coefficients(function(16, 1), 4, 1)
    wanted = torch.tensor([1, -0.5j, 0, -1.5, 0], dtype=torch.complex128)
    assert torch.allclose(found, wanted, atol=1e-15)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_resampling_keeps_what_both_grids_hold(dim: int) -> None:
    u = torch.randn(2, *[7] * dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(resampled(resampled(u, 15, dim), 7, dim), u, atol=1e-13)


def test_the_laplacian_is_the_second_derivative() -> None:
    x = torch.arange(12).double() / 12
    u = torch.cos(2 * math.pi * (x.unsqueeze(1) - 2 * x))
    found = values(laplacian(5, 2) * coefficients(u, 5, 2), 12, 2)
    assert torch.allclose(found, -20 * math.pi**2 * u, atol=1e-11)
    assert [k.shape for k in wave_numbers(5, 2)] == [(11, 6), (11, 6)]


@pytest.mark.parametrize(("call", "name"), [
    (lambda: coefficients(torch.zeros(8), -1, 1), "modes"), (lambda: values(torch.zeros(3) * 1j, 0, 1), "points"),
    (lambda: wave_numbers(3, 0), "dim")])
def test_a_wrong_number_is_named(call: object, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call()  # type: ignore[operator]
