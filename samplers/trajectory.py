"""The states that a run passes through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from odecore.plan import Plan, Registers, Row


class Trajectory(NamedTuple):
    """The accepted states of a run, noise first.

    Attributes:
        times: time of each state, of shape (rows + 1,), float64.
        states: of shape (rows + 1, num, …), in the dtype of the run, on the CPU.
    """

    times: Tensor
    states: Tensor


class Recorder:
    """A callback that keeps the accepted state before the first row and after each.

    Args:
        x: the state at the start.
    """

    def __init__(self, x: Tensor) -> None:
        self._states = [x.detach().cpu().clone()]

    def __call__(self, index: int, row: Row, registers: Registers) -> None:
        """Keep the new anchor."""
        self._states.append(registers.anchor.detach().cpu().clone())

    def states(self) -> Tensor:
        """All that was kept, of shape (rows + 1, batch, …)."""
        return torch.stack([state.to(self._states[-1].dtype) for state in self._states])


def joined(plan: Plan, rows: range, batches: Sequence[Tensor]) -> Trajectory | None:
    """Put together the states of all batches of a run over some rows of a plan; None if there are none."""
    if not batches:
        return None
    start = plan.t_start if rows.start == 0 else plan.rows[rows.start - 1].t_next
    times = [float(t) for t in (start, *(plan.rows[i].t_next for i in rows))]
    return Trajectory(torch.tensor(times, dtype=torch.float64), torch.cat(list(batches), 1))
