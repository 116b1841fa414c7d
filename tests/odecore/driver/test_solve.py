"""The adaptive driver: accuracy, independence of samples, failures, statistics."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odecore.driver.control import INTEGRAL, PI, PID, Controller
from odecore.driver.record import Taken
from odecore.driver.solve import Norm, Solution, SolveError, Status, larger_tolerance, solve, summed_tolerance
from odecore.explicit.embedded import BOGACKI_SHAMPINE, DOP853, DORMAND_PRINCE, EmbeddedPair
from odecore.explicit.tableaus import Tableau
from odecore.implicit.runge_kutta import KVAERNO3
from odecore.stepper import Step


def forced(y: Tensor, t: Tensor) -> Tensor:
    """y' = -y + cos 5t, whose solution from y(0) = y0 is known."""
    return -y + torch.cos(5 * t).reshape(-1, *[1] * (y.ndim - 1)).to(y.dtype)


def forced_solution(y0: Tensor, t: float) -> Tensor:
    return (y0 - 1 / 26) * math.exp(-t) + (math.cos(5 * t) + 5 * math.sin(5 * t)) / 26


def rates(y: Tensor, t: Tensor, k: Tensor) -> Tensor:
    return -k.reshape(-1, 1) * y * (1 + torch.sin(t).reshape(-1, 1))


def run(**changes: object) -> Solution:
    y0 = torch.tensor([[0.3, -1.0], [2.0, 0.0]], dtype=torch.float64)
    arguments: dict = {"stepper": DORMAND_PRINCE, "field": forced, "y0": y0, "t0": 0.0, "t1": 3.0, "rtol": 1e-8,
                       "atol": 1e-8} | changes
    return solve(**arguments)


@pytest.mark.parametrize("stepper", [BOGACKI_SHAMPINE, DORMAND_PRINCE])
@pytest.mark.parametrize("controller", [INTEGRAL, PI, PID])
def test_the_error_follows_the_tolerance(stepper: EmbeddedPair, controller: Controller) -> None:
    y0 = torch.tensor([[0.3], [2.0]], dtype=torch.float64)
    errors = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        solution = run(stepper=stepper, controller=controller, y0=y0, rtol=0.0, atol=tolerance)
        errors.append((solution.y - forced_solution(y0, 3.0)).abs().max().item())
        assert errors[-1] <= 30 * tolerance
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(("stepper", "order"), [(BOGACKI_SHAMPINE, 3), (DORMAND_PRINCE, 5)])
def test_pairs_have_their_order_and_their_errors_shrink_as_declared(stepper: EmbeddedPair, order: int) -> None:
    y0, t0 = torch.tensor([[1.5]], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
    start = forced_solution(y0, 0.4)
    carry, _ = stepper.start(forced, t0, start)

    def slope(error: Callable[[Step, float], Tensor], sizes: list[float]) -> float:
        errors = [error(stepper.step(forced, t0, t0 + h, start, carry), h).abs().item() for h in sizes]
        return np.polyfit(np.log(sizes), np.log(errors), 1)[0]

    local = slope(lambda step, h: step.y - forced_solution(y0, 0.4 + h), [0.08, 0.04, 0.02, 0.01])
    estimated = slope(lambda step, h: step.error, [0.02, 0.01, 0.005, 0.0025])
    assert (local, estimated) == pytest.approx((order + 1, stepper.error_order), abs=0.15)


def test_dop853_solves_to_a_tolerance_in_fewer_evaluations_than_a_method_of_order_five() -> None:
    y0 = torch.tensor([[0.3]], dtype=torch.float64)
    high, low = (run(stepper=stepper, y0=y0, rtol=0.0, atol=1e-12) for stepper in (DOP853, DORMAND_PRINCE))
    assert high.nfe < low.nfe
    torch.testing.assert_close(high.y, forced_solution(y0, 3.0), rtol=0, atol=1e-11)


def test_integration_runs_backwards() -> None:
    y0 = torch.tensor([[0.3], [2.0]], dtype=torch.float64)
    solution = run(y0=forced_solution(y0, 3.0), t0=3.0, t1=0.0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(solution.y, y0, rtol=0, atol=1e-6)


def test_each_sample_may_have_its_own_interval_and_direction() -> None:
    t0, t1 = torch.tensor([0.0, 2.0, 1.0, 0.0]), torch.tensor([1.0, 0.5, 1.0, 7.0])
    y0 = torch.tensor([0.3, 1.0, 5.0, -1.0], dtype=torch.float64)
    start = torch.stack([forced_solution(y, float(t)) for y, t in zip(y0, t0, strict=True)])
    solution = run(y0=start, t0=t0, t1=t1, rtol=1e-10, atol=1e-10)
    exact = torch.stack([forced_solution(y, float(t)) for y, t in zip(y0, t1, strict=True)])
    torch.testing.assert_close(solution.y, exact, rtol=0, atol=1e-8)
    assert torch.equal(solution.t, t1.double())
    assert solution.accepted[2] == 0 and solution.status[2] == Status.FINISHED


@pytest.mark.parametrize("controller", [INTEGRAL, PI, PID])
def test_a_sample_is_the_same_in_any_batch(controller: Controller) -> None:
    generator = torch.Generator().manual_seed(1)
    y0 = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    k = torch.tensor([0.1, 30.0, 1.0, 8.0, 0.0], dtype=torch.float64)
    options = {"field": rates, "stepper": BOGACKI_SHAMPINE, "rtol": 1e-5, "atol": 1e-7, "controller": controller}
    together = run(y0=y0, args=(k,), **options)
    for i in range(5):
        alone = run(y0=y0[i:i + 1], args=(k[i:i + 1],), **options)
        torch.testing.assert_close(alone.y[0], together.y[i], rtol=1e-13, atol=1e-15)
        assert (alone.accepted[0], alone.rejected[0]) == (together.accepted[i], together.rejected[i])
    assert len(set(together.accepted.tolist())) > 2


def test_samples_that_have_finished_are_evaluated_no_more() -> None:
    sizes: list[int] = []
    k = torch.tensor([50.0, 0.01, 0.01], dtype=torch.float64)

    def recorded(y: Tensor, t: Tensor, k: Tensor) -> Tensor:
        sizes.append(len(y))
        return rates(y, t, k)

    solution = run(field=recorded, y0=torch.ones(3, 2, dtype=torch.float64), args=(k,))
    assert sizes[0] == 3 and sizes[-1] == 1 and sorted(sizes, reverse=True) == sizes
    assert solution.nfe == len(sizes)


def test_counts_are_those_of_the_steps_taken() -> None:
    attempts = []
    solution = run(stepper=BOGACKI_SHAMPINE, first_step=2.9, rtol=1e-5, atol=1e-5,
                   callback=lambda n, t: attempts.append((n, t.tolist())))
    steps = solution.accepted + solution.rejected
    assert solution.rejected.min() >= 1 and steps.max() == len(attempts) == attempts[-1][0]
    assert solution.nfe == 1 + 3 * len(attempts)
    assert attempts[0][1] == [0.0, 0.0] and attempts[-1][1] == [3.0, 3.0]


class OnDevice(torch.Tensor):
    """Stands for a tensor on an accelerator: counts what would make the host wait for it."""

    waits = 0

    @classmethod
    def __torch_function__(
        cls, function: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = super().__torch_function__(function, types, args, kwargs or {})
        if getattr(function, "__name__", "") in ("cpu", "item", "__bool__", "__float__", "__int__", "tolist", "numpy",
                                                 "nonzero"):
            cls.waits += 1
            return result.as_subclass(Tensor) if isinstance(result, Tensor) else result
        return result


def test_the_host_waits_for_the_device_once_per_attempt() -> None:
    attempts: list[int] = []
    y0 = torch.tensor([[0.3], [2.0], [50.0]], dtype=torch.float64).as_subclass(OnDevice)
    k = torch.tensor([0.1, 30.0, 1.0], dtype=torch.float64).as_subclass(OnDevice)
    OnDevice.waits = 0
    solution = run(field=rates, y0=y0, args=(k,), first_step=1.0, rtol=1e-4, atol=1e-4,
                   callback=lambda n, t: attempts.append(OnDevice.waits))
    checks = 1  # that y0 is finite
    assert attempts == list(range(1 + checks, len(attempts) + 1 + checks))
    assert isinstance(solution.y, OnDevice) and len(set(solution.accepted.tolist())) == 3


def test_the_field_sees_exact_stage_times() -> None:
    times: list[float] = []

    def recorded(y: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.float64
        times.extend(t.tolist())
        return torch.zeros_like(y)

    run(field=recorded, stepper=BOGACKI_SHAMPINE, y0=torch.ones(1), t1=1.0, first_step=1.0)
    assert times == [0.0, 0.5, 0.75, 1.0]


def test_the_network_sees_the_dtype_of_the_state_and_half_precision_is_accumulated_in_float32() -> None:
    seen = set()

    def recorded(y: Tensor, t: Tensor) -> Tensor:
        seen.add(y.dtype)
        return torch.ones_like(y)

    solution = run(field=recorded, y0=torch.ones(1, 1, dtype=torch.bfloat16), t1=1.0, rtol=1e-3, atol=1e-3,
                   controller=Controller(largest=1.0), first_step=1 / 512,
                   stepper=BOGACKI_SHAMPINE)
    assert seen == {torch.bfloat16} and solution.y.dtype == torch.bfloat16
    assert solution.y.item() == 2.0


def test_complex_states_rotate() -> None:
    y0 = torch.tensor([[1.0 + 0j], [1j]], dtype=torch.complex128)
    solution = run(field=lambda y, t: 2j * y, y0=y0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(solution.y, y0 * torch.exp(torch.tensor(6j)).to(torch.complex128), rtol=0, atol=1e-7)


def test_gradients_flow_through_accepted_and_rejected_steps() -> None:
    y0 = torch.tensor([[0.5], [2.0]], dtype=torch.float64, requires_grad=True)
    k = torch.tensor([0.3, 5.0], dtype=torch.float64, requires_grad=True)
    solution = run(field=rates, y0=y0, args=(k,), first_step=1.0, rtol=1e-10, atol=1e-12)
    assert solution.rejected.sum() > 0
    gradient = torch.autograd.grad(solution.y.sum(), (y0, k))
    factor = 3.0 + 1 - math.cos(3.0)
    decay = torch.exp(-k.detach() * factor)
    torch.testing.assert_close(gradient[0].squeeze(1), decay, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(gradient[1], -factor * decay * y0.detach().squeeze(1), rtol=1e-6, atol=1e-8)


def test_a_sample_whose_field_is_not_finite_fails_alone() -> None:
    def broken(y: Tensor, t: Tensor) -> Tensor:
        value = forced(y, t)
        return torch.where((y[:, :1] > 100) & (t.reshape(-1, 1) >= 0), math.nan, value)

    y0 = torch.tensor([[0.3], [200.0]], dtype=torch.float64)
    alone = run(field=broken, y0=y0[:1])
    solution = run(field=broken, y0=y0, partial=True)
    assert solution.status.tolist() == [Status.FINISHED, Status.NON_FINITE]
    assert torch.equal(solution.y[0], alone.y[0]) and solution.y[1].item() == 200.0
    with pytest.raises(SolveError, match="1 of 2 samples met non-finite values.*sample 1 at t=0"):
        run(field=broken, y0=y0)


def test_an_overflowing_trial_step_is_repeated_shorter() -> None:
    solution = run(field=lambda y, t: -y**3, y0=torch.full((1, 1), 100.0), first_step=3.0, rtol=1e-5, atol=1e-6)
    assert solution.status.item() == Status.FINISHED and solution.rejected.item() > 0
    assert solution.y.item() == pytest.approx((2 * 3.0 + 1e-4) ** -0.5, rel=1e-3)


def test_a_trial_step_that_overflows_leaves_no_trace_in_the_gradient() -> None:
    y0 = torch.tensor([[1e-3], [1e4]], dtype=torch.float32, requires_grad=True)
    k = torch.tensor(1.0, requires_grad=True)
    solution = run(field=lambda y, t: -k * y**3, y0=y0, t1=1.0, first_step=1.0, rtol=1e-5, atol=1e-7,
                   ts=torch.tensor([0.5, 1.0]))
    assert solution.accepted[0] == 1 and solution.rejected[1] > 0
    gradient = torch.autograd.grad(solution.y.sum(), (y0, k))
    exact = [value.detach().double().requires_grad_() for value in (y0, k)]
    expected = torch.autograd.grad((exact[0] ** -2 + 2 * exact[1]).rsqrt().sum(), exact)
    torch.testing.assert_close([g.double() for g in gradient], list(expected), rtol=1e-3, atol=1e-6)


def test_a_watcher_sees_each_accepted_step_and_may_stop_samples_within_it() -> None:
    steps: list[tuple[list[int], Tensor]] = []

    def watch(taken: Taken) -> Tensor:
        steps.append((taken.rows.tolist(), taken.t1))
        stop = torch.where(taken.rows == 1, 1.25, 9.0)
        return torch.where((taken.t0 < stop) & (stop <= taken.t1), stop, math.nan)

    y0 = torch.tensor([[0.3], [2.0]], dtype=torch.float64)
    solution = run(y0=y0, watch=watch, ts=torch.tensor([1.0, 1.25, 2.0]), dense=True)
    assert solution.status.tolist() == [Status.FINISHED, Status.STOPPED] and solution.t.tolist() == [3.0, 1.25]
    torch.testing.assert_close(solution.y[1], forced_solution(y0[1], 1.25), rtol=0, atol=1e-6)
    assert torch.equal(solution.ys[1, 1], solution.y[1]) and torch.isnan(solution.ys[1, 2]).all()
    assert sum(0 in rows for rows, _ in steps) == int(solution.accepted[0])
    assert torch.equal(solution.dense(torch.tensor([[3.0], [1.25]]))[:, 0], solution.y)


def test_a_solution_that_blows_up_is_given_up_where_it_does() -> None:
    solution = run(field=lambda y, t: y**2, y0=torch.ones(1, 1, dtype=torch.float64), partial=True)
    assert solution.status.item() in (Status.STEP_TOO_SMALL, Status.NON_FINITE)
    assert solution.t.item() == pytest.approx(1.0, abs=1e-6) and torch.isfinite(solution.y).all()


def test_the_step_limit_gives_an_error_or_a_partial_result() -> None:
    with pytest.raises(SolveError, match="limit of 3 steps") as caught:
        run(max_steps=3)
    solution = run(max_steps=3, partial=True)
    assert solution.status.tolist() == [Status.STEP_LIMIT] * 2 and (solution.t < 3).all()
    assert torch.equal(caught.value.solution.y, solution.y)
    resumed = run(y0=solution.y, t0=solution.t)
    torch.testing.assert_close(resumed.y, run().y, rtol=0, atol=1e-6)


def test_a_tiny_first_step_grows() -> None:
    assert run(t0=1.0, first_step=1e-30).status.tolist() == [Status.FINISHED] * 2


@pytest.mark.parametrize("norm", [larger_tolerance, summed_tolerance])
def test_a_component_without_error_violates_no_tolerance_of_zero(norm: Norm) -> None:
    y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    solution = run(field=lambda y, t: -y, y0=y0, atol=0.0, norm=norm)
    torch.testing.assert_close(solution.y, y0 * math.exp(-3), rtol=1e-6, atol=0)


def test_no_samples_are_solved_without_evaluation() -> None:
    solution = run(field=lambda y, t: pytest.fail("the field was evaluated"), y0=torch.ones(0, 3))
    assert solution.y.shape == (0, 3) and solution.nfe == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.floats(-3, 3), st.floats(-3, 3), st.sampled_from([INTEGRAL, PI, PID]),
       st.floats(1e-3, 10.0))
def test_every_sample_ends_exactly_at_its_end(
    samples: int, t0: float, t1: float, controller: Controller, first: float
) -> None:
    solution = run(y0=torch.ones(samples, 2), t0=t0, t1=t1, rtol=1e-3, atol=1e-3, controller=controller,
                   first_step=first)
    assert solution.t.tolist() == [t1] * samples and torch.isfinite(solution.y).all()


@pytest.mark.parametrize(("changes", "match"), [
    ({"y0": torch.ones(2, dtype=torch.long)}, "dtype"), ({"y0": torch.tensor(1.0)}, "shape"),
    ({"y0": torch.tensor([math.nan])}, "non-finite"), ({"t0": math.nan}, "t0="), ({"t1": math.inf}, "t1="),
    ({"t1": torch.ones(3)}, "t1 has shape"), ({"rtol": -1.0}, "rtol"), ({"rtol": 0.0, "atol": 0.0}, "both zero"),
    ({"first_step": 0.0}, "first_step"), ({"first_step": -1.0}, "first_step"), ({"max_steps": 0}, "max_steps"),
    ({"args": (torch.ones(3),)}, r"args\[0\]"), ({"field": lambda y, t: y[:, :1]}, "field returned shape"),
])
def test_bad_arguments_are_refused(changes: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(**changes)


@pytest.mark.parametrize("changes", [{"exponents": (0.0, 0.0, 0.0)}, {"safety": 0.0}, {"safety": 1.0},
                                     {"smallest": 1.0}, {"largest": 0.5}, {"on_failure": 1.0}])
def test_controllers_out_of_range_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError):
        Controller(**changes)


def test_a_rejected_step_leaves_the_memory_of_the_controller_alone() -> None:
    memory = PI.start(1)
    factor, after = PI.next(np.array([16.0]), memory, 4)
    assert factor.item() == pytest.approx(0.45) and after == memory
    factor, after = PI.next(np.array([0.5]), after, 4)
    assert factor.item() == pytest.approx(0.9 * 0.5 ** -(0.7 / 4))
    factor, _ = PI.next(np.array([0.25]), after, 4)
    assert factor.item() == pytest.approx(0.9 * 0.25 ** -(0.7 / 4) * 0.5 ** (0.4 / 4))


def test_embedded_weights_must_sum_to_one() -> None:
    with pytest.raises(ValueError, match="sum to one"):
        EmbeddedPair(Tableau(a=((),), b=(1.0,), order=1), (0.5,), 1)


@pytest.mark.parametrize("stepper", [DORMAND_PRINCE, KVAERNO3])
def test_a_sample_that_is_given_up_leaves_the_gradients_of_others_and_of_what_all_share_as_they_are_alone(
    stepper: object
) -> None:
    """y' = -c / √y ends at y = 0, which the second sample meets."""
    y0, ends = torch.tensor([[1.0], [0.3]], dtype=torch.float64), torch.tensor([0.4, 0.9], dtype=torch.float64)
    options: dict = {"rtol": 1e-4, "atol": 1e-4, "first_step": 0.3, "partial": True,
                     "max_steps": 100}
    gradients = []
    for rows in (slice(0, 1), slice(0, 2)):
        c, start = torch.tensor(1.0, dtype=torch.float64, requires_grad=True), y0[rows].clone().requires_grad_()
        found = solve(stepper, lambda y, t, c=c: -c / torch.sqrt(y), start, 0.0, ends[rows], **options)
        assert found.status[0] == Status.FINISHED and bool((found.status[1:] != Status.FINISHED).all())
        kept = torch.where((found.status == Status.FINISHED).unsqueeze(1), found.y, 0.0)
        to_c, to_start = torch.autograd.grad(kept.sum(), (c, start))
        gradients.append((to_c, to_start[:1]))
        assert not to_start[1:].any()
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
