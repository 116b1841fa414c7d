"""Adams methods: orders with variable steps, independent histories, and plans that are the same methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from odecore.driver.control import PI
from odecore.driver.integrate import integrate
from odecore.driver.solve import solve
from odecore.explicit.adams import Adams, adams_bashforth, adams_bashforth_moulton, integrals
from odecore.explicit.tableaus import RK4
from odecore.gradients.checkpointed import solve_checkpointed
from odecore.phi import exponential_weights
from odecore.plan import Plan, execute
from odecore.schemes import adams, exact_flow, ode
from odecore.stepper import Carry, Step

STEPPERS = [*(adams_bashforth(order) for order in range(1, 9)),
            *(adams_bashforth_moulton(order) for order in range(2, 9))]
def name(stepper: Adams) -> str:
    return f"{'moulton' if stepper.corrected else 'bashforth'}-{stepper.order}"


def field(y: Tensor, t: Tensor) -> Tensor:
    """A linear problem, a non-linear one and one that depends on time, one a sample."""
    linear, nonlinear, forced = y.unbind(0)
    return torch.stack((-linear, torch.sin(nonlinear) - nonlinear**2 / 2, torch.sin(forced) + torch.cos(3 * t[2])))


STARTS = torch.tensor([[0.3, 2.0]] * 3, dtype=torch.float64)


@pytest.fixture(scope="module")
def solution() -> Tensor:
    def f(t: float, y: np.ndarray) -> np.ndarray:
        linear, nonlinear, forced = y.reshape(3, 2)
        return np.concatenate((-linear, np.sin(nonlinear) - nonlinear**2 / 2, np.sin(forced) + np.cos(3 * t)))

    y = solve_ivp(f, (0, 1), STARTS.flatten(), method="DOP853", rtol=3e-14, atol=1e-16).y
    return torch.from_numpy(y[:, -1].reshape(3, 2).copy())


def stretched(count: int) -> Tensor:
    """Times from 0 to 1 with lengths from three to five quarters of the mean."""
    s = torch.linspace(0, 1, count + 1, dtype=torch.float64)
    return s + 0.04 * torch.sin(2 * math.pi * s)


def slope(errors: list[float], counts: list[int]) -> float:
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


def counts_for(order: int) -> list[int]:
    return [round((80 if order < 5 else 120) * 2 ** (i / 3)) for i in range(4)]


@pytest.mark.parametrize("stepper", [s for s in STEPPERS if s.order <= 5], ids=name)
def test_the_order_is_the_declared_one_on_uneven_grids(stepper: Adams, solution: Tensor) -> None:
    counts = counts_for(stepper.order)
    errors = torch.stack([(integrate(stepper, field, STARTS, stretched(n)).y - solution).norm(dim=1) for n in counts])
    for problem in errors.unbind(1):
        assert abs(slope(problem.tolist(), counts) - stepper.order) < 0.15


@pytest.mark.parametrize("stepper", STEPPERS, ids=name)
def test_polynomials_of_the_degree_of_the_order_are_integrated_exactly_and_no_others(stepper: Adams) -> None:
    times = torch.tensor([0.0, 0.9, 1.7, 2.9, 3.8, 5.0, 5.9, 7.1], dtype=torch.float64)[:stepper.slopes] - 0.2
    t0, t1 = times[-1:], times[-1:] + 1.3
    for degree in (*range(1, stepper.order + 1), stepper.order + 1):
        def power(y: Tensor, t: Tensor, degree: int = degree) -> Tensor:
            return degree * t.reshape(1, 1) ** (degree - 1)

        slopes = [power(t0, t) for t in reversed(times)]
        carry = (torch.tensor([stepper.slopes]), times.flip(0).reshape(1, -1), *slopes)
        step = stepper.step(power, t0, t1, t0.reshape(1, 1) ** degree, carry)
        exact = abs(step.y.item() / t1.item() ** degree - 1) < 1e-12
        assert exact == (degree <= stepper.order)


def prepared(stepper: Adams, h: float) -> tuple[Tensor, Tensor, Carry]:
    """A step of length h of y' = -y² with exact slopes in the carry; its start, state and carry."""
    t0 = torch.tensor([1.0], dtype=torch.float64)
    times = t0 - h * torch.tensor([[0.0, 0.8, 2.0, 2.9, 4.1, 5.0, 5.9, 7.1]], dtype=torch.float64)[:, :stepper.slopes]
    slopes = [-(1 + t).reshape(1, 1) ** -2 for t in times.unbind(1)]
    return t0, (1 + t0).reshape(1, 1) ** -1, (torch.tensor([stepper.slopes]), times, *slopes)


def quadratic(y: Tensor, t: Tensor) -> Tensor:
    return -y.square()


def one_step(stepper: Adams, h: float) -> Step:
    t0, y, carry = prepared(stepper, h)
    return stepper.step(quadratic, t0, t0 + h, y, carry)


@pytest.mark.parametrize("stepper", [s for s in STEPPERS if s.order <= 5], ids=name)
def test_local_errors_and_their_estimates_shrink_as_declared(stepper: Adams) -> None:
    sizes = [0.02 * 2 ** (-i / 2) for i in range(5)]
    local = [abs(one_step(stepper, h).y.item() - 1 / (2 + h)) for h in sizes]
    estimated = [one_step(stepper, h).error.abs().item() for h in sizes]
    slopes = [np.polyfit(np.log(sizes), np.log(values), 1)[0] for values in (local, estimated)]
    assert slopes == pytest.approx([stepper.order + 1, stepper.error_order], abs=0.15)


@pytest.mark.parametrize("stepper", STEPPERS[2:5] + STEPPERS[7:10] + STEPPERS[14:], ids=name)
def test_the_error_follows_the_tolerance(stepper: Adams, solution: Tensor) -> None:
    for tolerance in (1e-4, 1e-7):
        solved = solve(stepper, lambda y, t: torch.sin(y) + torch.cos(3 * t).reshape(-1, 1), STARTS[2:], 0.0, 1.0,
                       rtol=0.0, atol=tolerance, controller=PI)
        assert (solved.y - solution[2:]).abs().max() <= 50 * tolerance


def test_a_step_costs_one_evaluation_or_two_with_the_corrector() -> None:
    calls: list[int] = []

    def counted(y: Tensor, t: Tensor) -> Tensor:
        calls.append(len(y))
        return -y

    for stepper, start, each in ((adams_bashforth(4), 3 * 6, 1), (adams_bashforth_moulton(4), 2 * 6, 2)):
        calls.clear()
        solution = integrate(stepper, counted, STARTS, torch.linspace(0, 1, 21, dtype=torch.float64))
        starting = start // 6
        assert solution.nfe == len(calls) == 1 + start + each * (20 - starting)


@pytest.mark.parametrize("stepper", [adams_bashforth(4), adams_bashforth_moulton(5)], ids=name)
def test_a_sample_is_the_same_in_any_batch_though_others_are_still_starting(stepper: Adams) -> None:
    k = torch.tensor([0.1, 30.0, 1.0, 8.0], dtype=torch.float64)
    y0 = torch.tensor([[0.3, 1.0], [2.0, -1.0], [0.5, 0.5], [1.0, 0.0]], dtype=torch.float64)

    def rates(y: Tensor, t: Tensor, k: Tensor) -> Tensor:
        return -k.reshape(-1, 1) * y + torch.cos(3 * t).reshape(-1, 1)

    together = solve(stepper, rates, y0, 0.0, 2.0, rtol=1e-5, atol=1e-7, args=(k,))
    for i in range(len(k)):
        alone = solve(stepper, rates, y0[i:i + 1], 0.0, 2.0, rtol=1e-5, atol=1e-7, args=(k[i:i + 1],))
        torch.testing.assert_close(alone.y[0], together.y[i], rtol=1e-12, atol=1e-14)
        assert (alone.accepted[0], alone.rejected[0]) == (together.accepted[i], together.rejected[i])
    assert len(set(together.accepted.tolist())) == len(k)


def test_a_step_leaves_the_carry_as_it_was() -> None:
    stepper = adams_bashforth_moulton(4)
    t0, y, carry = prepared(stepper, 0.1)
    before = [tensor.clone() for tensor in carry]
    first = stepper.step(quadratic, t0, t0 + 0.1, y, carry)
    assert all(torch.equal(old, new) for old, new in zip(before, carry, strict=True))
    stepper.step(quadratic, t0, t0 + 0.05, y, carry)
    assert torch.equal(stepper.step(quadratic, t0, t0 + 0.1, y, carry).y, first.y)


@pytest.mark.parametrize("stepper", [adams_bashforth(1), adams_bashforth(4), adams_bashforth_moulton(4)], ids=name)
def test_dense_output_is_the_integral_of_the_polynomial_of_slopes(stepper: Adams) -> None:
    step = one_step(stepper, 0.1)
    assert step.dense is not None
    dense = step.dense()
    assert dense.nfe == 0 and dense.coefficients.shape == (1, stepper.order + 1, 1)
    torch.testing.assert_close(dense.coefficients.sum(1), step.y, rtol=1e-15, atol=1e-15)
    errors = []
    for h in (sizes := [0.04 * 2 ** (-i / 2) for i in range(5)]):
        coefficients = one_step(stepper, h).dense().coefficients.flatten()  # type: ignore[misc]
        errors.append(abs(sum(c * 0.4**k for k, c in enumerate(coefficients.tolist())) - 1 / (2 + 0.4 * h)))
    assert np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(stepper.order + 1, abs=0.15)


def test_weights_are_those_of_the_quadrature_without_a_rate() -> None:
    nodes = torch.tensor([[1.0, 0.0, -0.7, -2.0, -2.9], [1.0, 0.0, -1.0, -2.0, -3.0]], dtype=torch.float64)
    weights = integrals(nodes).sum(2)
    expected = torch.tensor([exponential_weights(row, 1.0) for row in nodes.tolist()], dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=1e-13, atol=1e-14)
    textbook = torch.tensor([251.0, 646.0, -264.0, 106.0, -19.0], dtype=torch.float64) / 720
    torch.testing.assert_close(weights[1], textbook, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("stepper", [adams_bashforth(3), adams_bashforth_moulton(3)], ids=name)
def test_gradients_are_those_of_finite_differences(stepper: Adams) -> None:
    k = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[0.3, -1.0], [1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    times = torch.linspace(0, 1, 7, dtype=torch.float64)

    def final(y0: Tensor, k: Tensor, times: Tensor) -> Tensor:
        return integrate(stepper, lambda y, t: torch.sin(k * y) + torch.cos(3 * t).reshape(-1, 1), y0, times).y

    assert torch.autograd.gradcheck(final, (y0, k, times.requires_grad_()))


def test_the_history_survives_checkpoints() -> None:
    """Whose replays hand the carry, numbers and times among it, from step to step."""
    y0 = torch.tensor([[0.3, -1.0], [1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
    interval = (lambda y, t: torch.sin(y) + torch.cos(3 * t).reshape(-1, 1), y0, 0.0, 1.0)
    direct = solve(adams_bashforth_moulton(4), *interval, **options).y
    replayed = solve_checkpointed(adams_bashforth_moulton(4), *interval, states=3, **options)
    torch.testing.assert_close(replayed, direct, rtol=1e-14, atol=1e-14)
    gradients = [torch.autograd.grad(y.square().sum(), y0)[0] for y in (direct, replayed)]
    torch.testing.assert_close(*gradients, rtol=1e-13, atol=1e-14)


def test_complex_states_turn() -> None:
    y0 = torch.tensor([[1.0 + 0j]], dtype=torch.complex128)
    solution = solve(adams_bashforth_moulton(6), lambda y, t: 1j * y, y0, 0.0, math.pi, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(solution.y, -y0, rtol=0, atol=1e-8)


def test_states_of_half_precision_are_integrated_in_single_precision() -> None:
    y0 = torch.tensor([[1.0], [0.5]], dtype=torch.bfloat16)
    solution = solve(adams_bashforth(3), lambda y, t: -y, y0, 0.0, 1.0, rtol=1e-2, atol=1e-3)
    assert solution.y.dtype == torch.bfloat16
    torch.testing.assert_close(solution.y.float(), y0.float() * math.exp(-1), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("order", [0, 9, True, 2.0])
def test_orders_out_of_range_are_refused(order: int) -> None:
    with pytest.raises(ValueError, match=f"order={order}"):
        adams_bashforth(order)
    with pytest.raises(ValueError, match=f"order={order}"):
        adams_bashforth_moulton(order)


def test_a_predictor_corrector_method_of_order_one_is_refused() -> None:
    with pytest.raises(ValueError, match="order=1: give a whole number between 2"):
        adams_bashforth_moulton(1)


SCHEMES = {"bashforth": (adams.adams_bashforth, adams_bashforth), "moulton": (adams.adams_bashforth_moulton,
                                                                               adams_bashforth_moulton)}


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("order", [2, 3, 4, 5])
@pytest.mark.parametrize("linear", [0.0, -2.0])
def test_plans_have_the_declared_order_on_uneven_grids(kind: str, order: int, linear: float, solution: Tensor) -> None:
    counts, errors = counts_for(order), []
    for n in counts:
        plan = Plan(SCHEMES[kind][0](ode(linear), stretched(n).tolist(), order), 0.0)
        with torch.no_grad():
            result = execute(plan, lambda x, t: torch.sin(x) + math.cos(3 * t) - linear * x, STARTS[2])
        errors.append((result - solution[2]).norm().item())
    assert abs(slope(errors, counts) - order) < 0.15


@pytest.mark.parametrize("kind", SCHEMES)
def test_a_plan_takes_the_steps_of_the_stepper(kind: str) -> None:
    """Of the order at which neither needs a start of another method."""
    scheme, method = SCHEMES[kind]
    order = 1 if kind == "bashforth" else 2
    times = stretched(9)
    plan = Plan(scheme(ode(), times.tolist(), order), 0.0, exact_flow(ode(), 0.0, 1.0))
    with torch.no_grad():
        result = execute(plan, lambda x, t: torch.sin(x) + math.cos(3 * t), STARTS[2])
    torch.testing.assert_close(result, integrate(method(order), field, STARTS, times).y[2], rtol=1e-14, atol=1e-14)


def test_a_plan_reads_slopes_at_grid_points_whatever_the_stages_between() -> None:
    """After the starting steps of RK4 the textbook weights stand where the predictions were made."""
    rows = adams.adams_bashforth(ode(), [0.0, 1.0, 2.0, 3.0, 4.0], 3, start=RK4)
    assert len(rows) == 2 * 4 + 2
    assert rows[8].anchor == pytest.approx((1, 0, 23 / 12, 0, 0, 0, -16 / 12, 0, 0, 0, 5 / 12), rel=1e-13)
    assert rows[9].anchor == pytest.approx((1, 0, 23 / 12, -16 / 12, 0, 0, 0, 5 / 12), rel=1e-13)


@pytest.mark.parametrize(("scheme", "order"), [(adams.adams_bashforth, 1), (adams.adams_bashforth_moulton, 2)])
def test_exponential_plans_solve_the_problem_with_constant_prediction(scheme: Callable[..., Any], order: int) -> None:
    Plan(scheme(ode(-3.0), stretched(8).tolist(), order), 0.0, exact_flow(ode(-3.0), 0.0, 1.0))  # checks itself


@pytest.mark.parametrize(("order", "message"), [(0, "order=0"), (9, "order=9"), (5, "5 entries: order 5 needs 6")])
def test_orders_that_a_grid_cannot_have_are_refused(order: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adams.adams_bashforth(ode(), [0.0, 1.0, 2.0, 3.0, 4.0], order)
    with pytest.raises(ValueError, match="order=1: a predictor–corrector"):
        adams.adams_bashforth_moulton(ode(), [0.0, 1.0], 1)
