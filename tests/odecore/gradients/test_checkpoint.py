"""Binomial schedules: correct, within their memory, and optimal, by executing them."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odecore.gradients.checkpoint import Do, Schedule, binomial_schedule, optimal_advances, size_of, states_within


def simulate(schedule: Schedule) -> tuple[list[int], int, int]:
    """Execute a schedule on states that are their own index: (reversed steps, steps advanced, most stored)."""
    current: int | None = 0
    slots: set[int] = set()
    reversed_, advanced, most = [], 0, 0
    for action in schedule.actions:
        if action.do is Do.STORE:
            assert current == action.first and action.first not in slots
            slots.add(action.first)
            most = max(most, len(slots))
        elif action.do is Do.RESTORE:
            assert action.first in slots
            current = action.first
        elif action.do is Do.FREE:
            slots.remove(action.first)
        elif action.do is Do.ADVANCE:
            assert current == action.first < action.last
            for _ in range(action.first, action.last):
                current += 1
                advanced += 1
        else:
            assert current == action.first
            reversed_.append(current)
            current = None
    assert not slots
    return reversed_, advanced, most


@cache
def least(steps: int, states: int) -> int:
    """The optimum by dynamic programming over all first splits."""
    if steps == 1:
        return 0
    if states == 1:
        return steps * (steps - 1) // 2
    return min(m + least(steps - m, states - 1) + least(m, states) for m in range(1, steps))


@pytest.mark.parametrize(("steps", "states", "advances"), [(20, 3, 45), (50, 4, 144), (100, 6, 280)])
def test_the_known_optima_come_out_of_the_execution(steps: int, states: int, advances: int) -> None:
    schedule = binomial_schedule(steps, states)
    assert simulate(schedule)[1] == schedule.advances == optimal_advances(steps, states) == advances


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 30))
def test_every_step_is_reversed_once_from_the_last_to_the_first_within_the_states(steps: int, states: int) -> None:
    reversed_, advanced, most = simulate(binomial_schedule(steps, states))
    assert reversed_ == list(range(steps - 1, -1, -1))
    assert most <= states
    assert advanced == optimal_advances(steps, states)


def test_the_number_of_advances_is_the_least_by_dynamic_programming() -> None:
    for steps in range(1, 40):
        for states in range(1, 8):
            assert optimal_advances(steps, states) == least(steps, states)


def test_as_many_states_as_steps_advance_each_step_once() -> None:
    for states in (2000, 3000):
        assert binomial_schedule(2000, states).advances == 1999


def test_one_state_restarts_for_each_step() -> None:
    assert binomial_schedule(30, 1).advances == 30 * 29 // 2


def test_a_thousand_steps_in_ten_states_are_advanced_less_than_four_times_each() -> None:
    assert binomial_schedule(1000, 10).advances == 3636


def test_the_forward_sweep_ends_before_the_last_step_and_holds_no_reversal() -> None:
    schedule = binomial_schedule(50, 4)
    assert all(action.do in (Do.STORE, Do.ADVANCE) for action in schedule.forward)
    assert sum(action.last - action.first for action in schedule.forward) == 49
    assert schedule.forward + schedule.backward == schedule.actions


def test_a_budget_in_bytes_gives_the_states_that_fit() -> None:
    state = (torch.zeros(1000, dtype=torch.float64), torch.zeros(10, dtype=torch.float32))
    assert size_of(*state) == 8040
    assert size_of(*state, state[0]) == 8040
    assert states_within(10 * 8040 + 8039, size_of(*state)) == 10


def test_a_budget_below_one_state_raises() -> None:
    with pytest.raises(ValueError, match="memory=99 bytes"):
        states_within(99, 100)
    with pytest.raises(ValueError, match="state_bytes=0"):
        states_within(99, 0)


@pytest.mark.parametrize(("steps", "states", "name"), [(0, 3, "steps"), (5, 0, "states"), (2.0, 3, "steps")])
def test_wrong_numbers_raise(steps: int, states: int, name: str) -> None:
    for function in (binomial_schedule, optimal_advances):
        with pytest.raises(ValueError, match=name):
            function(steps, states)
