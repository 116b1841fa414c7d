"""The fixed-grid driver: one step of any stepper between each two times."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from odecore.driver.batch import HALF, bound, check_states, partial_step
from odecore.driver.dense import bootstrapped
from odecore.driver.fetch import fetch_largest, refuse_mapped
from odecore.driver.pytree import Tree, on_trees
from odecore.driver.record import Taken
from odecore.driver.solution import Solution, Status, checked
from odecore.stepper import Carry, Step, Stepper, column

Times = Sequence[float] | Float[Tensor, " nodes"] | Float[Tensor, "nodes samples"]
"""A grid for all samples, or one column for each, in either direction; times may repeat."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A stepper on given times, ready to step.

    Attributes:
        stepper: the method.
        field: the problem.
        args: its arguments, one row a sample.
        nodes: times of shape (nodes, samples), float64, on the host.
        dtype: of the states that the field sees.
    """

    stepper: Stepper
    field: Callable[..., Tensor]
    args: tuple[Tensor, ...]
    nodes: Tensor
    dtype: torch.dtype

    @classmethod
    def of(
        cls, stepper: Stepper, field: Callable[..., Tensor], y0: Tensor, times: Times, args: tuple[Tensor, ...]
    ) -> Grid:
        """Check the arguments of an integration.

        Raises:
            ValueError: fewer than two times, times that are not finite or turn back, or as the adaptive driver.
        """
        samples = check_states(y0, args)
        return cls(stepper, field, args, nodes_of(times, samples), y0.dtype)

    def start(self, y0: Tensor) -> tuple[Tensor, Carry, int]:
        """The state as it is accumulated, the first carry, and the evaluations for it."""
        y = y0.float() if self.dtype in HALF else y0
        if len(y) == 0:
            return y, (), 0
        return y, *self.stepper.start(bound(self.field, self.args, self.dtype), self.nodes[0], y)

    def step(self, index: int, y: Tensor, carry: Carry, resting: Tensor | None = None) -> Step:
        """Go from the time of an index to the next; samples whose interval is empty, or that rest, stay as they are."""
        begin, end = self.nodes[index], self.nodes[index + 1]
        if resting is not None:
            end = torch.where(resting, begin, end)
        return partial_step(self.stepper, self.field, self.args, self.dtype, begin, end, y, carry)

    def taken(self, index: int, y: Tensor, step: Step) -> Taken:
        """A step from y as a recorder sees it."""
        t0, t1 = self.nodes[index].detach(), self.nodes[index + 1].detach()
        make = step.dense or functools.partial(bootstrapped, bound(self.field, self.args, self.dtype), t0, t1, y,
                                               step.y, self.stepper.order)
        return Taken.of(torch.arange(len(y)), t0 != t1, t0, t1, y, step.y, make)


@on_trees
def integrate(
    stepper: Stepper,
    field: Callable[..., Tensor],
    y0: Inexact[Tensor, "samples ..."] | Tree,
    times: Times,
    *,
    args: tuple[Tensor, ...] = (),
    trajectory: bool = False,
    partial: bool = False,
) -> Solution:
    """Take one step of a stepper between each two times.

    Args:
        stepper: the method; of its error estimate only a failed iteration (inf) is heeded.
        field: ``field(y, t, *args) -> value`` or a problem of :mod:`odecore.problem`, t of shape (samples,).
        y0: initial states of shape (samples, …), floating-point or complex. Half precision is
            accumulated in float32; the field sees the dtype of y0.
        times: the grid, increasing or decreasing, for all samples or one column a sample; equal times
            are an interval in which a sample rests. A tensor gets its gradient.
        args: tensors with one row a sample for the field.
        trajectory: keep the states at all times, ``Solution.ys`` of shape (samples, nodes, …).
        partial: return what was reached where a sample fails, with its status, instead of raising. A failed
            sample has the gradient of the state that it reached.

    Returns:
        States at the last times and statistics; ``accepted`` counts intervals that are not empty. A
        sample that fails keeps its last finite state; its later states in ``ys`` are nan.

    Raises:
        ValueError: wrong times, states or arguments.
        SolveError: a sample met a non-finite value, or an implicit step that did not converge, and
            ``partial`` is False. It names the time at which the failed step started.

    Cost: one step for each interval that is not empty for all samples. The host waits for the device
        twice, whatever the number of steps, and once a step if ``partial`` and gradients follow; a step in
        which a sample fails is then repeated for the others. Memory of all states if ``trajectory``.
    """
    grid = Grid.of(stepper, field, y0, times, args)
    nodes = grid.nodes.detach()
    y, carry, nfe = grid.start(y0)
    newton = krylov = 0
    # One for each sample, on the device; read once, at the end.
    failed = torch.full((len(y),), int(Status.FINISHED), device=y.device)
    reached = torch.zeros_like(failed)
    states, resting = [y], None
    for index in range(len(nodes) - 1):
        step = grid.step(index, y, carry, resting)
        nfe, newton, krylov = nfe + step.nfe, newton + step.newton, krylov + step.krylov
        failed = torch.where(failed == Status.FINISHED, _cause(step), failed)
        if partial and step.y.requires_grad:
            lost = fetch_largest(failed != Status.FINISHED)
            if not torch.equal(lost, torch.zeros_like(lost) if resting is None else resting):
                # Autograd multiplies non-finite values with zero, which is not zero: repeat the step of the others.
                resting = lost
                step = grid.step(index, y, carry, resting)
                nfe, newton, krylov = nfe + step.nfe, newton + step.newton, krylov + step.krylov
        alive = failed == Status.FINISHED
        reached = reached + alive
        y, carry = torch.where(column(alive, y), step.y, y), step.carry
        if trajectory:
            states.append(torch.where(column(alive, y), y, torch.nan))
    failed, reached = fetch_largest(torch.stack((failed, -reached))) * torch.tensor([[1], [-1]])
    intervals = torch.arange(len(nodes) - 1).unsqueeze(1) < reached
    accepted = ((nodes[1:] != nodes[:-1]) & intervals).sum(0)
    return checked(Solution(
        y.to(y0.dtype), nodes.gather(0, reached.unsqueeze(0)).squeeze(0), failed, accepted, torch.zeros_like(accepted),
        nfe, newton, krylov, torch.stack(states, 1).to(y0.dtype) if trajectory else None), partial)


def nodes_of(times: Times, samples: int) -> Tensor:
    """Read a grid as float64 times of shape (nodes, samples) on the host; a gradient passes.

    Raises:
        ValueError: fewer than two times, another shape, times that are not finite or turn back, or mapped ones.
    """
    refuse_mapped("times", times)
    grid = times if isinstance(times, Tensor) else torch.tensor(times, dtype=torch.float64)
    if grid.ndim not in (1, 2) or len(grid) < 2 or (grid.ndim == 2 and grid.shape[1] != samples):
        raise ValueError(f"times has shape {tuple(grid.shape)}: give two times or more, alone or in {samples} columns")
    nodes = grid.double().cpu().reshape(len(grid), -1).expand(-1, samples)
    steps = nodes.detach().diff(dim=0)
    if not bool(torch.isfinite(steps).all()):
        raise ValueError(f"times={grid.tolist()}: all times must be finite")
    if bool(((steps > 0).any(0) & (steps < 0).any(0)).any()):
        raise ValueError(f"times={grid.tolist()}: a sample must not turn back; sort its times in one direction")
    return nodes


def _cause(step: Step) -> Tensor:
    """How a step went for each sample, on the device."""
    def everywhere(flags: Tensor) -> Tensor:
        return flags.reshape(len(flags), flags.shape[1:].numel()).all(1)

    converged = everywhere(~torch.isinf(step.error))
    status = torch.where(converged, int(Status.FINISHED), int(Status.NOT_CONVERGED))
    return torch.where(everywhere(torch.isfinite(step.y)), status, int(Status.NON_FINITE))
