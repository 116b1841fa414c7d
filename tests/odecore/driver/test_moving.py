"""Start and end of an adaptive solve have gradients, by finite differences and in closed form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp

from odecore.driver.solution import Status
from odecore.driver.solve import solve
from odecore.explicit.embedded import DOP853, TSITOURAS
from odecore.gradients.backsolve import backsolve
from odecore.gradients.checkpointed import solve_checkpointed
from odecore.implicit.runge_kutta import RADAU5

Y0 = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.4, 1.0]], dtype=torch.float64)
T0, T1 = (torch.tensor(t, dtype=torch.float64) for t in ([0.1, 0.5, -0.2], [1.0, -0.3, 0.7]))
TIGHT = {"rtol": 1e-11, "atol": 1e-12}


def pendulum(y: Tensor, t: Tensor) -> Tensor:
    return torch.stack([y[:, 1], -3.0 * torch.sin(y[:, 0]) + torch.cos(3 * t)], 1)


def direct(t0: Tensor, t1: Tensor) -> Tensor:
    return solve(DOP853, pendulum, Y0, t0, t1, **TIGHT).y


def implicit(t0: Tensor, t1: Tensor) -> Tensor:
    return solve(RADAU5, pendulum, Y0, t0, t1, rtol=1e-8, atol=1e-9).y


def discrete(t0: Tensor, t1: Tensor) -> Tensor:
    return solve_checkpointed(DOP853, pendulum, Y0, t0, t1, states=3, **TIGHT)


def continuous(t0: Tensor, t1: Tensor) -> Tensor:
    return backsolve(DOP853, pendulum, Y0, torch.stack([t0.expand(3), t1.expand(3)]), **TIGHT)[-1]


def differences(loss: Callable[[Tensor, Tensor], Tensor], *times: Tensor) -> list[Tensor]:
    found, step = [], 1e-4
    for k, time in enumerate(times):
        slopes = []
        for i in range(time.numel()):
            move = (step * torch.eye(time.numel(), dtype=torch.float64)[i]).reshape(time.shape)
            up, down = ([t + way * move if j == k else t for j, t in enumerate(times)] for way in (1, -1))
            slopes.append((loss(*up) - loss(*down)) / (2 * step))
        found.append(torch.stack(slopes).reshape(time.shape))
    return found


@pytest.mark.parametrize("flow", [direct, implicit, discrete, continuous], ids=lambda f: f.__name__)
@pytest.mark.parametrize("common", [False, True])
def test_gradients_of_start_and_end_are_finite_differences(flow: Callable[..., Tensor], common: bool) -> None:
    def loss(t0: Tensor, t1: Tensor) -> Tensor:
        return (flow(t0, t1) * torch.tensor([[1.0, -2.0], [0.5, 3.0], [1.0, 1.0]], dtype=torch.float64)).sum()

    times = [(T0[0] if common else T0).clone().requires_grad_(), (T1[0] if common else T1).clone().requires_grad_()]
    found = torch.autograd.grad(loss(*times), times)
    with torch.no_grad():
        expected = differences(loss, *times)
    for actual, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=2e-5, atol=2e-5)


def test_both_gradients_are_field_values_at_the_ends_and_cost_one_evaluation_each() -> None:
    t0, t1 = T0.clone().requires_grad_(), T1.clone().requires_grad_()
    solution = solve(DOP853, pendulum, Y0.clone().requires_grad_(), t0, t1, **TIGHT)
    (to_end,) = torch.autograd.grad(solution.y.sum(), t1, retain_graph=True)
    torch.testing.assert_close(to_end, pendulum(solution.y, t1).sum(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.autograd.grad(solution.t.sum(), t1)[0], torch.ones(3, dtype=torch.float64))
    assert solution.nfe == solve(DOP853, pendulum, Y0, T0, T1, **TIGHT).nfe + 2


def test_states_at_given_times_move_with_the_start_alone() -> None:
    t0, t1 = T0.clone().requires_grad_(), T1.clone().requires_grad_()
    ts = torch.lerp(T0, T1, 0.4).unsqueeze(1)
    found = solve(DOP853, pendulum, Y0, t0, t1, ts=ts, **TIGHT).ys.sum()
    to_start, to_end = torch.autograd.grad(found, (t0, t1), allow_unused=True)
    with torch.no_grad():
        (expected,) = differences(lambda t: solve(DOP853, pendulum, Y0, t, T1, ts=ts, **TIGHT).ys.sum(), T0)
    assert to_end is None
    torch.testing.assert_close(to_start, expected, rtol=2e-5, atol=2e-5)


def test_the_time_of_an_event_moves_with_the_start_and_not_with_the_end() -> None:
    def fall(y: Tensor, t: Tensor) -> Tensor:
        return -torch.ones_like(y) * torch.exp(-t).unsqueeze(1)

    t0, t1 = (torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (0.2, 3.0))
    y0 = torch.tensor([[0.3]], dtype=torch.float64)
    solution = solve(DOP853, fall, y0, t0, t1, event=lambda y, t: y[:, 0], **TIGHT)
    to_start, to_end = torch.autograd.grad(solution.t.sum(), (t0, t1), allow_unused=True)
    assert solution.status.tolist() == [Status.STOPPED]
    assert to_end is None or float(to_end) == 0.0
    # e^{-t*} = e^{-t0} - y0
    end = -torch.log(torch.exp(torch.tensor(-0.2, dtype=torch.float64)) - 0.3)
    torch.testing.assert_close(solution.t[0].detach(), end, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(to_start, torch.exp(end - 0.2), rtol=1e-8, atol=1e-8)


def test_a_sample_that_fails_gives_the_end_no_gradient() -> None:
    def lost(y: Tensor, t: Tensor) -> Tensor:
        return torch.where((y < 0) & (t.unsqueeze(1) > 0.5), torch.nan, -y)

    y0 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64, requires_grad=True)
    t1 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    solution = solve(TSITOURAS, lost, y0, 0.0, t1, rtol=1e-6, atol=1e-6, partial=True)
    to_end, to_start = torch.autograd.grad(solution.y.sum(), (t1, y0))
    assert solution.status.tolist() == [Status.FINISHED, Status.NON_FINITE]
    torch.testing.assert_close(to_end, torch.tensor([-1.0, 0.0]).exp().double() * torch.tensor([-1.0, 0.0]).double(),
                               rtol=1e-5, atol=1e-5)
    assert torch.isfinite(to_start).all()


def test_an_empty_interval_moves_with_both_ends() -> None:
    t0, t1 = T0.clone().requires_grad_(), T0.clone().requires_grad_()
    to_start, to_end = torch.autograd.grad(solve(DOP853, pendulum, Y0, t0, t1, **TIGHT).y.sum(), (t0, t1))
    torch.testing.assert_close(to_end, pendulum(Y0, T0).sum(1), rtol=1e-14, atol=1e-14)
    assert torch.equal(to_start, -to_end)


def test_function_transforms_differentiate_the_ends_too() -> None:
    def loss(t0: Tensor, t1: Tensor) -> Tensor:
        return direct(t0, t1).sum()

    t0, t1 = T0.clone().requires_grad_(), T1.clone().requires_grad_()
    expected = torch.autograd.grad(loss(t0, t1), (t0, t1))
    torch.testing.assert_close(grad(loss, (0, 1))(T0, T1), expected, rtol=1e-10, atol=1e-10)
    forward = jvp(loss, (T0, T1), (torch.ones_like(T0), torch.ones_like(T1)))[1]
    torch.testing.assert_close(forward, expected[0].sum() + expected[1].sum(), rtol=1e-10, atol=1e-10)
