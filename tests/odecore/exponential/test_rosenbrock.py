"""Exponential Rosenbrock methods: orders with and without stiffness, exactness, gradients, failures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from odecore.driver.solve import solve
from odecore.exponential.phi_sums import ZERO, varphi
from odecore.exponential.rosenbrock import EXPRB32, EXPRB43, ROSENBROCK_EULER, ExponentialRosenbrock, RosenbrockTableau
from odecore.problem import ODE

TABLEAUS = {"euler": ROSENBROCK_EULER, "exprb32": EXPRB32, "exprb43": EXPRB43}
POINTS = torch.arange(1, 12, dtype=torch.float64) / 12
Field = Callable[[Tensor, Tensor], Tensor]


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def forced(y: Tensor, t: Tensor) -> Tensor:
    """Coupled, non-linear, and explicit in time."""
    return torch.sin(y).flip(-1) * y + torch.cos(2 * t).reshape(-1, 1) * y**2 / 2 - y


def oscillating(y: Tensor, t: Tensor) -> Tensor:
    """Complex and not holomorphic: its Jacobian is linear over the real numbers only."""
    return 2j * y - y * y.abs() ** 2 + torch.cos(t).reshape(-1, 1) * y.conj()


STARTS = {forced: times(0.6, -0.4), oscillating: torch.tensor([0.5 + 0.2j, -0.3j], dtype=torch.complex128)}


@cache
def reference(field: Field) -> Tensor:
    def right(t: float, y: np.ndarray) -> np.ndarray:
        return field(torch.from_numpy(y.copy()).unsqueeze(0), times(t))[0].numpy()

    solution = solve_ivp(right, (0, 1), STARTS[field].numpy(), method="DOP853", rtol=1e-13, atol=1e-14)
    return torch.from_numpy(solution.y[:, -1].copy())


def growing(t: Tensor) -> Tensor:
    return POINTS * (1 - POINTS) * torch.exp(t).reshape(-1, 1)


def parabolic(y: Tensor, t: Tensor) -> Tensor:
    """Heat conduction with ‖J‖ = 576 and a mean-field reaction; the solution is ``growing``."""
    u = growing(t)
    second = (torch.nn.functional.pad(y, (1, 1)).diff(n=2, dim=1)) * 144
    return second + (y**2 - u**2).mean(1, keepdim=True) + u + 2 * torch.exp(t).reshape(-1, 1)


def integrate(name: str, field: Field, y: Tensor, steps: int) -> Tensor:
    stepper, now = ExponentialRosenbrock(TABLEAUS[name], tolerance=1e-13), torch.zeros(len(y), dtype=torch.float64)
    with torch.no_grad():
        for i in range(steps):
            y = stepper.step(field, now + i / steps, now + (i + 1) / steps, y, ()).y
    return y


def slope(errors: Sequence[float], lengths: Sequence[float]) -> float:
    return float(np.polyfit(np.log(lengths), np.log(errors), 1)[0])


@pytest.mark.parametrize("field", STARTS)
@pytest.mark.parametrize("name", TABLEAUS)
def test_the_order_holds_where_the_problem_depends_on_time(name: str, field: Field) -> None:
    steps = [11, 16, 23, 32]
    errors = [(integrate(name, field, STARTS[field].unsqueeze(0), n) - reference(field)).norm().item() for n in steps]
    assert abs(slope(errors, [1 / n for n in steps]) - TABLEAUS[name].order) < 0.15


@pytest.mark.parametrize("name", TABLEAUS)
def test_stiffness_takes_no_order(name: str) -> None:
    steps = [16, 23, 32, 45]
    errors = [(integrate(name, parabolic, growing(times(0.0)), n) - growing(times(1.0))).norm().item() for n in steps]
    assert slope(errors, [1 / n for n in steps]) > TABLEAUS[name].order - 0.15


@pytest.mark.parametrize("name", ["exprb32", "exprb43"])
def test_the_error_estimate_shrinks_as_declared(name: str) -> None:
    stepper, lengths = ExponentialRosenbrock(TABLEAUS[name], tolerance=1e-14), [0.04, 0.028, 0.02, 0.014]
    y, start = STARTS[forced].unsqueeze(0), times(0.3)
    errors = [stepper.step(forced, start, start + h, y, ()).error.norm().item() for h in lengths]
    assert abs(slope(errors, lengths) - stepper.error_order) < 0.15


@pytest.mark.parametrize("name", TABLEAUS)
def test_a_linear_problem_with_linear_forcing_is_solved_exactly_in_one_step(name: str) -> None:
    matrix, force = times(-3.0, 1.0, -1.0, -40.0).reshape(2, 2), times(1.0, 2.0)

    def field(y: Tensor, t: Tensor) -> Tensor:
        return y @ matrix.mT + t.reshape(-1, 1) * force

    augmented = torch.zeros(4, 4, dtype=torch.float64)  # of (y, t, 1)
    augmented[:2, :2], augmented[:2, 2], augmented[2, 3] = matrix, force, 1.0
    exact = torch.linalg.matrix_exp(1.5 * augmented) @ times(1.0, -2.0, 0.5, 1.0)
    step = ExponentialRosenbrock(TABLEAUS[name], tolerance=1e-13).step(
        field, times(0.5), times(2.0), times(1.0, -2.0).unsqueeze(0), ())
    torch.testing.assert_close(step.y[0], exact[:2], rtol=1e-11, atol=1e-12)
    assert step.error.abs().max() < 1e-11


@pytest.mark.parametrize("stepper", [ExponentialRosenbrock(EXPRB32), ExponentialRosenbrock(EXPRB43)])
def test_the_driver_reaches_its_tolerance_on_a_stiff_problem_in_few_steps(stepper: ExponentialRosenbrock) -> None:
    solution = solve(stepper, parabolic, growing(times(0.0, -0.5)), times(0.0, -0.5), 1.0, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(solution.y, growing(times(1.0, 1.0)), rtol=1e-2, atol=1e-4)
    assert solution.accepted.max() < 30  # an explicit method needs some 200
    assert solution.krylov > solution.nfe


def test_samples_do_not_see_each_other() -> None:
    y, start, end = torch.stack((STARTS[forced], 3 * STARTS[forced])), times(0.0, 0.5), times(0.2, 1.5)
    stepper = ExponentialRosenbrock(EXPRB43, tolerance=1e-4)
    whole = stepper.step(forced, start, end, y, ())
    for i in range(2):
        one = slice(i, i + 1)
        alone = stepper.step(forced, start[one], end[one], y[one], ())
        torch.testing.assert_close(alone.y, whole.y[one], rtol=1e-12, atol=1e-13)


def test_a_step_that_needs_too_large_a_subspace_fails_for_its_sample() -> None:
    step = ExponentialRosenbrock(EXPRB32, largest=6).step(
        parabolic, times(0.0, 0.0), times(1.0, 1e-4), growing(times(0.0, 0.0)), ())
    assert torch.isinf(step.error).all(1).tolist() == [True, False]


@pytest.mark.parametrize("name", TABLEAUS)
def test_a_step_is_differentiable_in_state_and_parameters(name: str) -> None:
    stepper = ExponentialRosenbrock(TABLEAUS[name], tolerance=1e-12)

    def result(y: Tensor, rate: Tensor) -> Tensor:
        def field(y: Tensor, t: Tensor) -> Tensor:
            return torch.sin(rate * y).flip(-1) * y + (rate * t).reshape(-1, 1)

        return stepper.step(field, times(0.1), times(0.5), y, ()).y

    y = STARTS[forced].unsqueeze(0).requires_grad_()
    assert torch.autograd.gradcheck(result, (y, times(0.7).requires_grad_()))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_step_is_the_same_with_and_without_gradients(mode: Callable) -> None:
    def step(y: Tensor) -> Tensor:
        return ExponentialRosenbrock(EXPRB32).step(forced, times(0.0), times(0.3), y, ()).y

    y = STARTS[forced].unsqueeze(0)
    with mode():
        other = step(y.clone())
    assert not other.requires_grad
    torch.testing.assert_close(other.clone(), step(y.clone().requires_grad_()).detach())


def test_a_constant_field_is_integrated_exactly() -> None:
    step = ExponentialRosenbrock(EXPRB32).step(ODE(lambda y, t: torch.full_like(y, 2.0)), times(0.0), times(1.5),
                                               torch.ones(1, 2, dtype=torch.float64), ())
    torch.testing.assert_close(step.y, torch.full((1, 2), 4.0, dtype=torch.float64))


def test_evaluations_are_counted() -> None:
    seen: list[float] = []

    def field(y: Tensor, t: Tensor) -> Tensor:
        seen.append(t.item())
        return -y

    with torch.no_grad():
        step = ExponentialRosenbrock(EXPRB43).step(field, times(1.0), times(3.0), torch.ones(1, 2), ())
    assert len(seen) == step.nfe and seen == [1.0, 2.0, 3.0] and step.y.dtype == torch.float32
    assert math.isclose(step.y[0, 0].item(), math.exp(-2), rel_tol=1e-5)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"tolerance": 0.0}, "tolerance=0.0"), ({"largest": 0}, "largest=0"), ({"largest": 2.5}, "largest=2.5"),
])
def test_numbers_out_of_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExponentialRosenbrock(EXPRB32, **arguments)


@pytest.mark.parametrize(("arguments", "message"), [
    (((1.0,), ((),), (), (), 2, 0), "give 1 rows"),
    (((1.0,), ((ZERO,),), (varphi(3),), (ZERO,), 2, 0), "row i with i entries"),
    (((1.0,), ((),), (varphi(3),), (varphi(3),), 2, 0), "error_order=0"),
    (((1.0,), ((),), (varphi(3),), (ZERO,), 2, 3), "error_order=3"),
])
def test_inconsistent_tableaux_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RosenbrockTableau(*arguments)
