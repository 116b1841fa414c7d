"""Taylor methods: derivatives against closed forms, orders, dense output, gradients."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from odecore.driver.integrate import integrate
from odecore.driver.solve import solve
from odecore.explicit.taylor import Taylor, total_derivatives


def forced(y: Tensor, t: Tensor) -> Tensor:
    return -y + torch.cos(5 * t).reshape(-1, *[1] * (y.ndim - 1)).to(y.dtype)


def forced_solution(y0: Tensor, t: float) -> Tensor:
    return (y0 - 1 / 26) * math.exp(-t) + (math.cos(5 * t) + 5 * math.sin(5 * t)) / 26


def test_derivatives_of_a_forced_linear_problem_are_those_of_its_solution() -> None:
    """y = (y0 - 1/26) e^{-t} + (cos 5t + 5 sin 5t)/26, so y^(k) = (y0 - 1/26)(-1)^k e^{-t} + …, at two times."""
    times = torch.tensor([0.3, -1.2], dtype=torch.float64)
    y0 = torch.tensor([[0.3, 2.0], [-1.0, 0.0]], dtype=torch.float64)
    y = torch.cat([forced_solution(y0[i:i + 1], float(t)) for i, t in enumerate(times)])
    for k, value in enumerate(total_derivatives(forced, y, times, 7), start=1):
        turned = 5 * times.unsqueeze(1) + k * math.pi / 2  # differentiation turns sine and cosine by a right angle
        exact = ((y0 - 1 / 26) * (-1) ** k * torch.exp(-times).unsqueeze(1)
                 + 5**k * (torch.cos(turned) + 5 * torch.sin(turned)) / 26)
        torch.testing.assert_close(value, exact, rtol=1e-12, atol=1e-12)


def test_derivatives_of_a_nonlinear_problem_that_depends_on_time_agree_with_high_precision() -> None:
    """y' = 2 t y² with y = 1/(1 - t²); its derivatives by mpmath."""
    y0, t0 = 1 / (1 - mpmath.mpf("0.4") ** 2), mpmath.mpf("0.4")
    with mpmath.workdps(40):
        exact = [float(mpmath.diff(lambda t: 1 / (1 - t * t), t0, k)) for k in range(1, 7)]
    y, t = torch.tensor([[float(y0)]], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    values = total_derivatives(lambda y, t: 2 * t.reshape(-1, 1) * y.square(), y, t, 6)
    assert [value.item() for value in values] == pytest.approx(exact, rel=1e-12)


def test_derivatives_of_coupled_states_of_any_shape_follow_the_chain_rule() -> None:
    """For y' = A y they are A^k y."""
    generator = torch.Generator().manual_seed(3)
    matrix = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(5, 3, 4, generator=generator, dtype=torch.float64)
    values = total_derivatives(lambda y, t: y @ matrix.T, y, torch.zeros(5, dtype=torch.float64), 4)
    for k, value in enumerate(values, start=1):
        torch.testing.assert_close(value, y @ torch.linalg.matrix_power(matrix, k).T, rtol=1e-12, atol=1e-12)


def test_the_field_is_called_once_for_all_derivatives() -> None:
    calls: list[int] = []

    def counted(y: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        return torch.sin(y)

    total_derivatives(counted, torch.ones(2, 1), torch.zeros(2), 5)
    assert len(calls) == 1


def test_a_field_that_ignores_its_arguments_has_vanishing_higher_derivatives() -> None:
    one = torch.ones(2, 3, dtype=torch.float64)
    values = total_derivatives(lambda y, t: one, one, torch.zeros(1, dtype=torch.float64).expand(2), 3)
    assert torch.equal(values[0], one) and not values[1].any() and not values[2].any()


STARTS = torch.tensor([[0.3], [2.0]], dtype=torch.float64)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_the_order_is_the_declared_one(order: int) -> None:
    """On a linear problem, a non-linear one and one that depends on time, one a sample."""
    def field(y: Tensor, t: Tensor) -> Tensor:
        linear, nonlinear, forced = y.unbind(0)
        return torch.stack((-linear, torch.sin(nonlinear) - nonlinear**2 / 2, torch.sin(forced) + torch.cos(3 * t[2])))

    def f(t: float, y: np.ndarray) -> np.ndarray:
        linear, nonlinear, forced = y.reshape(3, 2)
        return np.concatenate((-linear, np.sin(nonlinear) - nonlinear**2 / 2, np.sin(forced) + np.cos(3 * t)))

    y0 = torch.tensor([[0.3, 2.0]] * 3, dtype=torch.float64)
    exact = solve_ivp(f, (0, 0.4), y0.flatten(), method="DOP853", rtol=3e-14, atol=1e-16).y[:, -1].reshape(3, 2)
    counts = [40, 50, 64, 80] if order < 4 else [16, 20, 25, 32] if order < 5 else [11, 13, 16, 19]
    grids = [torch.linspace(0, 0.4, n + 1, dtype=torch.float64) for n in counts]
    errors = torch.stack([(integrate(Taylor(order), field, y0, times).y - torch.from_numpy(exact)).norm(dim=1)
                          for times in grids])
    for problem in errors.unbind(1):
        assert abs(-np.polyfit(np.log(counts), np.log(problem), 1)[0] - order) < 0.15


@pytest.mark.parametrize("order", [2, 3, 5])
def test_error_estimates_shrink_as_declared(order: int) -> None:
    t0 = torch.tensor([0.4], dtype=torch.float64)
    sizes = [0.08, 0.04, 0.02, 0.01]
    errors = [Taylor(order).step(forced, t0, t0 + h, STARTS[:1], ()).error.item() for h in sizes]
    assert np.polyfit(np.log(sizes), np.log(np.abs(errors)), 1)[0] == pytest.approx(Taylor(order).error_order, abs=1e-6)


def test_dense_output_is_the_taylor_polynomial() -> None:
    t0, t1 = torch.tensor([0.4, 1.0], dtype=torch.float64), torch.tensor([0.7, 0.5], dtype=torch.float64)
    step = Taylor(4).step(forced, t0, t1, STARTS, ())
    assert step.dense is not None and step.dense().nfe == 0
    derivatives = [STARTS, *total_derivatives(forced, STARTS, t0, 4)]
    h = (t1 - t0).reshape(-1, 1)
    exact = torch.stack([value * h**k / math.factorial(k) for k, value in enumerate(derivatives)], 1)
    torch.testing.assert_close(step.dense().coefficients, exact, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(exact.sum(1), step.y, rtol=1e-14, atol=1e-15)


def test_adaptive_solves_meet_their_tolerance_at_the_end_and_between() -> None:
    ts = torch.linspace(0.1, 2.9, 8, dtype=torch.float64)
    solution = solve(Taylor(4), forced, STARTS, 0.0, 3.0, rtol=1e-6, atol=1e-6, ts=ts)
    torch.testing.assert_close(solution.y, forced_solution(STARTS, 3.0), rtol=0, atol=1e-5)
    assert solution.ys is not None
    exact = torch.stack([forced_solution(STARTS, float(t)) for t in ts], 1)
    torch.testing.assert_close(solution.ys, exact, rtol=0, atol=1e-5)


def test_samples_have_their_own_times_and_directions() -> None:
    t0, t1 = torch.tensor([0.0, 3.0], dtype=torch.float64), torch.tensor([2.0, 1.0], dtype=torch.float64)
    start = torch.cat([forced_solution(STARTS[i:i + 1], float(t)) for i, t in enumerate(t0)])
    exact = torch.cat([forced_solution(STARTS[i:i + 1], float(t)) for i, t in enumerate(t1)])
    solution = solve(Taylor(4), forced, start, t0, t1, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(solution.y, exact, rtol=0, atol=1e-5)


def test_complex_states_turn() -> None:
    y0 = torch.tensor([[1.0 + 0j]], dtype=torch.complex128)
    solution = solve(Taylor(5), lambda y, t: 1j * y, y0, 0.0, math.pi, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(solution.y, -y0, rtol=0, atol=1e-6)


def test_states_keep_single_precision() -> None:
    step = Taylor(3).step(forced, torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64) / 8,
                          STARTS.float(), ())
    assert step.y.dtype == step.error.dtype == torch.float32


def test_gradients_are_those_of_finite_differences() -> None:
    k = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y0 = STARTS.clone().requires_grad_()
    times = torch.linspace(0, 1, 4, dtype=torch.float64, requires_grad=True)

    def final(y0: Tensor, k: Tensor, times: Tensor) -> Tensor:
        return integrate(Taylor(3), lambda y, t: torch.sin(k * y) + torch.cos(3 * t).reshape(-1, 1), y0, times).y

    assert torch.autograd.gradcheck(final, (y0, k, times))


@pytest.mark.parametrize("order", [0, -1, True, 2.0])
def test_orders_that_are_no_counts_are_refused(order: int) -> None:
    with pytest.raises(ValueError, match=f"order={order}: give a whole number, at least 1"):
        Taylor(order)
    with pytest.raises(ValueError, match=f"order={order}"):
        total_derivatives(forced, STARTS, torch.zeros(2), order)
