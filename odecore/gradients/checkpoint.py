"""Binomial checkpointing: how to reverse N steps with a given number of stored states."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import comb

from torch import Tensor


class Do(Enum):
    """What one action of a schedule does, with the state before step i written x_i."""

    STORE = "keep the current state x_first in a slot"
    RESTORE = "make the stored x_first the current state"
    FREE = "forget the stored x_first"
    ADVANCE = "run the steps first, …, last - 1 from x_first, the current state, to x_last"
    REVERSE = "pull the gradient back through step first, from x_first, the current state"


@dataclass(frozen=True, slots=True)
class Action:
    """One action of a schedule.

    Args:
        do: what happens.
        first: index of the state or step that it refers to.
        last: end of an advance, else equal to ``first``.
    """

    do: Do
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """A sequence of actions that reverses ``steps`` steps with at most ``states`` stored states.

    Execution starts with x_0 as the current state. The actions before the first reversal are the
    forward sweep, which ends at x_{N-1}.

    Args:
        steps: N.
        states: c, the initial state included.
        actions: what to do, in order.
    """

    steps: int
    states: int
    actions: tuple[Action, ...]

    @property
    def advances(self) -> int:
        """Steps that are run without a reversal; each reversal runs one step more, with its gradient."""
        return sum(action.last - action.first for action in self.actions if action.do is Do.ADVANCE)

    @property
    def forward(self) -> tuple[Action, ...]:
        """The actions before the first reversal."""
        return self.actions[: self._turn()]

    @property
    def backward(self) -> tuple[Action, ...]:
        """The actions from the first reversal on."""
        return self.actions[self._turn():]

    def _turn(self) -> int:
        return next(index for index, action in enumerate(self.actions) if action.do is Do.REVERSE)


def optimal_advances(steps: int, states: int) -> int:
    """Count the least number of advances that reverse ``steps`` steps: ``r N - C(c + r, c + 1)``.

    r is the least number with ``C(c + r, c) ≥ N``: no step is advanced more than r times.

    Args:
        steps: N, at least 1.
        states: c, stored states at one time, the initial state included; at least 1.

    Raises:
        ValueError: a number below 1.

    Source: Griewank & Walther 2000, Algorithm 799: revolve, doi:10.1145/347837.347846.
    """
    _check(steps, states)
    repetitions = _repetitions(steps, states)
    return repetitions * steps - comb(states + repetitions, states + 1)


def binomial_schedule(steps: int, states: int) -> Schedule:
    """Make a schedule with the least number of advances.

    A stretch of N steps from a stored state is split at m: advance to x_m, store it, reverse the
    N - m later steps in c - 1 states, then the m earlier ones in c. The gradient of each step is
    asked for exactly once, from the last step to the first.

    Args:
        steps: N, at least 1.
        states: c, stored states at one time, the initial state included; at least 1. More than
            N states bring nothing.

    Raises:
        ValueError: a number below 1.

    Cost: :func:`optimal_advances` steps, and N steps with their gradients; host time O(actions).

    Source: Griewank & Walther 2000, Algorithm 799: revolve, doi:10.1145/347837.347846.
    """
    _check(steps, states)
    actions = [Action(Do.STORE, 0, 0)]
    current = 0  # index of the current state; -1 once a reversal has used it up

    def go_to(start: int, target: int) -> None:
        nonlocal current
        if current != start:
            actions.append(Action(Do.RESTORE, start, start))
        if target > start:
            actions.append(Action(Do.ADVANCE, start, target))
        current = target

    def reverse(step: int) -> None:
        nonlocal current
        actions.append(Action(Do.REVERSE, step, step))
        current = -1

    # Stretches still to be reversed, the next one last: (start, stop, slots), x_start being stored;
    # with no slots, x_start is to be freed. A stack, since recursion would be N deep for c = N.
    stack = [(0, 0, 0), (0, steps, states)]
    while stack:
        start, stop, slots = stack.pop()
        if slots == 0:
            actions.append(Action(Do.FREE, start, start))
        elif slots == 1 or stop - start == 1:
            for step in range(stop - 1, start - 1, -1):
                go_to(start, step)
                reverse(step)
        else:
            middle = start + _split(stop - start, slots)
            go_to(start, middle)
            stack.append((start, middle, slots))
            if stop - middle == 1:  # x_middle is used at once and need not be stored
                reverse(middle)
            else:
                actions.append(Action(Do.STORE, middle, middle))
                stack += [(middle, middle, 0), (middle, stop, slots - 1)]
    return Schedule(steps, states, tuple(actions))


def states_within(memory: int, state_bytes: int) -> int:
    """Count the states that fit into a budget.

    Args:
        memory: budget for stored states, in bytes.
        state_bytes: size of one state, in bytes; see :func:`size_of`.

    Raises:
        ValueError: not one state fits, or a state has no size.
    """
    if state_bytes < 1:
        raise ValueError(f"state_bytes={state_bytes}: give the size of a state, at least one byte")
    if memory < state_bytes:
        raise ValueError(f"memory={memory} bytes hold no state of {state_bytes} bytes: room for one is needed, the "
                         "initial one")
    return memory // state_bytes


def size_of(*state: Tensor) -> int:
    """Add up the bytes of a state's tensors, counting a tensor that occurs twice once."""
    return sum(tensor.nbytes for tensor in {id(tensor): tensor for tensor in state}.values())


def _repetitions(steps: int, states: int) -> int:
    repetitions, reach = 0, 1
    while reach < steps:
        repetitions += 1
        reach = reach * (states + repetitions) // repetitions  # C(c + r, c) from C(c + r - 1, c)
    return repetitions


def _split(steps: int, states: int) -> int:
    """An optimal length of the first part: one that keeps both parts within their repetitions r - 1 and r."""
    r = _repetitions(steps, states)
    return min(comb(states + r - 1, states), steps - comb(states + r - 2, states - 1))


def _check(steps: int, states: int) -> None:
    for name, value in (("steps", steps), ("states", states)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number, at least 1")
