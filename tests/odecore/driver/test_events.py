"""Events: where they are found, which comes first, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odecore.driver.events import Direction, Event
from odecore.driver.roots import bracketed_root
from odecore.driver.solve import Solution, Status, solve
from odecore.explicit.embedded import DOP853, DORMAND_PRINCE, TSITOURAS, EmbeddedPair

G = 9.81


def falling(y: Tensor, t: Tensor) -> Tensor:
    """A ball: height and velocity."""
    return torch.stack([y[:, 1], torch.full_like(y[:, 1], -G)], 1)


def circle(y: Tensor, t: Tensor) -> Tensor:
    return torch.stack([-y[:, 1], y[:, 0]], 1)


def height(y: Tensor, t: Tensor) -> Tensor:
    return y[:, 0]


def drop(heights: Tensor, event: object = height, **changes: object) -> Solution:
    y0 = torch.stack([heights, torch.zeros_like(heights)], 1)
    arguments: dict = {"t0": 0.0, "t1": 10.0, "rtol": 1e-8, "atol": 1e-8, "event": event} | changes
    return solve(DORMAND_PRINCE, falling, y0, **arguments)


def turns(
    event: object, start: float = 0.1, t1: float = 20.0, stepper: EmbeddedPair = DOP853, **changes: object
) -> Solution:
    y0 = torch.tensor([[math.cos(start), math.sin(start)]], dtype=torch.float64)
    return solve(stepper, circle, y0, 0.0, t1, rtol=1e-10, atol=1e-10, event=event, **changes)  # type: ignore[arg-type]


def test_each_sample_stops_at_its_own_time() -> None:
    heights = torch.tensor([1.0, 2.0, 1000.0], dtype=torch.float64)
    solution = drop(heights)
    assert solution.status.tolist() == [Status.STOPPED, Status.STOPPED, Status.FINISHED]
    assert solution.event is not None and solution.event.tolist() == [0, 0, -1]
    torch.testing.assert_close(solution.t[:2], (2 * heights[:2] / G).sqrt(), rtol=0, atol=1e-13)
    torch.testing.assert_close(solution.y[:2, 0], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(solution.y[:2, 1], -(2 * heights[:2] * G).sqrt(), rtol=0, atol=1e-12)
    assert solution.t[2] == 10.0


def test_time_and_state_have_the_gradients_of_the_closed_form() -> None:
    heights = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    floor = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    solution = drop(heights, lambda y, t: y[:, 0] - floor)
    to_heights, to_floor = torch.autograd.grad(solution.t.sum(), [heights, floor], retain_graph=True)
    rate = (1 / (2 * G * (heights - 0.25))).sqrt().detach()  # of sqrt(2 (h - floor) / g)
    torch.testing.assert_close(to_heights, rate, rtol=1e-10, atol=0)
    torch.testing.assert_close(to_floor, -rate.sum(), rtol=1e-10, atol=0)
    (speed,) = torch.autograd.grad(solution.y[:, 1].sum(), heights, retain_graph=True)
    torch.testing.assert_close(speed, -G * rate, rtol=1e-10, atol=0)
    (position,) = torch.autograd.grad(solution.y[:, 0].sum(), floor)
    torch.testing.assert_close(position, torch.tensor(2.0, dtype=torch.float64), rtol=1e-10, atol=0)


@pytest.mark.parametrize("stepper", [DORMAND_PRINCE, TSITOURAS, DOP853])
def test_gradients_of_a_nonlinear_event_agree_with_finite_differences(stepper: EmbeddedPair) -> None:
    def event_time(k: Tensor) -> Tensor:
        y0 = torch.ones(1, 1, dtype=torch.float64)
        return solve(stepper, lambda y, t: k * y * torch.cos(t).unsqueeze(1), y0, 0.0, 3.0, rtol=1e-11, atol=1e-11,
                     event=lambda y, t: y[:, 0] ** 2 - 1.5 - 0.1 * t).t[0]

    k, step = torch.tensor(0.7, dtype=torch.float64, requires_grad=True), 1e-5
    (gradient,) = torch.autograd.grad(event_time(k), k)
    with torch.no_grad():
        difference = (event_time(k + step) - event_time(k - step)) / (2 * step)
    torch.testing.assert_close(gradient, difference, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("direction", "angle"), [(Direction.EITHER, math.pi / 2), (Direction.FALLING, math.pi / 2),
                                                  (Direction.RISING, 3 * math.pi / 2)])
def test_a_direction_picks_the_crossing(direction: Direction, angle: float) -> None:
    assert float(turns(Event(height, direction)).t[0]) == pytest.approx(angle - 0.1, abs=1e-8)


def test_a_direction_is_seen_along_the_integration() -> None:
    backwards = turns(Event(height, Direction.FALLING), t1=-20.0)
    assert float(backwards.t[0]) == pytest.approx(-math.pi / 2 - 0.1, abs=1e-8)


def test_the_first_of_several_events_wins() -> None:
    solution = turns([height, lambda y, t: y[:, 1] - 0.9, lambda y, t: t - 19.0])
    assert solution.event is not None and solution.event.tolist() == [1]
    assert float(solution.t[0]) == pytest.approx(math.asin(0.9) - 0.1, abs=1e-8)


def test_an_event_may_only_be_recorded() -> None:
    solution = turns([Event(height, after=math.inf), Event(lambda y, t: t - 10.0)])
    assert solution.t[0] == pytest.approx(10.0, abs=1e-12)
    angles = torch.arange(0, 3, dtype=torch.float64) * math.pi + math.pi / 2 - 0.1
    torch.testing.assert_close(solution.crossings[0].t, angles, rtol=0, atol=1e-8)
    assert solution.crossings[0].sample.tolist() == [0, 0, 0]
    torch.testing.assert_close(solution.crossings[0].y[:, 1], torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64))


def test_a_sample_stops_at_the_crossing_of_a_number() -> None:
    solution = turns(Event(height, after=3))
    assert float(solution.t[0]) == pytest.approx(5 * math.pi / 2 - 0.1, abs=1e-8)
    assert len(solution.crossings[0].t) == 3


def test_two_crossings_in_a_step_are_seen_by_its_pieces() -> None:
    def hump(y: Tensor, t: Tensor) -> Tensor:
        return (t - 0.4) * (t - 0.6)

    arguments = {"stepper": TSITOURAS, "start": 0.0, "t1": 1.0, "first_step": 1.0}
    assert turns(hump, **arguments, shortest=1.0).status.tolist() == [Status.FINISHED]  # type: ignore[arg-type]
    found = turns(Event(hump, pieces=2, after=math.inf), **arguments, shortest=1.0)  # type: ignore[arg-type]
    torch.testing.assert_close(found.crossings[0].t, torch.tensor([0.4, 0.6], dtype=torch.float64))


def test_a_start_on_the_event_is_no_crossing() -> None:
    solution = turns(Event(height), start=math.pi / 2)
    y0 = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    exact = solve(DOP853, circle, y0, 0.0, 20.0, rtol=1e-10, atol=1e-10, event=height)
    assert float(exact.t[0]) == pytest.approx(math.pi, abs=1e-8)
    assert float(solution.t[0]) <= math.pi + 1e-8


def test_events_see_the_arguments_of_their_samples_only() -> None:
    heights = torch.tensor([4.0, 1.0, 3.0], dtype=torch.float64)
    floors = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    y0 = torch.stack([heights, torch.zeros_like(heights)], 1)
    solution = solve(DORMAND_PRINCE, lambda y, t, floor: falling(y, t), y0, 0.0, 10.0, rtol=1e-8, atol=1e-8,
                     args=(floors,), event=lambda y, t, floor: y[:, 0] - floor)
    torch.testing.assert_close(solution.t, (2 * (heights - floors) / G).sqrt(), rtol=0, atol=1e-12)


def test_states_after_an_event_are_missing_and_those_before_are_not() -> None:
    solution = drop(torch.tensor([1.0, 1000.0], dtype=torch.float64), ts=torch.tensor([0.0, 0.3, 2.0]))
    assert solution.ys is not None
    assert torch.isnan(solution.ys[0, 2]).all() and not torch.isnan(solution.ys[0, :2]).any()
    assert not torch.isnan(solution.ys[1]).any()
    assert float(solution.ys[0, 1, 0]) == pytest.approx(1 - G / 2 * 0.09, abs=1e-7)


def test_a_complex_state_has_events() -> None:
    y0 = torch.ones(1, 1, dtype=torch.complex128)
    solution = solve(DOP853, lambda y, t: 1j * y, y0, 0.0, 5.0, rtol=1e-10, atol=1e-10, event=lambda y, t: y[:, 0].real)
    assert float(solution.t[0]) == pytest.approx(math.pi / 2, abs=1e-8)


def test_single_precision_has_events_of_its_precision() -> None:
    solution = drop(torch.tensor([1.0, 2.0]), rtol=1e-5, atol=1e-5)
    assert solution.y.dtype == torch.float32 and solution.t.dtype == torch.float64
    torch.testing.assert_close(solution.t, (2 * torch.tensor([1.0, 2.0]).double() / G).sqrt(), rtol=1e-6, atol=0)


def test_trees_have_events_of_trees() -> None:
    y0 = {"height": torch.ones(2, dtype=torch.float64), "speed": torch.zeros(2, dtype=torch.float64)}
    solution = solve(DORMAND_PRINCE, lambda y, t: {"height": y["speed"], "speed": torch.full_like(t, -G)}, y0, 0.0, 5.0,
                     rtol=1e-8, atol=1e-8, event=lambda y, t: y["height"])
    assert float(solution.t[0]) == pytest.approx(math.sqrt(2 / G), abs=1e-12)
    assert set(solution.crossings[0].y) == {"height", "speed"}


def test_steps_may_be_bounded() -> None:
    times = []
    y0 = torch.ones(1, 1, dtype=torch.float64)
    solve(DOP853, lambda y, t: -y, y0, 0.0, 1.0, rtol=1e-3, atol=1e-3, longest=0.125, first_step=1.0,
          callback=lambda _, t: times.append(float(t[0])))
    assert len(times) >= 8 and all(b - a <= 0.125 + 1e-12 for a, b in zip([0.0, *times], times, strict=False))
    rough = solve(DORMAND_PRINCE, lambda y, t: -50 * y, y0, 0.0, 1.0, rtol=1e-12, atol=1e-12, shortest=0.25)
    assert rough.accepted.tolist() == [4] and rough.rejected.tolist() == [0]


@settings(max_examples=30, deadline=None)
@given(root=st.floats(0.0, 1.0), power=st.sampled_from([1, 3, 7]), steepness=st.floats(-20.0, 20.0))
def test_a_bracketed_root_is_found_to_the_tolerance(root: float, power: int, steepness: float) -> None:
    at, zero = torch.tensor([root], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    found = bracketed_root(lambda x: (x - at) ** power * torch.exp(steepness * x), zero, zero + 1, 1e-12)
    assert abs(float(found) - root) <= 1e-12 or abs(float(found) - root) ** power == 0.0


@pytest.mark.parametrize(("changes", "name"), [({"after": 0}, "after"), ({"after": 1.5}, "after"),
                                               ({"pieces": 0}, "pieces")])
def test_an_event_checks_itself(changes: dict, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Event(height, **changes)


@pytest.mark.parametrize("wrong", [lambda y, t: y, lambda y, t: y.sum(), lambda y, t: y[:, 0] + 0j])
def test_an_event_gives_one_real_number_a_sample(wrong: object) -> None:
    with pytest.raises(ValueError, match="one real number a sample"):
        drop(torch.tensor([1.0, 2.0]), wrong)


@pytest.mark.parametrize("bounds", [{"shortest": -1.0}, {"shortest": 2.0, "longest": 1.0}, {"longest": 0.0}])
def test_bounds_of_steps_are_checked(bounds: dict) -> None:
    with pytest.raises(ValueError, match="shortest"):
        drop(torch.tensor([1.0]), **bounds)
