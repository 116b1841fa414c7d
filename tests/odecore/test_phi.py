"""φ-functions and exponential weights against arbitrary-precision arithmetic."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odecore.phi import exponential_weights, moments, phi, phi_dense

SIZES = [1e-12, 1e-9, 1e-6, 1e-3, 0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 15.9, 16.1, 25.0, 39.9, 40.1, 50.0]
NODES = {
    "now": (0.0,), "history": (0.0, -0.7), "far history": (0.0, -1e-3, -5.0), "stages": (0.0, 1 / 3, 2 / 3),
    "both ends": (0.0, 0.25, 0.5, 0.75, 1.0), "mixed": (-2.0, -0.9, -0.3, 0.0, 0.6, 1.0),
    "adams": (0.0, -1.0, -2.0, -3.0, -4.0, -5.0), "clustered": (0.97, 1.0, 0.99, -0.01, 0.01), "outside": (1.5, 1.1),
}
"""In units of the step."""


def exact_phi(k: int, z: complex) -> mp.mpc:
    """φ_k by its series or its recurrence, with far more digits than either loses."""
    with mp.workdps(90):
        exact = mp.mpmathify(z)
        if abs(exact) < 5:
            return mp.fsum(exact**n / mp.factorial(n + k) for n in range(60))
        value = mp.exp(exact)
        for j in range(k):
            value = (value - 1 / mp.factorial(j)) / exact
        return value


def exact_weights(nodes: Sequence[float], h: float, rate: complex) -> list[tuple[mp.mpc, mp.mpf]]:
    """Each weight, and the integral of the absolute value of its integrand, in 220 digits."""
    with mp.workdps(220):
        points, h_, rate_ = [mp.mpf(node) for node in nodes], mp.mpf(h), mp.mpmathify(rate)
        result = []
        for j, node in enumerate(points):
            polynomial = [mp.mpf(1)]  # coefficients of u^0, u^1, …
            for i, other in enumerate(points):
                if i != j:
                    shifted = [mp.mpf(0), *polynomial]
                    polynomial = [(a - other * b) / (node - other)
                                  for a, b in zip(shifted, [*polynomial, mp.mpf(0)], strict=True)]
            # ∫ e^{-r(h-u)} p(u) du = e^{-r(h-u)} Σ_k (-1)^k p^{(k)}(u) / r^{k+1}
            signs = sorted(p for p in points if p != node and min(0, h_) < p < max(0, h_))
            places = [mp.mpf(0), *(signs if h > 0 else signs[::-1]), h_]
            whole = _integral(polynomial, rate_, h_, places[0], places[-1])
            real = mp.re(rate_)
            parts = (_integral(polynomial, real, h_, a, b) for a, b in zip(places[:-1], places[1:], strict=True))
            result.append((whole, mp.fsum(abs(part) for part in parts)))
        return result


def _integral(polynomial: list[mp.mpf], rate: mp.mpc, h: mp.mpf, start: mp.mpf, end: mp.mpf) -> mp.mpc:
    if rate == 0:
        return mp.fsum(c * (end ** (k + 1) - start ** (k + 1)) / (k + 1) for k, c in enumerate(polynomial))

    def primitive(u: mp.mpf) -> mp.mpc:
        derivative, total, sign = polynomial, mp.mpf(0), 1
        for k in range(len(polynomial)):
            total += sign * mp.fsum(c * u**n for n, c in enumerate(derivative)) / rate ** (k + 1)
            derivative, sign = [n * c for n, c in enumerate(derivative)][1:], -sign
        return mp.exp(-rate * (h - u)) * total

    return primitive(end) - primitive(start)


@pytest.mark.parametrize("k", range(7))
def test_phi_of_a_real_number_has_relative_error_below_1e_14(k: int) -> None:
    for size in [*SIZES, 300.0]:
        for z in (size, -size):
            assert phi(k, z) == pytest.approx(float(exact_phi(k, z)), rel=1e-14, abs=0)


@pytest.mark.parametrize("k", range(7))
def test_phi_of_a_complex_number_is_exact_to_the_size_of_its_kernel(k: int) -> None:
    for size in [*SIZES, 1e3, 1e6]:
        for angle in np.linspace(math.pi / 2, 3 * math.pi / 2, 5):
            z = cmath.rect(size, angle)
            exact = exact_phi(k, z)
            scale = max(abs(exact), abs(exact_phi(k, z.real)))
            assert abs(phi(k, z) - exact) <= 3e-14 * scale + 1e-300


def test_phi_of_a_tensor_equals_phi_of_its_elements() -> None:
    values = [s * z for z in SIZES for s in (1.0, -1.0)] + [0.0]
    for k in (0, 1, 4):
        assert phi(k, torch.tensor(values, dtype=torch.float64)).tolist() == [phi(k, z) for z in values]
        stiff = torch.tensor([complex(-1e6, 3.0), complex(0, 1e6), 0.0])
        assert torch.allclose(phi(k, stiff), torch.tensor([phi(k, z) for z in stiff.tolist()], dtype=torch.complex64))


def test_phi_at_zero_is_one_over_the_factorial() -> None:
    assert [phi(k, 0.0) for k in range(6)] == pytest.approx([1 / math.factorial(k) for k in range(6)], rel=1e-15)


def test_phi_keeps_dtype_and_computes_in_double_precision() -> None:
    result = phi(3, torch.tensor([1e-6], dtype=torch.float32))
    assert result.dtype == torch.float32 and result.item() == pytest.approx(1 / 6, rel=1e-6)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_phi_is_differentiable_everywhere(k: int) -> None:
    z = torch.tensor([-1e4, -20.0, -1.0, -1e-8, 0.0, 1e-8, 2.0, 15.99, 16.01, 30.0], dtype=torch.float64)
    exact = [float(mp.diff(lambda x: exact_phi(k, x), mp.mpf(v))) if abs(v) < 1e3 else None for v in z.tolist()]
    z.requires_grad_()
    (gradient,) = torch.autograd.grad(phi(k, z).sum(), z)
    for got, wanted in zip(gradient.tolist(), exact, strict=True):
        assert math.isfinite(got) if wanted is None else got == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("k", [0, 1, 2, 5])
def test_phi_of_diagonalisable_matrices_acts_on_their_eigenvalues(k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(3, 4, 4, generator=generator, dtype=torch.float64))
    eigenvalues = torch.tensor([[0.0, -1e-9, -0.3, 1.0], [-50.0, -20.0, 2.0, 0.1], [-1e-3, 1e-3, 1e-6, 0.0]],
                               dtype=torch.float64)
    matrices = basis @ torch.diag_embed(eigenvalues) @ basis.mT
    exact = basis @ torch.diag_embed(phi(k, eigenvalues)) @ basis.mT
    torch.testing.assert_close(phi_dense(k, matrices), exact, rtol=1e-12, atol=1e-13)


def test_phi_of_a_nilpotent_matrix_is_its_finite_series() -> None:
    A = torch.tensor([[0.0, 7.0, 3.0], [0.0, 0.0, -5.0], [0.0, 0.0, 0.0]], dtype=torch.float64)  # noqa: N806
    exact = torch.eye(3, dtype=torch.float64) / 2 + A / 6 + A @ A / 24
    torch.testing.assert_close(phi_dense(2, A), exact, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_weights_are_exact_from_1e_12_to_50(name: str, sign: float) -> None:
    for size in (1e-12, 1e-6, 0.1, 2.0, 16.0, 39.9, 40.1, 50.0):
        for h, rate in ((size, sign), (-size, sign), (0.25, sign * 4 * size)):
            nodes = tuple(h * node for node in NODES[name])
            for got, (wanted, scale) in zip(exponential_weights(nodes, h, rate), exact_weights(nodes, h, rate),
                                            strict=True):
                assert abs(got - wanted) <= 1e-12 * scale


@pytest.mark.parametrize("name", NODES)
def test_weights_are_exact_for_stiff_and_oscillating_symbols(name: str) -> None:
    h = 0.5
    nodes = tuple(h * node for node in NODES[name])
    z = [cmath.rect(size, angle) for size in (*SIZES[::3], 50.0, 1e3, 1e6)
         for angle in np.linspace(-math.pi / 2, math.pi / 2, 5)] + [0.0, -30.0, -50.0]
    rates = torch.tensor(z, dtype=torch.complex128) / h
    got = torch.stack(exponential_weights(nodes, h, rates), dim=-1)
    for row, rate in zip(got.tolist(), rates.tolist(), strict=True):
        for value, (wanted, scale) in zip(row, exact_weights(nodes, h, rate), strict=True):
            assert abs(value - wanted) <= 1e-12 * scale


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-50, 10), min_size=1, max_size=6, unique=True), st.floats(1e-14, 50.0),
       st.sampled_from([1.0, -1.0]), st.floats(1e-6, 10.0))
def test_weights_are_exact_on_arbitrary_nodes(places: list[int], size: float, sign: float, h: float) -> None:
    nodes, rate = [h * place / 10 for place in places], sign * size / h
    for got, (wanted, scale) in zip(exponential_weights(nodes, h, rate), exact_weights(nodes, h, rate), strict=True):
        assert abs(got - wanted) <= 1e-12 * scale


def test_weights_without_rate_are_those_of_adams_and_bashforth() -> None:
    h = 0.1
    got = exponential_weights((0.0, -h, -2 * h, -3 * h), h)
    assert got == pytest.approx([h * c / 24 for c in (55, -59, 37, -9)], rel=1e-14)


def test_weights_of_tensors_have_their_dtype_and_shape() -> None:
    weights = exponential_weights((0.0, -1.0), 1.0, torch.full((2, 3), 0.5))
    assert all(w.dtype == torch.float32 and w.shape == (2, 3) for w in weights)
    assert weights[1][0, 0].item() == pytest.approx(exponential_weights((0.0, -1.0), 1.0, 0.5)[1], rel=1e-6)


def test_weights_are_differentiable_in_the_rate() -> None:
    rates = torch.tensor([-45.0, -1.0, 0.0, 1e-9, 3.0, 39.0, 41.0, 1e3], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: exponential_weights((0.0, -0.5, 0.5), 1.0, r), rates[1:])
    (gradient,) = torch.autograd.grad(sum(w.sum() for w in exponential_weights((0.0, 0.5), 1.0, rates)), rates)
    assert torch.isfinite(gradient).all()


def test_moments_integrate_powers_against_the_kernel() -> None:
    for h, rate in ((1e-9, 1.0), (0.7, -3.0), (-2.0, 5.0), (1.0, 0.0)):
        for k, got in enumerate(moments(h, rate, 4)):
            with mp.workdps(60):
                exact = mp.quad(lambda u, k=k: mp.exp(-rate * (h - u)) * u**k, [0, mp.mpf(h)])  # noqa: B023
            assert got == pytest.approx(float(exact), rel=1e-13)


def test_an_infinite_step_has_weight_one_over_the_rate() -> None:
    assert exponential_weights((0.0,), math.inf, 2.0) == (0.5,)
    assert exponential_weights((0.0,), math.inf, torch.tensor([2.0]))[0].item() == 0.5


@pytest.mark.parametrize(("nodes", "h", "rate"), [((0.0, -1.0), math.inf, 1.0), ((0.0,), math.inf, 0.0),
                                                  ((0.0,), math.inf, -1.0), ((0.0,), -math.inf, 1.0),
                                                  ((0.0,), math.nan, 1.0), ((0.0,), math.inf, torch.tensor([1.0, -1]))])
def test_infinite_steps_without_a_limit_are_refused(nodes: tuple[float, ...], h: float, rate: float) -> None:
    with pytest.raises(ValueError, match="infinite step"):
        exponential_weights(nodes, h, rate)


@pytest.mark.parametrize("nodes", [(), (0.0, 0.0), (0.0, math.nan), (0.0, -math.inf)])
def test_bad_nodes_are_refused(nodes: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="distinct"):
        exponential_weights(nodes, 1.0, 1.0)


def test_a_kernel_that_overflows_is_refused() -> None:
    with pytest.raises(ValueError, match="overflows"):
        exponential_weights((0.0, -1.0), 10.0, -100.0)


@pytest.mark.parametrize("k", [-1, 1.0, True])
def test_orders_that_are_no_counts_are_refused(k: object) -> None:
    with pytest.raises(ValueError, match="k="):
        phi(k, 1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k="):
        phi_dense(k, torch.eye(2))  # type: ignore[arg-type]


@pytest.mark.parametrize("A", [torch.ones(3), torch.ones(2, 3), torch.full((2, 2), math.nan)])
def test_matrices_that_are_not_square_and_finite_are_refused(A: torch.Tensor) -> None:  # noqa: N803
    with pytest.raises(ValueError, match="matrices"):
        phi_dense(1, A)
