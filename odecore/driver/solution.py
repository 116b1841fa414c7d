"""What a solve comes back with: states, statistics, and how each sample ended."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor

from odecore.driver.dense import DenseSolution
from odecore.driver.events import Crossings


class Status(IntEnum):
    """How the solution of one sample ended."""

    FINISHED = 0
    STEP_LIMIT = 1
    STEP_TOO_SMALL = 2
    NON_FINITE = 3
    NOT_CONVERGED = 4
    STOPPED = 5


class Solution(NamedTuple):
    """What :func:`~odecore.driver.solve.solve` and :func:`~odecore.driver.integrate.integrate` return.

    Counts, times and statuses are on the host.

    Attributes:
        y: last accepted state of each sample; finite.
        t: time of that state.
        status: :class:`Status` of each sample.
        accepted: accepted steps of each sample.
        rejected: rejected steps of each sample.
        nfe: evaluations of the field for the batch, whatever the number of samples in each.
        newton: Newton iterations for the batch.
        krylov: Krylov iterations for the batch.
        ys: states at the times asked for, of shape (samples, times, …); nan at times that a sample
            did not reach. None if none were asked for.
        dense: the solution as a function of time, if asked for.
        event: number of the event at which each sample stopped, -1 where none did; None without events.
        crossings: the :class:`~odecore.driver.events.Crossings` of each event.
    """

    y: Tensor
    t: Tensor
    status: Tensor
    accepted: Tensor
    rejected: Tensor
    nfe: int
    newton: int = 0
    krylov: int = 0
    ys: Tensor | None = None
    dense: DenseSolution | None = None
    event: Tensor | None = None
    crossings: tuple[Crossings, ...] = ()


class SolveError(RuntimeError):
    """Some samples did not reach the end; ``solution`` holds what was reached."""

    def __init__(self, message: str, solution: Solution) -> None:
        super().__init__(message)
        self.solution = solution


_CAUSES = {
    Status.STEP_LIMIT: "reached the limit of {steps} steps (raise max_steps or the tolerances)",
    Status.STEP_TOO_SMALL: "need steps below rounding (raise the tolerances)",
    Status.NON_FINITE: "met non-finite values of the field (check the field at the times in solution.t)",
    Status.NOT_CONVERGED: "met an implicit step whose iteration does not converge (raise its iterations or tolerance, "
                          "or check the field at the times in solution.t)",
}


def checked(solution: Solution, partial: bool, steps: int = 0) -> Solution:
    """Hand a solution on if nothing failed in it or what was reached is enough.

    Raises:
        SolveError: names the causes and the time and number of the first sample of each.
    """
    parts = []
    for status, text in _CAUSES.items():
        where = (solution.status == status).nonzero().squeeze(1).tolist()
        if where:
            parts.append(f"{len(where)} of {len(solution.status)} samples {text.format(steps=steps)}, the first being "
                         f"sample {where[0]} at t={float(solution.t[where[0]].detach()):.6g}")
    if parts and not partial:
        raise SolveError("; ".join(parts) + "; partial=True returns what was reached", solution)
    return solution
