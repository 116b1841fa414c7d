"""Discrete adjoint: exact gradients of a sequence of steps, in a chosen number of stored states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from odecore.gradients.checkpoint import Do, Schedule, binomial_schedule, size_of, states_within

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

    Cost: N steps forward. Backward :func:`~odecore.gradients.checkpoint.optimal_advances` - (N - 1) steps,
        and N steps with their vector–Jacobian products. Memory: ``states`` states and what autograd
        keeps of one step.

    Source: Zhang & Zhao 2022, PNODE, arXiv:2206.01298; Griewank & Walther 2000,
        doi:10.1145/347837.347846.
    """
    if not steps:
        raise ValueError("steps is empty: give one step at least")
    states = affordable(states, memory, size_of(*state), len(steps))
    schedule = binomial_schedule(len(steps), states)
    extra = _distinct(parameters)
    if not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in (*state, *extra)):
        for step in steps:
            state = step(state)
        return state
    return _Replayed.apply(tuple(steps), schedule, len(state), *state, *extra)


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


def affordable(states: int | None, memory: int | None, state_bytes: int, steps: int) -> int:
    """Resolve the two ways to limit the stored states."""
    if memory is None:
        return steps if states is None else states
    if states is not None:
        raise ValueError(f"states={states} and memory={memory} are both given: give one of them")
    return states_within(memory, state_bytes)


def check_whole(options: Mapping[str, Any], remedy: str) -> None:
    """Refuse what would end a solve before its end: only a whole solve is differentiated afterwards.

    Raises:
        ValueError: an event or a watch, whose times would be taken for constants, or ``partial``.
    """
    for name in ("event", "watch", "partial"):
        if options.get(name):
            raise ValueError(f"{name}={options[name]!r}: a solve that ends early would lose the gradient of its last "
                             f"time; use {remedy}, whose event times have their gradients")


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
