"""Plans, fixed grids and adaptive solves with exact gradients in a bounded number of stored states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from odecore.adjoint import PureStep, State, affordable, discrete
from odecore.plan import Plan, Registers, Row, Weight
from odecore.solve import solve
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
    noisy = [isinstance(row.noise, Tensor) or row.noise != 0.0 for row in plan.rows]
    if any(noisy) and noise is None:
        raise ValueError("noise=None, but the plan adds noise: pass a function that draws it by the row's index")
    steps: list[PureStep] = [partial(_advance, row, index, model, x.dtype, plan.depth, noise if noisy[index] else None)
                             for index, row in enumerate(plan.rows)]
    steps[-1] = partial(_anchor_of, steps[-1])
    start = Registers(x, plan.depth, reuse=False).anchor
    states = affordable(states, memory, (2 + plan.depth) * start.nbytes, plan.nfe)
    (final,) = discrete(steps, (start,), states=states, parameters=(*parameters, *_weights(plan)))
    return final.to(x.dtype)


def integrate_checkpointed(
    stepper: Stepper,
    field: Callable[..., Tensor],
    y0: Inexact[Tensor, "samples ..."],
    times: Sequence[float] | Float[Tensor, " nodes"] | Float[Tensor, "nodes samples"],
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
        ValueError: fewer than two times, or as :func:`discrete`.

    Cost: as :func:`discrete`.
    """
    grid = times if isinstance(times, Tensor) else torch.tensor(times, dtype=torch.float64)
    if grid.ndim not in (1, 2) or len(grid) < 2 or (grid.ndim == 2 and grid.shape[1] != len(y0)):
        raise ValueError(f"times has shape {tuple(grid.shape)}: give two times or more, alone or in {len(y0)} columns")
    nodes = grid.double().cpu().reshape(len(grid), -1).expand(-1, len(y0))
    y = y0.float() if y0.dtype in (torch.float16, torch.bfloat16) else y0  # as the adaptive driver does

    def bound(y: Tensor, t: Tensor) -> Tensor:
        return field(y.to(y0.dtype), t, *args).to(y.dtype)

    def step(index: int, state: State) -> State:
        y, *carry = state
        taken = stepper.step(bound, nodes[index], nodes[index + 1], y, tuple(carry))
        return (taken.y, *taken.carry)

    carry, _ = stepper.start(bound, nodes[0], y)
    extra = (*parameters, *args, *([nodes] if nodes.requires_grad else []))
    steps = [partial(step, index) for index in range(len(nodes) - 1)]
    return discrete(steps, (y, *carry), states=states, memory=memory, parameters=extra)[0].to(y0.dtype)


def solve_checkpointed(
    stepper: Stepper,
    field: Callable[..., Tensor],
    y0: Inexact[Tensor, "samples ..."],
    t0: float | Float[Tensor, " samples"],
    t1: float | Float[Tensor, " samples"],
    *,
    rtol: float,
    atol: float,
    args: tuple[Tensor, ...] = (),
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
        t0: start.
        t1: end.
        rtol: relative tolerance.
        atol: absolute tolerance.
        args: tensors with one row a sample for the field.
        states: most states stored at one time, the initial one included; None stores all.
        memory: the same as a budget in bytes.
        parameters: what else needs a gradient.
        options: further arguments of :func:`~odecore.solve.solve`.

    Returns:
        The states at t1.

    Raises:
        ValueError: as :func:`discrete` and ``solve``.
        SolveError: some samples failed.

    Cost: the adaptive solve, then as :func:`discrete` with the steps of the whole batch together:
        where one sample steps alone, the others take steps of length zero.
    """
    start = torch.as_tensor(t0, dtype=torch.float64).detach().cpu().expand(len(y0)).clone()
    reached = [start]
    with torch.no_grad():
        solve(stepper, field, y0, t0, t1, rtol=rtol, atol=atol, args=args, partial=False,
              callback=lambda attempt, t: reached.append(t), **options)
    moved = [True, *(bool((after != before).any()) for before, after in zip(reached[:-1], reached[1:], strict=True))]
    grid = [t for t, keep in zip(reached, moved, strict=True) if keep]
    if len(grid) == 1:  # all intervals are empty
        return y0
    return integrate_checkpointed(stepper, field, y0, torch.stack(grid), args=args, states=states, memory=memory,
                                  parameters=parameters)


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
        numbers += [row.t, row.noise, *row.to_prediction, *row.anchor, *row.point]
    return [n for n in numbers if isinstance(n, Tensor) and n.requires_grad]
