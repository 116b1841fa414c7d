"""Plans, fixed grids and adaptive solves with exact gradients in a bounded number of stored states."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from odecore.driver.batch import HALF, bound, times_of
from odecore.driver.integrate import Grid, Times, integrate
from odecore.driver.moving import moving_end, moving_start
from odecore.driver.pytree import Tree, on_trees
from odecore.driver.record import StatesAt
from odecore.driver.solve import judged, solve, summed_tolerance
from odecore.gradients.adjoint import PureStep, State, affordable, check_whole, discrete
from odecore.plan import Plan, Registers, Row, Weight
from odecore.stepper import Stepper


def execute_checkpointed(
    plan: Plan,
    model: Callable[[Tensor, Weight], Tensor],
    x: Inexact[Tensor, "*shape"],
    *,
    states: int | None = None,
    memory: int | None = None,
    parameters: Iterable[Tensor] = (),
    noise: Callable[[int], Tensor] | None = None,
) -> Inexact[Tensor, "*shape"]:
    """Run a plan as :func:`~odecore.plan.execute` does, with exact gradients in bounded memory.

    The steps are the plan's rows and a state is what the registers hold: the anchor, the point if
    it is another tensor, and the recent predictions.

    Args:
        plan: the compiled solver. Weights and times that are tensors get their gradients.
        model: the network, ``model(point, t) -> raw``; called again with the same arguments in the
            backward pass, where it must return the same.
        x: initial state.
        states: most register states stored at one time, the initial one included; None stores all.
        memory: the same as a budget in bytes; a state takes up to 2 + ``plan.depth`` tensors like x.
        parameters: what else needs a gradient: ``network.parameters()``, a condition, a guidance scale.
        noise: standard normal noise of the shape of x for the row of the given index, the same
            whenever it is called; needed if a row adds noise.

    Returns:
        The final state, equal to that of ``execute``.

    Raises:
        ValueError: as :func:`discrete`, or noise is needed and not given.

    Cost: as :func:`discrete`, one network evaluation a step.
    """
    noisy = [row.noisy for row in plan.rows]
    if any(noisy) and noise is None:
        raise ValueError("noise=None, but the plan adds noise: pass a function that draws it by the row's index")
    steps: list[PureStep] = [partial(_advance, row, index, model, x.dtype, plan.depth, noise if noisy[index] else None)
                             for index, row in enumerate(plan.rows)]
    steps[-1] = partial(_anchor_of, steps[-1])
    start = Registers(x if plan.entry == 1.0 else plan.entry * x, plan.depth, reuse=False).anchor
    states = affordable(states, memory, (2 + plan.depth) * start.nbytes, plan.nfe)
    (final,) = discrete(steps, (start,), states=states, parameters=(*parameters, *_weights(plan)))
    return final.to(x.dtype)


@on_trees
def integrate_checkpointed(
    stepper: Stepper,
    field: Callable[..., Tensor],
    y0: Inexact[Tensor, "samples ..."] | Tree,
    times: Times,
    *,
    args: tuple[Tensor, ...] = (),
    states: int | None = None,
    memory: int | None = None,
    parameters: Iterable[Tensor] = (),
) -> Inexact[Tensor, "samples ..."]:
    """Take one step of a stepper between each two times, with exact gradients in bounded memory.

    Args:
        stepper: the method; its error estimate is not used.
        field: ``field(y, t, *args) -> value``, t of shape (samples,).
        y0: initial states of shape (samples, …).
        times: the grid, for all samples or one column a sample; a tensor gets its gradient.
        args: tensors with one row a sample for the field.
        states: most states stored at one time, the initial one included; None stores all.
        memory: the same as a budget in bytes.
        parameters: what else needs a gradient.

    Returns:
        The states at the last time.

    Raises:
        ValueError: as :func:`discrete` and :func:`~odecore.driver.integrate.integrate`.
        SolveError: a sample met a non-finite value or an implicit step that did not converge.

    Cost: as :func:`discrete`.
    """
    grid = Grid.of(stepper, field, y0, times, args)
    final = _replayed(grid, y0, states, memory, parameters)[0].to(y0.dtype)
    _check_final(grid, y0, final)
    return final


@on_trees
def solve_checkpointed(
    stepper: Stepper,
    field: Callable[..., Tensor],
    y0: Inexact[Tensor, "samples ..."] | Tree,
    t0: float | Float[Tensor, " samples"],
    t1: float | Float[Tensor, " samples"],
    *,
    args: tuple[Tensor, ...] = (),
    ts: Float[Tensor, " times"] | Float[Tensor, "samples times"] | None = None,
    states: int | None = None,
    memory: int | None = None,
    parameters: Iterable[Tensor] = (),
    **options: Any,
) -> Inexact[Tensor, "samples ..."]:
    """Integrate with adaptive steps, and differentiate the accepted steps in bounded memory.

    The first solve, without gradients, finds each sample's steps; they are then taken as given, so
    the gradient is that of the scheme on this grid (as with autograd through the driver, which
    does not differentiate step sizes either).

    Args:
        stepper: the method.
        field: ``field(y, t, *args) -> value``, t of shape (samples,).
        y0: initial states of shape (samples, …).
        t0: start; a tensor gets its gradient, as in ``solve``.
        t1: end likewise.
        args: tensors with one row a sample for the field.
        ts: times at which states are wanted, as in :func:`~odecore.driver.solve.solve`.
        states: most states stored at one time, the initial one included; None stores all.
        memory: the same as a budget in bytes, without the states at ``ts``.
        parameters: what else needs a gradient.
        options: further arguments of :func:`~odecore.driver.solve.solve`: ``rtol``, ``atol``, …; nothing that
            would end a solve early, for the steps alone are replayed.

    Returns:
        The states at t1, or at ``ts``, of shape (samples, times, …), if it is given.

    Raises:
        ValueError: as :func:`discrete` and ``solve``; an event, a watch, or ``partial``.
        SolveError: some samples failed.

    Cost: the adaptive solve, then as :func:`discrete` with the steps of the whole batch together:
        where one sample steps alone, the others rest.
    """
    check_whole(options, "autograd through odecore.solve")
    begin, end = times_of("t0", t0, len(y0)), times_of("t1", t1, len(y0))
    reached = [begin]
    with torch.no_grad():
        solve(stepper, field, y0, t0, t1, args=args, callback=lambda attempt, t: reached.append(t), **options)
    stepper = judged(stepper, options["rtol"], options["atol"], options.get("norm", summed_tolerance))
    complete = bound(field, args, y0.dtype)
    y0 = moving_start(complete, y0, t0)
    start = y0.float() if y0.dtype in HALF else y0
    wanted = None if ts is None else StatesAt(ts, begin, end, start)
    moved = [True, *(bool((after != before).any()) for before, after in zip(reached[:-1], reached[1:], strict=True))]
    times = [t for t, keep in zip(reached, moved, strict=True) if keep]
    recorded: State = (start,)
    if len(times) > 1:
        grid = Grid.of(stepper, field, y0, torch.stack(times), args)
        recorded = _replayed(grid, y0, states, memory, parameters, wanted)
    if wanted is None:
        return moving_end(complete, recorded[0].to(y0.dtype), t1)
    wanted.values += recorded[1:]
    return wanted.result(y0.dtype)


def _replayed(
    grid: Grid, y0: Tensor, states: int | None, memory: int | None, parameters: Iterable[Tensor],
    wanted: StatesAt | None = None,
) -> State:
    """The final state of a grid, and then what was wanted, a tensor for each step that passes some of it."""
    y, carry, _ = grid.start(y0)
    steps: list[PureStep] = []
    recorded = 0
    for index, (t0, t1) in enumerate(zip(grid.nodes[:-1], grid.nodes[1:], strict=True)):
        read = None
        if wanted is not None:
            rows = (t0 != t1).nonzero().squeeze(1)
            at, columns = wanted.due(rows, t1[rows])
            read = partial(wanted.read, at=at, columns=columns, reached=t1[rows]) if len(at) else None
        steps.append(partial(_grid_step, grid, index, recorded, read))
        recorded += read is not None
    steps[-1] = partial(_without_carry, steps[-1], 1 + recorded)
    tensors = (*grid.args, grid.nodes, *([wanted.ts] if wanted is not None else []))
    extra = (*parameters, *(tensor for tensor in tensors if tensor.requires_grad))
    return discrete(steps, (y, *carry), states=states, memory=memory, parameters=extra)


def _grid_step(grid: Grid, index: int, recorded: int, read: Callable[..., Tensor] | None, state: State) -> State:
    """One step of a grid; a state is the solution, so many recorded tensors, and the carry."""
    y, *kept = state[: 1 + recorded]
    step = grid.step(index, y, state[1 + recorded:])
    if read is not None:
        taken = grid.taken(index, y, step)
        kept.append(read(taken, y=taken.y1))
    # An iteration that did not converge must not pass for a step: see _check_final.
    return (torch.where(torch.isinf(step.error), torch.nan, step.y), *kept, *step.carry)


def _without_carry(step: PureStep, length: int, state: State) -> State:
    """The last step hands on the solution and what was recorded."""
    return step(state)[:length]


def _check_final(grid: Grid, y0: Tensor, final: Tensor) -> None:
    """Say when and why a solution went astray; the steps themselves do not wait for the device to tell."""
    if not bool(torch.isfinite(final).all()):
        with torch.no_grad():
            integrate(grid.stepper, grid.field, y0, grid.nodes.detach(), args=grid.args)


def _advance(
    row: Row, index: int, model: Callable[[Tensor, Weight], Tensor], dtype: torch.dtype, depth: int,
    noise: Callable[[int], Tensor] | None, state: State,
) -> State:
    """One row of a plan as a pure step; a single tensor before the first row is anchor and point."""
    registers = Registers(state[0], depth, reuse=False)
    registers.anchor, registers.point = state[0], state[min(1, len(state) - 1)]
    registers.predictions = list(state[2:])
    raw = model(registers.point.to(dtype), row.t)
    registers.advance(row, raw, None if noise is None else noise(index))
    return (registers.anchor, registers.point, *registers.predictions)


def _anchor_of(step: PureStep, state: State) -> State:
    """The last row hands on nothing but the solution."""
    return step(state)[:1]


def _weights(plan: Plan) -> list[Tensor]:
    """The tensors among a plan's numbers that require a gradient."""
    numbers: list[Weight] = []
    for row in plan.rows:
        numbers += [row.t, row.noise, row.offset, *row.to_prediction, *row.anchor, *row.point]
    return [n for n in numbers if isinstance(n, Tensor) and n.requires_grad]
