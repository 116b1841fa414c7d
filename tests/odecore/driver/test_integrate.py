"""The fixed-grid driver: grids, rests, failures, statistics, gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from odecore.driver.integrate import integrate
from odecore.driver.solution import Solution, SolveError, Status
from odecore.driver.solve import solve
from odecore.explicit.embedded import BOGACKI_SHAMPINE, DORMAND_PRINCE, HEUN_EULER
from odecore.explicit.pairs import without_error
from odecore.explicit.symplectic import FOREST_RUTH
from odecore.explicit.tableaus import RK4
from odecore.gradients.checkpointed import integrate_checkpointed
from odecore.implicit.runge_kutta import BACKWARD_EULER
from odecore.problem import Separable
from odecore.stepper import Carry, Field, Step

Y0 = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-0.4, 1.0]], dtype=torch.float64)
UNEQUAL = torch.tensor([[0.0, 0.0, 3.0], [0.5, 0.0, 2.0], [0.5, 0.2, 1.5], [1.0, 0.2, 1.5], [1.0, 0.2, 0.0]],
                       dtype=torch.float64)
"""Each column is the grid of a sample: with rests at different places, and one runs backwards."""


def forced(y: Tensor, t: Tensor) -> Tensor:
    return -y * y[:, :1].abs() + torch.cos(5 * t).unsqueeze(1)


@pytest.mark.parametrize("stepper", [HEUN_EULER, BOGACKI_SHAMPINE, BACKWARD_EULER], ids=["heun", "bs", "euler"])
def test_each_sample_goes_through_its_own_grid_as_if_it_were_alone(stepper: object) -> None:
    together = integrate(stepper, forced, Y0, UNEQUAL, trajectory=True)
    assert together.ys.shape == (3, 5, 2) and torch.equal(together.ys[:, -1], together.y)
    assert together.accepted.tolist() == [2, 1, 3] and together.t.tolist() == [1.0, 0.2, 0.0]
    for i in range(3):
        times = UNEQUAL[:, i]
        moving = torch.cat([times[:1], times[1:][times.diff() != 0]])
        alone = integrate(stepper, forced, Y0[i:i + 1], moving, trajectory=True)
        torch.testing.assert_close(alone.y[0], together.y[i], rtol=0, atol=1e-13)
        places = torch.cat([torch.zeros(1, dtype=torch.long), (times.diff() != 0).cumsum(0)])
        torch.testing.assert_close(alone.ys[0, places], together.ys[i], rtol=0, atol=1e-13)


def test_the_fixed_grid_of_an_adaptive_solve_repeats_it() -> None:
    times = [torch.zeros(3, dtype=torch.float64)]
    solution = solve(DORMAND_PRINCE, forced, Y0, 0.0, 2.0, rtol=1e-5, atol=1e-5,
                     callback=lambda n, t: times.append(t))
    repeated = integrate(DORMAND_PRINCE, forced, Y0, torch.stack(times))
    torch.testing.assert_close(repeated.y, solution.y, rtol=0, atol=1e-13)
    assert torch.equal(repeated.accepted, solution.accepted) and repeated.newton == 0


def test_samples_that_rest_are_not_evaluated_and_every_evaluation_counts() -> None:
    sizes: list[int] = []

    def recorded(y: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(y))
        return forced(y, t)

    solution = integrate(HEUN_EULER, recorded, Y0, UNEQUAL)
    assert sizes == [2, 2, 2, 2, 1, 1, 1, 1] and solution.nfe == len(sizes)


def test_arguments_follow_the_samples_that_move() -> None:
    k = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    solution = integrate(HEUN_EULER, lambda y, t, k: k.unsqueeze(1).expand_as(y), Y0, UNEQUAL, args=(k,))
    expected = Y0 + (k * (UNEQUAL[-1] - UNEQUAL[0])).unsqueeze(1)
    torch.testing.assert_close(solution.y, expected)


def test_methods_without_error_estimate_serve_and_use_the_parts_of_problems() -> None:
    oscillator = Separable(lambda p, t: p, lambda q, t: -q)
    y0 = torch.tensor([[[1.0], [0.0]]], dtype=torch.float64)  # position 1, momentum 0
    for stepper in (without_error(RK4), FOREST_RUTH):
        end = integrate(stepper, oscillator, y0, torch.linspace(0, 1, 41)).y
        torch.testing.assert_close(end[0, :, 0], torch.tensor([math.cos(1), -math.sin(1)], dtype=torch.float64), rtol=0,
                                   atol=1e-6)


def test_complex_and_half_precision_states_keep_their_dtype() -> None:
    times = torch.linspace(0, 1, 41)
    turned = integrate(DORMAND_PRINCE, lambda y, t: 1j * y, torch.ones(2, 1, dtype=torch.complex128), times,
                       trajectory=True)
    torch.testing.assert_close(turned.y[0, 0], torch.exp(torch.tensor(1j, dtype=torch.complex128)), rtol=0, atol=1e-8)
    assert turned.ys.dtype == torch.complex128
    seen = set()
    half = integrate(HEUN_EULER, lambda y, t: seen.add(y.dtype) or torch.ones_like(y),
                     torch.ones(1, 1, dtype=torch.bfloat16), torch.linspace(0, 1, 513), trajectory=True)
    assert seen == {torch.bfloat16} == {half.y.dtype, half.ys.dtype} and half.y.item() == 2.0


def failing(y: Tensor, t: Tensor) -> Tensor:
    return torch.where((y[:, :1] > 1.9) & (t.unsqueeze(1) > 0.6), torch.nan, torch.ones_like(y))


def test_a_value_that_is_not_finite_is_named_with_its_time() -> None:
    with pytest.raises(SolveError, match="1 of 3 samples met non-finite values.*sample 1 at t=0.5") as caught:
        integrate(HEUN_EULER, failing, Y0, [0.0, 0.5, 0.75, 1.0])
    solution = caught.value.solution
    assert solution.status.tolist() == [Status.FINISHED, Status.NON_FINITE, Status.FINISHED]
    assert torch.isfinite(solution.y).all() and solution.accepted.tolist() == [3, 1, 3]


def test_a_partial_result_keeps_the_last_state_and_leaves_the_rest_open() -> None:
    solution = integrate(HEUN_EULER, failing, Y0, [0.0, 0.5, 0.75, 1.0], partial=True, trajectory=True)
    assert solution.t.tolist() == [1.0, 0.5, 1.0] and torch.equal(solution.y[1], Y0[1] + 0.5)
    assert torch.isnan(solution.ys[1, 2:]).all() and torch.isfinite(solution.ys[1, :2]).all()
    assert torch.isfinite(solution.ys[[0, 2]]).all()


@dataclass(frozen=True)
class Unsolvable:
    """An implicit method that finds no step beyond t = 0.4 for samples above 1."""

    order: int = 1
    error_order: int = 2

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        return (), 0

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        lost = (y[:, :1] > 1) & (t1.unsqueeze(1) > 0.4)
        return Step(y, (), torch.where(lost, torch.inf, torch.zeros_like(y)), y.abs(), 1, newton=5, krylov=7)


def test_an_implicit_step_that_does_not_converge_is_named_by_both_drivers() -> None:
    with pytest.raises(SolveError, match="iteration does not converge.*sample 1 at t=0.25"):
        integrate(Unsolvable(), forced, Y0, [0.0, 0.25, 0.5])
    with pytest.raises(SolveError, match="iteration does not converge.*sample 1 at t=0.4"):
        solve(Unsolvable(), forced, Y0, 0.0, 0.5, rtol=1e-3, atol=1e-3)
    solution = solve(Unsolvable(), forced, Y0, 0.0, 0.5, rtol=1e-3, atol=1e-3, partial=True)
    assert solution.status.tolist() == [Status.FINISHED, Status.NOT_CONVERGED, Status.FINISHED]


def test_iterations_are_summed() -> None:
    def statistics(solution: Solution) -> tuple[int, int, int]:
        return solution.nfe, solution.newton, solution.krylov

    assert statistics(integrate(Unsolvable(), forced, Y0, [0.0, 0.1, 0.2])) == (2, 10, 14)


def test_gradients_of_states_times_and_arguments_are_those_of_finite_differences() -> None:
    y0, times = Y0.clone().requires_grad_(), UNEQUAL.clone()
    # A rest is where both times are one: they move together.
    free = torch.tensor([0.5, 0.2, 2.0, 1.5], dtype=torch.float64, requires_grad=True)
    k = torch.tensor([1.0, 0.5, -0.3], dtype=torch.float64, requires_grad=True)

    def grid(free: Tensor) -> Tensor:
        a, b, c, d = free
        return torch.stack([times[0], torch.stack([a, times[1, 1], c]), torch.stack([a, b, d]),
                            torch.stack([times[3, 0], b, d]), torch.stack([times[4, 0], b, times[4, 2]])])

    def field(y: Tensor, t: Tensor, k: Tensor) -> Tensor:
        return forced(y, t) * k.unsqueeze(1)

    def states(y0: Tensor, free: Tensor, k: Tensor) -> Tensor:
        return integrate(BOGACKI_SHAMPINE, field, y0, grid(free), args=(k,), trajectory=True).ys

    assert torch.autograd.gradcheck(states, (y0, free, k))
    stored = integrate_checkpointed(BOGACKI_SHAMPINE, field, y0, grid(free), args=(k,), states=2)
    expected = torch.autograd.grad(states(y0, free, k)[:, -1].sin().sum(), (y0, free, k))
    torch.testing.assert_close(torch.autograd.grad(stored.sin().sum(), (y0, free, k)), expected, rtol=1e-12, atol=1e-12)


def test_no_samples_are_integrated_without_evaluation() -> None:
    solution = integrate(BOGACKI_SHAMPINE, lambda y, t: pytest.fail("evaluated"), torch.ones(0, 2), [0.0, 1.0])
    assert solution.y.shape == (0, 2) and solution.nfe == 0


@pytest.mark.parametrize(("changes", "match"), [
    ({"times": [0.0]}, "two times or more"), ({"times": torch.zeros(3, 2)}, "3 columns"),
    ({"times": [0.0, math.inf]}, "finite"), ({"times": [0.0, math.nan]}, "finite"),
    ({"times": [0.0, 1.0, 0.5]}, "turn back"), ({"y0": torch.tensor([math.nan])}, "non-finite"),
    ({"y0": torch.ones(3, dtype=torch.long)}, "dtype"), ({"args": (torch.ones(2),)}, r"args\[0\]"),
    ({"field": lambda y, t: y[:, :1]}, "field returned shape")])
def test_bad_arguments_are_refused(changes: dict, match: str) -> None:
    arguments: dict = {"field": forced, "y0": Y0, "times": [0.0, 1.0]} | changes
    with pytest.raises(ValueError, match=match):
        integrate(HEUN_EULER, **arguments)


@pytest.mark.parametrize("stepper", [HEUN_EULER, BACKWARD_EULER, DORMAND_PRINCE])
def test_a_sample_that_fails_leaves_all_gradients_finite_and_those_of_others_alone(stepper: object) -> None:
    def field(y: Tensor, t: Tensor, k: Tensor) -> Tensor:
        return k.unsqueeze(1) * y * torch.sqrt(torch.where(k > 0, 0.5 - t, 1.0)).unsqueeze(1)  # only k > 0 is lost

    y0 = torch.tensor([[1.0], [2.0], [0.5]], dtype=torch.float64, requires_grad=True)
    k = torch.tensor([-0.5, 1.0, -1.0], dtype=torch.float64, requires_grad=True)
    grid = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.65], dtype=torch.float64)
    found = integrate(stepper, field, y0, grid, args=(k,), partial=True)
    assert found.status.tolist()[::2] == [Status.FINISHED] * 2 and found.status[1] != Status.FINISHED
    to_y0, to_k = torch.autograd.grad(found.y.sum(), (y0, k))
    others = [0, 2]
    alone = integrate(stepper, field, y0[others], grid, args=(k[others],)).y
    expected = torch.autograd.grad(alone.sum(), (y0, k))
    torch.testing.assert_close(found.y[others], alone, rtol=1e-12, atol=1e-12)
    assert torch.isfinite(to_y0).all() and torch.isfinite(to_k).all()
    torch.testing.assert_close(to_y0[others], expected[0][others], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(to_k[others], expected[1][others], rtol=1e-10, atol=1e-10)


def test_a_failure_costs_one_step_more_and_only_where_gradients_follow() -> None:
    def field(y: Tensor, t: Tensor) -> Tensor:
        return torch.where((t.unsqueeze(1) > 0.5) & (y > 1.5), torch.nan, -y)

    y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    y0[1] = 10.0
    grid = torch.linspace(0, 1, 11, dtype=torch.float64)
    plain = integrate(HEUN_EULER, field, y0, grid, partial=True)
    followed = integrate(HEUN_EULER, field, y0.clone().requires_grad_(), grid, partial=True)
    assert followed.nfe == plain.nfe + 2
    assert torch.equal(followed.status, plain.status) and torch.equal(followed.t, plain.t)
    torch.testing.assert_close(followed.y, plain.y, rtol=1e-14, atol=1e-14)
