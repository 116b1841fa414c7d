"""Checkpointed solves with states at given times, and their failures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from odecore.driver.solution import SolveError
from odecore.driver.solve import solve
from odecore.explicit.embedded import BOGACKI_SHAMPINE, DOP853, DORMAND_PRINCE, HEUN_EULER
from odecore.gradients.backsolve import backsolve
from odecore.gradients.checkpointed import integrate_checkpointed, solve_checkpointed
from odecore.implicit.runge_kutta import SDIRK2

Y0 = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.4, 1.0]], dtype=torch.float64)
ENDS = torch.tensor([2.0, -1.0, 0.0], dtype=torch.float64)
TIMES = torch.tensor([0.0, 0.3, 0.31, 0.9, 1.0], dtype=torch.float64) * ENDS.unsqueeze(1)


def pendulum(y: Tensor, t: Tensor, k: Tensor) -> Tensor:
    return torch.stack([y[:, 1], -k * torch.sin(y[:, 0]) + torch.cos(3 * t)], 1)


@pytest.mark.parametrize("stepper", [BOGACKI_SHAMPINE, DOP853, SDIRK2])
@pytest.mark.parametrize("states", [2, None])
def test_states_at_times_and_their_gradients_are_those_of_autograd_through_the_driver(
    stepper: object, states: int | None
) -> None:
    y0, ts = Y0.clone().requires_grad_(), TIMES.clone().requires_grad_()
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    k = torch.tensor([1.0, 30.0, 3.0], dtype=torch.float64)
    options = {"rtol": 1e-2, "atol": 1e-2, "args": (k,), "ts": ts}
    field = lambda y, t, k: pendulum(y, t, scale * k)  # noqa: E731
    direct = solve(stepper, field, y0, 0.0, ENDS, **options).ys
    replayed = solve_checkpointed(stepper, field, y0, 0.0, ENDS, states=states, parameters=(scale,), **options)
    torch.testing.assert_close(replayed, direct, rtol=1e-12, atol=1e-12)
    weights = torch.randn(direct.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for actual, expected in zip(torch.autograd.grad((replayed * weights).sum(), (y0, ts, scale)),
                                torch.autograd.grad((direct * weights).sum(), (y0, ts, scale)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def test_an_empty_interval_gives_the_initial_states_at_all_times() -> None:
    y0 = Y0.clone().requires_grad_()
    states = solve_checkpointed(DORMAND_PRINCE, pendulum, y0, 1.0, 1.0, rtol=1e-3, atol=1e-3, args=(Y0[:, 0],),
                                ts=torch.ones(2))
    assert torch.equal(states, torch.stack([Y0, Y0], 1))
    assert torch.equal(torch.autograd.grad(states.sum(), y0)[0], torch.full_like(y0, 2.0))


def test_a_grid_on_which_the_solution_is_lost_is_an_error_with_its_time() -> None:
    def lost(y: Tensor, t: Tensor) -> Tensor:
        return torch.where(t.unsqueeze(1) > 0.6, torch.nan, y)

    with pytest.raises(SolveError, match="non-finite values.*t=0.5"):
        integrate_checkpointed(HEUN_EULER, lost, Y0.clone().requires_grad_(), [0.0, 0.5, 0.75, 1.0], states=2)


@pytest.mark.parametrize(("name", "value"), [("event", lambda y, t: y[:, 0]), ("watch", lambda taken: None),
                                             ("partial", True)])
def test_what_ends_a_solve_early_is_refused_by_both_adjoints(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}=.*autograd through odecore.solve"):
        solve_checkpointed(DORMAND_PRINCE, lambda y, t: -y, Y0, 0.0, 1.0, rtol=1e-3, atol=1e-3, **{name: value})
    with pytest.raises(ValueError, match=f"{name}=.*odeint_event"):
        backsolve(DORMAND_PRINCE, lambda y, t: -y, Y0, [0.0, 1.0], rtol=1e-3, atol=1e-3, **{name: value})
