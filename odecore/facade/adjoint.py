"""``odeint_adjoint`` of torchdiffeq: gradients in memory that does not grow with the number of steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from odecore.facade.callbacks import NAMES
from odecore.facade.discrete import discrete_states
from odecore.facade.odeint import Options, Problem, odeint, prepare
from odecore.facade.system import Function, System, Tolerance, Value, largest_root_mean_square
from odecore.stepper import Stepper

DISCRETE = "discrete"
"""The adjoint method that differentiates the steps that were taken, exactly."""

SEMINORM = "seminorm"
"""The norm of the backward solve that leaves the gradients of parameters out."""


def odeint_adjoint(
    func: Function,
    y0: Value,
    t: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | Stepper | None = None,
    options: Options | None = None,
    event_fn: Function | None = None,
    adjoint_rtol: Tolerance | None = None,
    adjoint_atol: Tolerance | None = None,
    adjoint_method: str | Stepper | None = None,
    adjoint_options: Options | None = None,
    adjoint_params: Iterable[Tensor] | None = None,
) -> Any:
    """Integrate as :func:`~odecore.facade.odeint.odeint`, with gradients by an adjoint.

    By default another equation is solved backwards in time, together with the state, as in torchdiffeq::

        da/dt = -(∂f/∂y)ᵀ a        dL/dθ = ∫ (∂f/∂θ)ᵀ a dt        dL/dt_k = g_k · f(t_k, y_k)

    whose gradient is off by the errors of both solves. ``adjoint_method="discrete"`` differentiates the
    steps of the forward solve instead: exact to rounding, whatever the tolerances.

    Args:
        func: as in ``odeint``; a module, or ``adjoint_params`` is needed.
        y0: initial state.
        t: times.
        rtol: relative tolerance.
        atol: absolute tolerance.
        method: the forward method.
        options: its options.
        event_fn: as in ``odeint``.
        adjoint_rtol: relative tolerance of the backward solve; None for ``rtol``.
        adjoint_atol: absolute tolerance of the backward solve; None for ``atol``.
        adjoint_method: its method; None for ``method``; "discrete" for exact gradients.
        adjoint_options: its options; None for ``options`` without their norm. ``norm`` may be "seminorm",
            or a function of (time, y, adjoint of y, adjoints of parameters …). For "discrete" ``states``
            or ``memory``, the number or bytes of stored states.
        adjoint_params: what else needs a gradient; None for all parameters of func.

    Returns:
        As ``odeint``; differentiable once, in y0, t and the parameters.

    Raises:
        ValueError: as ``odeint``; no parameters where func is no module; options that cannot be those
            of another method.

    Cost: backward another solve, of a state of twice the size plus that of the parameters, each
        evaluation with a vector–Jacobian product; memory of the states at t. For "discrete" as
        :func:`~odecore.gradients.adjoint.discrete`.

    Source: Chen, Rubanova, Bettencourt & Duvenaud 2018, arXiv:1806.07366.
    """
    parameters = _parameters(func, adjoint_params)
    if adjoint_options is None and options is not None and adjoint_method not in (None, method, DISCRETE):
        raise ValueError(f"adjoint_options=None with options for method={method!r} and adjoint_method="
                         f"{adjoint_method!r}: give adjoint_options, {{}} for none")
    if adjoint_options is not None:
        backward = dict(adjoint_options)
    else:
        backward = {} if adjoint_method == DISCRETE else {k: v for k, v in (options or {}).items() if k != "norm"}
    problem = prepare(func, y0, t, rtol, atol, method, options)
    if event_fn is not None:
        problem = _until(problem, event_fn)
    if problem.t[0] == problem.t[-1]:
        states = problem.y0.unsqueeze(0).expand(len(problem.t), *problem.y0.shape)
    elif adjoint_method == DISCRETE:
        states = discrete_states(problem, parameters, **backward)
    else:
        adjoint = _Adjoint(rtol if adjoint_rtol is None else adjoint_rtol,
                           atol if adjoint_atol is None else adjoint_atol,
                           method if adjoint_method is None else adjoint_method, backward, (options or {}).get("norm"))
        states = _Continuous.apply(problem, adjoint, problem.y0, problem.t, *parameters)
    solution = problem.system.unpack(states)
    return solution if event_fn is None else (problem.t[1].detach().to(t.device, t.dtype), solution)


def _until(problem: Problem, event_fn: Function) -> Problem:
    """The problem up to its event, whose time is a constant."""
    with torch.no_grad():
        reached, _ = problem.until(event_fn)
    if len(reached) != 1:
        raise ValueError("event_fn with norm='per_sample': the adjoint needs common times; use odeint_event "
                         "with odeint")
    return problem._replace(t=torch.cat([problem.t[:1], reached]))


class _Adjoint(NamedTuple):
    """How the backward solve is made."""

    rtol: Tolerance
    atol: Tolerance
    method: str | Stepper | None
    options: dict[str, Any]
    state_norm: Any


class _Continuous(torch.autograd.Function):
    """The forward solve, and the adjoint equation in the backward pass."""

    @staticmethod
    def forward(ctx: Any, problem: Problem, adjoint: _Adjoint, y0: Tensor, t: Tensor, *parameters: Tensor) -> Tensor:
        states = problem._replace(y0=y0, t=t).states()
        ctx.system, ctx.adjoint = problem.system, adjoint
        ctx.save_for_backward(t, states, *parameters)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor | None, ...]:
        t, states, *parameters = ctx.saved_tensors
        system: System = ctx.system
        to_times, of_times = torch.zeros_like(t), ctx.needs_input_grad[3]
        covector, sums = gradients[-1], [torch.zeros_like(p) for p in parameters]
        to_start = torch.zeros((), dtype=covector.real.dtype if covector.is_complex() else covector.dtype,
                               device=covector.device)
        func = _augmented(system, parameters, of_times)
        for k in range(len(t) - 1, 0, -1):
            if of_times:
                slope = system.field(states[k], t[k].expand(states.shape[1]).to(states.device))
                to_times[k] = _inner(gradients[k], slope)
                to_start = to_start - to_times[k].to(to_start)
            state = (to_start, states[k], covector, *sums)
            ended = odeint(func, state, t[k - 1:k + 1].flip(0), **_arguments(system, ctx.adjoint, states[k], len(sums)))
            to_start, _, covector, *sums = (_like(end[-1], start) for end, start in zip(ended, state, strict=True))
            covector = covector + gradients[k - 1]
        to_times[0] = to_start
        return (None, None, covector, to_times, *sums)


def _augmented(
    system: System, parameters: Sequence[Tensor], of_times: bool
) -> Callable[..., tuple[Tensor, ...]]:
    """The right-hand side of the gradient of the time, the state, its adjoint, and the gradients of the parameters."""
    def func(t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            y = state[1].detach().requires_grad_()
            clock = (t.real if t.is_complex() else t).detach().double().requires_grad_(of_times)
            value = system.field(y, clock.expand(len(y)))
        wanted = [y, *parameters, *([clock] if of_times else [])]
        found: Sequence[Tensor | None] = [None] * len(wanted)
        if value.requires_grad:
            found = torch.autograd.grad(value, wanted, -state[2].to(value.dtype), allow_unused=True)
        rates = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]
        clock_rate = rates.pop() if of_times else torch.zeros_like(clock)
        return (clock_rate.to(t.dtype), value.detach(), *rates)

    for name in NAMES:
        callback = getattr(system.func, f"{name}_adjoint", None)
        if callback is not None:
            setattr(func, name, callback)
    return func


def _arguments(system: System, adjoint: _Adjoint, like: Tensor, parameters: int) -> dict[str, Any]:
    """Tolerances, method and options of the backward solve."""
    def spread(name: str, tolerance: Tolerance) -> Tolerance:
        given = system.tolerance(name, tolerance, like)
        if isinstance(given, float):
            return given
        return (given.min(), given, given, *[given.min()] * parameters)

    return {"rtol": spread("adjoint_rtol", adjoint.rtol), "atol": spread("adjoint_atol", adjoint.atol),
            "method": adjoint.method, "options": {**adjoint.options, "norm": _norm(system, adjoint)}}


def _norm(system: System, adjoint: _Adjoint) -> Callable[[tuple[Tensor, ...]], Tensor]:
    """The norm of the backward solve, of (gradient of the time, y, adjoint of y, adjoints of parameters …)."""
    of_state = adjoint.state_norm if callable(adjoint.state_norm) else largest_root_mean_square
    chosen = adjoint.options.get("norm")

    def norm(state: tuple[Tensor, ...]) -> Tensor:
        to_start, y, covector, *sums = state
        parts = [system.unpack(part) for part in (y, covector)]
        if callable(chosen):
            leaves = [leaf for part in parts for leaf in (part if isinstance(part, tuple) else (part,))]
            return chosen((to_start, *leaves, *sums))
        sizes = [to_start.abs(), *(torch.as_tensor(of_state(part)) for part in parts)]
        if chosen != SEMINORM and sums:
            sizes.append(largest_root_mean_square(tuple(sums)))
        return torch.stack([size.double() for size in sizes]).amax()

    if isinstance(chosen, str) and chosen != SEMINORM:
        raise ValueError(f"adjoint_options['norm']={chosen!r}: give a function or {SEMINORM!r}")
    return norm


def _parameters(func: Function, given: Iterable[Tensor] | None) -> tuple[Tensor, ...]:
    if given is None and not isinstance(func, nn.Module):
        raise ValueError(f"func is of type {type(func).__name__}, whose parameters are not known: make it an "
                         "nn.Module, or give adjoint_params, () for none")
    found = func.parameters() if given is None and isinstance(func, nn.Module) else given or ()
    return tuple({id(p): p for p in found if p.requires_grad}.values())


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).real.sum().double().cpu()


def _like(tensor: Tensor, like: Tensor) -> Tensor:
    """A part of the backward state in the kind of number of what it belongs to."""
    return (tensor.real if tensor.is_complex() and not like.is_complex() else tensor).to(like.dtype)
