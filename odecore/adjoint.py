"""Discrete adjoint: exact gradients of a sequence of steps, in a chosen number of stored states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Inexact
from torch import Tensor
from torch.autograd.function import once_differentiable

from odecore.checkpoint import Do, Schedule, binomial_schedule, size_of, states_within
from odecore.plan import Plan, Registers, Row, Weight
from odecore.solve import Stepper, solve

State = tuple[Tensor, ...]
"""Tensors; their number and shapes may change from step to step."""

PureStep = Callable[[State], State]
"""A step without side effects: the same state gives the same result, and the state is left alone."""


def discrete(
    steps: Sequence[PureStep],
    state: State,
    *,
    states: int | None = None,
    memory: int | None = None,
    parameters: Iterable[Tensor] = (),
) -> State:
    """Run steps one after the other, with exact gradients in bounded memory.

    With ``x_{n+1} = Φ_n(x_n, θ)`` and λ the gradient with respect to a state, each step gives::

        λ_n = (∂Φ_n/∂x)ᵀ λ_{n+1}        dL/dθ += (∂Φ_n/∂θ)ᵀ λ_{n+1}

    by one vector–Jacobian product of the step, replayed from stored states by a binomial schedule.
    The result is the gradient of what was computed, to rounding, whatever the method.

    Args:
        steps: pure functions of the state, in order.
        state: initial state.
        states: most states stored at one time, the initial one included (the current state comes on
            top); None stores all.
        memory: the same as a budget in bytes, for states as large as the initial one. Give one of
            the two at most.
        parameters: every other tensor that the steps read and that needs a gradient: weights, times.

    Returns:
        The final state, differentiable (once) with respect to ``state`` and ``parameters``.

    Raises:
        ValueError: no steps, a wrong number of states; in the backward pass, a step that reads a
            tensor which requires a gradient and is no parameter.

    Cost: N steps forward. Backward :func:`~odecore.checkpoint.optimal_advances` - (N - 1) steps,
        and N steps with their vector–Jacobian products. Memory: ``states`` states and what autograd
        keeps of one step.

    Source: Zhang & Zhao 2022, PNODE, arXiv:2206.01298; Griewank & Walther 2000,
        doi:10.1145/347837.347846.
    """
    if not steps:
        raise ValueError("steps is empty: give one step at least")
    states = _affordable(states, memory, size_of(*state), len(steps))
    schedule = binomial_schedule(len(steps), states)
    extra = _distinct(parameters)
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (*state, *extra)):
        for step in steps:
            state = step(state)
        return state
    return _Replayed.apply(tuple(steps), schedule, len(state), *state, *extra)


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
    states = _affordable(states, memory, (2 + plan.depth) * start.nbytes, plan.nfe)
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


class Pullback(NamedTuple):
    """Gradients that a step hands back.

    Attributes:
        state: gradients with respect to the tensors of the state before the step.
        parameters: gradients with respect to the parameters.

    None stands for zero.
    """

    state: tuple[Tensor | None, ...]
    parameters: tuple[Tensor | None, ...]


def pull_back(
    step: PureStep, state: State, cotangents: Sequence[Tensor | None], parameters: Sequence[Tensor]
) -> Pullback:
    """Multiply cotangents with the transposed Jacobian of one step.

    Args:
        step: a pure function of the state.
        state: where it is linearised.
        cotangents: gradients with respect to the tensors of its result.
        parameters: what else gets a gradient; those that require none get None.

    Raises:
        ValueError: the step reads a tensor that requires a gradient and is no parameter.
    """
    with torch.enable_grad():
        inputs = _leaves(state)
        outputs = step(inputs)
    wanted = [p for p in parameters if p.requires_grad]
    sources = [x for x in {id(x): x for x in inputs}.values() if x.requires_grad]
    pairs = [(out, c) for out, c in zip(outputs, cotangents, strict=True) if c is not None and out.requires_grad]
    _check_sources([out for out, _ in pairs], [*sources, *wanted])
    if not pairs:
        return Pullback(tuple(None for _ in state), tuple(None for _ in parameters))
    gradients = torch.autograd.grad([out for out, _ in pairs], [*sources, *wanted], [c for _, c in pairs],
                                    allow_unused=True)
    by_source = dict(zip(map(id, [*sources, *wanted]), gradients, strict=True))
    to_parameters = tuple(by_source.get(id(p)) for p in parameters)
    # A tensor that occurs twice in the state hands its whole gradient to its first place.
    return Pullback(tuple(by_source.pop(id(x), None) for x in inputs), to_parameters)


class _Replayed(torch.autograd.Function):
    """The forward sweep of a schedule, and its execution in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, steps: tuple[PureStep, ...], schedule: Schedule, width: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.replay, ctx.parameters = _Replay(steps, schedule), tensors[width:]
        ctx.given, ctx.versions = tensors, [t._version for t in tensors]
        ctx.autocast = _autocast(tensors[0].device.type)
        final = steps[-1](ctx.replay.sweep(tensors[:width]))
        # Autograd takes each output for a tensor of its own, and one that is an input for changed in place.
        kept = [*tensors, *ctx.replay.current]
        outputs: list[Tensor] = []
        for tensor in final:
            outputs.append(tensor.clone() if any(tensor is other for other in (*kept, *outputs)) else tensor)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.replay is None:
            raise RuntimeError("the stored states were used up by an earlier backward pass: run the steps again")
        if any(t._version != version for t, version in zip(ctx.given, ctx.versions, strict=True)):
            raise RuntimeError("a state or parameter was changed in place after the forward pass, so that the steps "
                               "cannot be replayed: call backward before the optimiser's step")
        with ctx.autocast():
            state, parameters = ctx.replay.reverse(cotangents, ctx.parameters)
        ctx.replay = ctx.given = ctx.parameters = None
        return (None, None, None, *state, *parameters)


class _Replay:
    """The slots of one run of a schedule."""

    def __init__(self, steps: tuple[PureStep, ...], schedule: Schedule) -> None:
        self.steps = steps
        self.schedule = schedule
        self.slots: dict[int, State] = {}
        self.current: State | None = None

    def sweep(self, state: State) -> State:
        """Run all steps but the last, storing states on the way."""
        self.current = state
        for action in self.schedule.forward:
            self._do(action.do, action.first, action.last)
        assert self.current is not None
        # The current state is the one before the last step: it is kept for the first reversal.
        return self.current

    def reverse(
        self, cotangents: Sequence[Tensor | None], parameters: Sequence[Tensor]
    ) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """Run what follows, from the last step to the first."""
        total: list[Tensor | None] = [None] * len(parameters)
        for action in self.schedule.backward:
            if action.do is not Do.REVERSE:
                self._do(action.do, action.first, action.last)
                continue
            assert self.current is not None
            cotangents, gradients = pull_back(self.steps[action.first], self.current, cotangents, parameters)
            self.current = None
            total = [old if new is None else new if old is None else old + new
                     for old, new in zip(total, gradients, strict=True)]
        return cotangents, total

    def _do(self, do: Do, first: int, last: int) -> None:
        if do is Do.STORE:
            assert self.current is not None
            self.slots[first] = self.current
        elif do is Do.RESTORE:
            self.current = self.slots[first]
        elif do is Do.FREE:
            del self.slots[first]
        else:
            state, self.current = self.current, None
            assert state is not None
            with torch.no_grad():
                for step in self.steps[first:last]:
                    state = step(state)
            self.current = state


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


def _leaves(state: State) -> State:
    """Detached copies of a state that follow gradients; a tensor that occurs twice stays one tensor."""
    seen: dict[int, Tensor] = {}
    for tensor in state:
        if id(tensor) not in seen:
            leaf = tensor.detach()
            seen[id(tensor)] = leaf.requires_grad_(leaf.is_floating_point() or leaf.is_complex())
    return tuple(seen[id(tensor)] for tensor in state)


def _distinct(parameters: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple({id(p): p for p in parameters if p.requires_grad}.values())


def _affordable(states: int | None, memory: int | None, state_bytes: int, steps: int) -> int:
    """Resolve the two ways to limit the stored states."""
    if memory is None:
        return steps if states is None else states
    if states is not None:
        raise ValueError(f"states={states} and memory={memory} are both given: give one of them")
    return states_within(memory, state_bytes)


def _check_sources(outputs: Sequence[Tensor], known: Sequence[Tensor]) -> None:
    """Find leaves of the graph that get no gradient: a forgotten parameter would be a silent error."""
    ends = {(k.grad_fn, k.output_nr) for k in known if k.grad_fn is not None}
    leaves = {id(k) for k in known if k.grad_fn is None}
    seen: set[Any] = set()
    pending = [(out.grad_fn, out.output_nr) for out in outputs if out.grad_fn is not None]
    while pending:
        node, number = pending.pop()
        if (node, number) in ends or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor) and id(variable) not in leaves:
            raise ValueError(f"a step reads a tensor of shape {tuple(variable.shape)} that requires a gradient and is "
                             "not among the parameters: list it, or detach it")
        pending += [(following, position) for following, position in node.next_functions if following is not None]


def _autocast(device: str) -> Callable[[], AbstractContextManager[Any]]:
    """What restores the mixed precision of the forward pass in the backward pass."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    return partial(torch.autocast, device, dtype=torch.get_autocast_dtype(device),
                   enabled=torch.is_autocast_enabled(device), cache_enabled=False)
