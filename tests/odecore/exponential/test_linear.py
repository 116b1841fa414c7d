"""Linear operators against matrix functions, arbitrary-precision arithmetic and finite differences."""

from __future__ import annotations

import math

import mpmath as mp
import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from odecore.exponential.linear import Dense, Diagonal, Fourier
from odecore.exponential.phi_sums import PhiSum, varphi

GENERATOR = torch.Generator().manual_seed(5)
STIFF = [0.0, -1e-9, -1e-3, -1.0, -30.0, -1e6]


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=GENERATOR)


def lengths(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def exact_phi(k: int, z: complex) -> complex:
    with mp.workdps(60):
        z = mp.mpmathify(z)
        if abs(z) < 1:
            return complex(mp.fsum(z**n / mp.factorial(n + k) for n in range(50)))
        value = mp.exp(z)
        for j in range(k):
            value = (value - 1 / mp.factorial(j)) / z
        return complex(value)


def dense_phi(k: int, matrix: Tensor) -> np.ndarray:
    """The corner of the exponential of an augmented matrix."""
    n = len(matrix)
    augmented = np.zeros((n * (k + 1), n * (k + 1)), dtype=matrix.numpy().dtype)
    augmented[:n, :n] = matrix.numpy()
    for j in range(k):
        augmented[j * n:(j + 1) * n, (j + 1) * n:(j + 2) * n] = np.eye(n)
    return scipy.linalg.expm(augmented)[:n, k * n:]


def real_symbol(n: int) -> Tensor:
    """A decay and a drift; real at the highest mode."""
    k = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64)
    return torch.complex(-0.3 * k**2, torch.where(2 * k.abs() == n, 0.0, k))


def circulant(symbol: Tensor) -> Tensor:
    identity = torch.eye(len(symbol), dtype=torch.complex128)
    return torch.fft.ifft(symbol[:, None] * torch.fft.fft(identity, dim=0), dim=0)


@pytest.mark.parametrize("order", range(5))
def test_phi_of_a_stiff_diagonal_is_exact(order: int) -> None:
    y = draw(2, len(STIFF))
    result = Diagonal(torch.tensor(STIFF, dtype=torch.float64)).phi(order, lengths(1.0, -1e-7), y)
    exact = torch.tensor([[exact_phi(order, h * z).real for z in STIFF] for h in (1.0, -1e-7)], dtype=torch.float64)
    torch.testing.assert_close(result, exact * y, rtol=1e-13, atol=0)


@pytest.mark.parametrize("order", range(5))
def test_phi_of_a_complex_diagonal_is_exact(order: int) -> None:
    values = [complex(-1e5, 1e3), 1e4j, -1e-8j, complex(-2, 3)]
    y = draw(1, 4, dtype=torch.complex128)
    result = Diagonal(torch.tensor(values, dtype=torch.complex128)).phi(order, lengths(0.7), y)
    exact = torch.tensor([exact_phi(order, 0.7 * z) for z in values], dtype=torch.complex128)
    torch.testing.assert_close(result, exact * y, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_phi_of_a_dense_matrix_is_that_of_scipy(order: int, dtype: torch.dtype) -> None:
    matrix, y = draw(4, 4, dtype=dtype), draw(3, 2, 4, dtype=dtype)
    for h in (lengths(0.5, 0.5, 0.5), lengths(0.5, -2.0, 1e-9)):
        result = Dense(matrix).phi(order, h, y)
        exact = torch.stack([y[i] @ torch.from_numpy(dense_phi(order, h[i] * matrix)).mT for i in range(3)])
        torch.testing.assert_close(result, exact, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n", [7, 8])
def test_a_fourier_operator_on_real_states_is_a_circulant_matrix(n: int) -> None:
    symbol, y, h = real_symbol(n), draw(2, 3, n), lengths(0.1, 0.4)
    operator, dense = Fourier(symbol), Dense(circulant(symbol).real)
    torch.testing.assert_close(operator.apply(y), dense.apply(y))
    torch.testing.assert_close(operator.phi(2, h, y), dense.phi(2, h, y))
    torch.testing.assert_close(operator.resolvent(h, y), dense.resolvent(h, y))


def test_a_fourier_operator_on_complex_states_takes_any_symbol() -> None:
    symbol, y, h = draw(6, dtype=torch.complex128), draw(2, 6, dtype=torch.complex128), lengths(0.1, 0.4)
    operator, dense = Fourier(symbol), Dense(circulant(symbol))
    torch.testing.assert_close(operator.phi(1, h, y), dense.phi(1, h, y))
    torch.testing.assert_close(operator.resolvent(h, y), dense.resolvent(h, y))


@pytest.mark.parametrize("shape", [(6, 8), (5, 7)])
def test_a_plane_fourier_operator_damps_a_wave_by_its_symbol(shape: tuple[int, int]) -> None:
    first, second = (torch.fft.fftfreq(n, 1 / n, dtype=torch.float64) for n in shape)
    operator = Fourier(-first[:, None] ** 2 - 2 * second**2, (-2, -1))
    x, z = (torch.arange(n, dtype=torch.float64) * 2 * math.pi / n for n in shape)
    wave = torch.cos(2 * x[:, None] + z).expand(3, 2, *shape)
    h = lengths(0.1, 0.2, 0.3)
    factor = torch.exp(-6 * h).reshape(3, 1, 1, 1)
    torch.testing.assert_close(operator.phi(0, h, wave), factor * wave)
    torch.testing.assert_close(operator.phi(0, h, wave.to(torch.complex128)), (factor * wave).to(torch.complex128))


@pytest.mark.parametrize("operator", [Diagonal(-2.5), Diagonal(draw(3, 4)), Dense(draw(4, 4)),
                                      Fourier(-torch.tensor([0.0, 1.0, 4.0, 1.0], dtype=torch.float64))])
def test_the_resolvent_solves_its_equation(operator: Diagonal | Dense | Fourier) -> None:
    y = draw(2, 3, 4)
    for h in (lengths(0.3, 0.3), lengths(0.1, 0.2)):
        x = operator.resolvent(h, y)
        torch.testing.assert_close(x - h.reshape(2, 1, 1) * operator.apply(x), y)


def test_a_number_is_a_diagonal() -> None:
    y = draw(3, 2, 2)
    torch.testing.assert_close(Diagonal(-2.0).apply(y), -2 * y)
    torch.testing.assert_close(Diagonal(-2.0).phi(0, lengths(1, 2, 3), y),
                               torch.exp(-2 * lengths(1, 2, 3)).reshape(3, 1, 1) * y)


@pytest.mark.parametrize("operator", [Diagonal(torch.tensor([-1.0, -2.0, -3.0, 0.0])), Dense(draw(4, 4).float()),
                                      Fourier(-torch.tensor([0.0, 1.0, 4.0, 1.0]))])
def test_states_keep_their_precision(operator: Diagonal | Dense | Fourier) -> None:
    y = draw(2, 4)
    single = operator.phi(1, lengths(0.1, 0.2), y.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), operator.phi(1, lengths(0.1, 0.2), y), rtol=1e-5, atol=1e-6)
    assert operator.resolvent(lengths(0.1, 0.2), y.float()).dtype == torch.float32
    assert operator.apply(y.float()).dtype == torch.float32


@pytest.mark.parametrize("kind", [Diagonal, Fourier, Dense])
def test_phi_and_resolvent_are_differentiable_in_state_and_operator(kind: type) -> None:
    values = draw(4, 4) if kind is Dense else -torch.tensor([0.0, 1.0, 4.0, 1.0], dtype=torch.float64)
    even = torch.tensor([0, 1, 2, 1])

    def both(parameters: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        operator = kind(parameters if kind is Dense else parameters[even])  # a real operator for any parameters
        return operator.phi(2, lengths(0.3, 0.5), y), operator.resolvent(lengths(0.3, 0.5), y)

    y = draw(2, 4)
    assert torch.autograd.gradcheck(both, (values.requires_grad_(), y.requires_grad_()))


def test_functions_are_computed_once_for_a_repeated_step(monkeypatch: pytest.MonkeyPatch) -> None:
    import odecore.exponential.linear as linear
    calls = []
    monkeypatch.setattr(linear, "evaluate", lambda sums, z: calls.append(z.shape) or (torch.ones_like(z),))
    operator, y = Diagonal(torch.zeros(5)), draw(3, 5)
    for h in (0.1, 0.1, 0.2, 0.1):
        operator.functions((varphi(1),), lengths(h, h, h), y)
    assert calls == [(1, 5), (1, 5)]  # and for all samples together


def test_functions_follow_a_change_of_the_values_in_place() -> None:
    values, y = torch.zeros(3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    operator = Diagonal(values)
    operator.phi(0, lengths(1.0), y)
    values -= 1.0
    torch.testing.assert_close(operator.phi(0, lengths(1.0), y), math.exp(-1) * y)


def test_functions_kept_from_inference_mode_serve_autograd() -> None:
    operator, y = Diagonal(torch.tensor([-1.0, -2.0])), torch.ones(1, 2, requires_grad=True)
    with torch.inference_mode():
        operator.phi(1, lengths(1.0), torch.ones(1, 2))
    operator.phi(1, lengths(1.0), y).sum().backward()
    assert y.grad is not None


@pytest.mark.parametrize(("operator", "y", "message"), [
    (Diagonal(torch.zeros(3)), torch.zeros(2, 4), "values has shape"),
    (Diagonal(torch.zeros(2, 3)), torch.zeros(2, 3), "values has shape"),
    (Diagonal(1j), torch.zeros(2, 3), "values is complex"),
    (Dense(torch.zeros(3, 3)), torch.zeros(2, 4), "matrix has shape"),
    (Dense(torch.zeros(3, 3, dtype=torch.complex64)), torch.zeros(2, 3), "matrix is complex"),
    (Fourier(torch.zeros(4)), torch.zeros(2, 5), "symbol has shape"),
    (Fourier(torch.zeros(1)), torch.zeros(2, 5), "symbol has shape"),
    (Fourier(1j * torch.arange(4)), torch.zeros(2, 4), "opposite modes conjugate"),
])
def test_operators_that_do_not_fit_the_state_are_refused(
    operator: Diagonal | Dense | Fourier, y: Tensor, message: str
) -> None:
    for use in (lambda: operator.apply(y), lambda: operator.phi(1, lengths(1, 1), y),
                lambda: operator.resolvent(lengths(1, 1), y)):
        with pytest.raises(ValueError, match=message):
            use()


@pytest.mark.parametrize("dims", [(), (0,), (-1, -1), (-2,)])
def test_axes_that_the_symbol_lacks_are_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="dims="):
        Fourier(torch.zeros(4), dims)


def test_matrices_that_are_not_square_and_whole_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        Dense(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="dtype"):
        Diagonal(torch.zeros(2, dtype=torch.int64))


def test_sums_of_phi_functions_merge_and_raise_their_terms() -> None:
    one = 2 * varphi(1) + varphi(1) - varphi(2, 0.5)
    assert one.terms == ((3.0, 1, 1.0), (-1.0, 2, 0.5))
    assert one.raised.terms == ((3.0, 2, 1.0), (-0.5, 3, 0.5))
    assert one.at_zero == 2.5 and not (one - one)
    with pytest.raises(ValueError, match="order"):
        PhiSum(((1.0, -1, 1.0),))
