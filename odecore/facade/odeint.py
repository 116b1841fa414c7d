"""The call of torchdiffeq, ``odeint(func, y0, t)``, on our driver and methods."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from odecore.driver.events import Direction, Event
from odecore.explicit.adams import HIGHEST_ORDER, Adams, adams_bashforth, adams_bashforth_moulton
from odecore.facade.adaptive import Adaptive, Run
from odecore.facade.callbacks import Announcing
from odecore.facade.fixed import FixedGrid, fixed_states, fixed_until
from odecore.facade.methods import FIXED, IN_PARTS, SCIPY, stepper
from odecore.facade.scipy_solver import Scipy
from odecore.facade.system import PER_SAMPLE, Function, Margin, System, Tolerance, Value, system_of
from odecore.stepper import Stepper

Options = Mapping[str, Any]

_WITHOUT_MEANING = {"norm", "dtype", "grid_points", "eps"}
"""Options that torchdiffeq's other methods take and these need not."""


def odeint(
    func: Function,
    y0: Value,
    t: Tensor,
    *,
    rtol: Tolerance = 1e-7,
    atol: Tolerance = 1e-9,
    method: str | Stepper | None = None,
    options: Options | None = None,
    event_fn: Function | None = None,
) -> Any:
    """Integrate ``dy/dt = func(t, y)`` from ``y(t[0]) = y0`` through the times t.

    The whole of y0 is one system with common steps, as in torchdiffeq; with
    ``options={"norm": "per_sample"}`` each row of y0 takes its own steps, and func gets one time a row,
    of a shape that broadcasts over y.

    Args:
        func: ``(t, y) -> dy/dt``, t a number in the precision of y; of tensors or of tuples of them.
        y0: a tensor of any shape, floating-point or complex, or a tuple of them.
        t: times of shape (times,), floating-point, strictly increasing or decreasing.
        rtol: relative tolerance: a number, a tensor that broadcasts over y0, or one for each of a tuple.
        atol: absolute tolerance likewise.
        method: a name of :mod:`odecore.facade.methods` or a stepper; None for "dopri5".
        options: :class:`~odecore.facade.adaptive.Adaptive` for methods that choose their steps,
            :class:`~odecore.facade.fixed.FixedGrid` for the others, :class:`~odecore.facade.scipy_solver.Scipy` for
            "scipy_solver"; ``max_order`` for Adams methods.
        event_fn: ``(t, y) -> values``; the solve ends where one of them, positive or negative at the
            start, becomes zero. Then t holds the start and any time in the direction to go.

    Returns:
        States of shape (times, *shape), or a tuple of them, differentiable in y0, t and all that func
        reads. With ``event_fn``: the time of the event (without gradient, see :func:`odeint_event`), and
        the states at the start and then.

    Raises:
        ValueError: an argument is out of range, of the wrong shape or unknown.
        SolveError: the steps become too small, too many, or not finite.

    Cost: memory for gradients grows with the number of steps; :func:`~odecore.facade.adjoint.odeint_adjoint`
        bounds it.

    Source: Chen 2018, torchdiffeq, https://github.com/rtqichen/torchdiffeq.
    """
    problem = prepare(func, y0, t, rtol, atol, method, options)
    if event_fn is None:
        return problem.system.unpack(problem.states())
    reached, states = problem.until(event_fn)
    at = reached if problem.system.independent else reached[0]
    return at.to(t.device, t.dtype), problem.system.unpack(states)


def odeint_event(
    func: Function,
    y0: Value,
    t0: Tensor,
    *,
    event_fn: Function,
    reverse_time: bool = False,
    odeint_interface: Callable[..., Any] = odeint,
    **kwargs: Any,
) -> Any:
    """Integrate until an event, with the gradients of its time and of the state then.

    For a root of ``g(t, y(t)) = 0`` the implicit function theorem gives::

        dt* = -(dg + ∂g/∂y · dy) / (∂g/∂t + ∂g/∂y · f)        dy* = dy + f dt*

    where dy is the change of the state at a fixed time and dg that of g by its own parameters.

    Args:
        func: as in :func:`odeint`.
        y0: initial state.
        t0: start, one number, floating-point.
        event_fn: g, as in :func:`odeint`.
        reverse_time: whether to go to earlier times.
        odeint_interface: :func:`odeint`, ``odeint_adjoint``, or another of the same signature.
        kwargs: its further arguments.

    Returns:
        Time of the event, and the states at the start and then; differentiable once.

    Raises:
        ValueError: as ``odeint_interface``; t0 is not one number.
    """
    if not isinstance(t0, Tensor) or t0.numel() != 1:
        raise ValueError(f"t0={t0}: give a tensor of one number")
    first = t0.reshape(1)
    t = torch.cat([first, first.detach() + (-1.0 if reverse_time else 1.0)])
    found, solution = odeint_interface(func, y0, t, event_fn=event_fn, **kwargs)
    independent = dict(kwargs.get("options") or {}).get("norm") == PER_SAMPLE
    system, start = system_of(func, y0, independent)
    last = system.pack(tuple(part[-1] for part in solution) if system.is_tuple else solution[-1])
    at = found.reshape(-1).detach().double()
    moved, state = _rerouted(system, system.margin(event_fn, start, t[:1].detach()), at, last)
    final = system.unpack(state)
    if isinstance(final, tuple):
        solution = tuple(torch.cat([part[:-1], end.unsqueeze(0)]) for part, end in zip(solution, final, strict=True))
    else:
        solution = torch.cat([solution[:-1], final.unsqueeze(0)])
    return moved.to(found.device, found.dtype).reshape(found.shape), solution


class Problem(NamedTuple):
    """A call of :func:`odeint`, checked and put in terms of the driver."""

    system: System
    y0: Tensor
    t: Tensor
    method: Stepper | None
    options: Adaptive | FixedGrid | Scipy
    rtol: Tolerance
    atol: Tolerance

    def states(self) -> Tensor:
        """States of the driver at the times, of shape (times, samples, …)."""
        if len(self.t) == 1:
            return self.y0.unsqueeze(0)
        if isinstance(self.options, Scipy):
            tolerances = (self.system.tolerance(name, value, self.y0) for name, value in
                          (("rtol", self.rtol), ("atol", self.atol)))
            return self.options.states(self.system, self.y0, self.t, *tolerances)
        assert self.method is not None
        if isinstance(self.options, FixedGrid):
            return fixed_states(self.system, self._announcing(self.method), self.y0, self.t, self.options)
        return self.run().states(self.y0, self.t)

    def until(self, event_fn: Function) -> tuple[Tensor, Tensor]:
        """Time of an event for each sample, and the states at the start and then."""
        if len(self.t) != 2:
            raise ValueError(f"t has {len(self.t)} times with event_fn: give the start and one time in the direction "
                             "to go")
        if isinstance(self.options, Scipy):
            raise ValueError(f"event_fn with method={SCIPY!r}: choose 'dopri5' or 'kvaerno5'")
        assert self.method is not None
        margin = self.system.margin(event_fn, self.y0, self.t[:1].detach())
        at_event = (margin.signs == 0).any(1)
        if bool(at_event.any()):
            if not bool(at_event.all()):
                raise ValueError(f"event_fn is zero at the start of rows {at_event.nonzero().squeeze(1).tolist()}: "
                                 "start them off the event, or leave them out")
            return self.t[:1].detach().expand(len(self.y0)), torch.stack([self.y0, self.y0])
        without_gradient = torch.no_grad()(margin.function)  # of the time: odeint_event gives it one
        event = Event(without_gradient, direction=Direction.FALLING)
        if isinstance(self.options, FixedGrid):
            return fixed_until(self.system, self._announcing(self.method), self.y0, self.t, self.options, event,
                               (margin.signs,))
        return self.run().until(self.y0, self.t, event, (margin.signs,))

    def run(self) -> Run:
        """The adaptive solve of a problem that is one."""
        options = self.options
        assert self.method is not None and isinstance(options, Adaptive)
        norm = self.system.norm(options.norm, self.rtol, self.atol, self.y0)
        method = self._announcing(self.method)
        return Run(self.system, method, options, norm, method.attempted if isinstance(method, Announcing) else None)

    def _announcing(self, method: Stepper) -> Stepper:
        return Announcing.around(method, self.system)


def prepare(
    func: Function, y0: Value, t: Tensor, rtol: Tolerance, atol: Tolerance, method: str | Stepper | None,
    options: Options | None,
) -> Problem:
    """Check the arguments of :func:`odeint`.

    Raises:
        ValueError: as :func:`odeint`.
    """
    if not isinstance(t, Tensor) or t.ndim != 1 or len(t) < 1 or not t.is_floating_point():
        raise ValueError(f"t={t!r}: give a floating-point tensor of shape (times,)")
    steps = t.detach().double().diff()
    if not bool((steps > 0).all() or (steps < 0).all()) or not bool(torch.isfinite(t).all()):
        raise ValueError(f"t={t.tolist()}: give finite times that strictly increase or strictly decrease")
    given = dict(options or {})
    system, state = system_of(func, y0, given.get("norm") == PER_SAMPLE)
    if not (state.is_floating_point() or state.is_complex()):
        raise ValueError(f"y0 has dtype {state.dtype}: give floating-point or complex states")
    name = "dopri5" if method is None else method
    times = t.to("cpu", torch.float64)
    if name == SCIPY:
        return Problem(system, state, times, None, _options(Scipy, given, SCIPY), rtol, atol)
    if name in IN_PARTS:
        raise ValueError(f"method={name!r} takes the parts of a problem, which func has not: call odecore.solve("
                         f"odecore.facade.methods.stepper({name!r}), …) with an odecore.problem.Split or Semilinear")
    found = stepper(name) if isinstance(name, str) else name
    if isinstance(found, Adams) and "max_order" in given:
        found = _of_order(found, given.pop("max_order"))
    fixed = name in FIXED if isinstance(name, str) else found.error_order == 0
    kind: type[FixedGrid | Adaptive] = FixedGrid if fixed else Adaptive
    return Problem(system, state, times, found, _options(kind, given, str(name)), rtol, atol)


Kind = TypeVar("Kind")


def _options(kind: type[Kind], given: dict[str, Any], method: str) -> Kind:
    """Fill in an options object; what it does not know is warned of, as torchdiffeq does."""
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    strange = given.keys() - known - _WITHOUT_MEANING
    if strange:
        warnings.warn(f"method={method!r} has no options {sorted(strange)}: they are ignored; it has {sorted(known)}",
                      stacklevel=4)
    return kind(**{name: value for name, value in given.items() if name in known})


def _of_order(method: Adams, most: int) -> Adams:
    order = min(int(most), HIGHEST_ORDER)
    return adams_bashforth_moulton(order) if method.corrected else adams_bashforth(order)


def _rerouted(
    system: System, margin: Margin, at: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Give event times, and states at them, the gradients of :func:`odeint_event`; their values stay."""
    if not torch.is_grad_enabled():
        return at, state
    t = at.to(state.device)
    y, clock = state.detach().requires_grad_(), t.clone().requires_grad_()
    with torch.no_grad():
        slope = system.field(y, clock)
    value = margin.function(y, clock, margin.signs)
    gradients = torch.autograd.grad(value.sum(), [y, clock], allow_unused=True) if value.requires_grad else (None, None)
    rate = torch.zeros_like(t) if gradients[1] is None else gradients[1]
    if gradients[0] is not None:
        rate = rate + (gradients[0].conj() * slope).real.reshape(len(t), -1).sum(1)
    distance = margin.function(state, t, margin.signs)
    if not distance.requires_grad:
        return at, state
    change = -(distance - distance.detach()) / torch.where(rate == 0, torch.inf, rate)
    column = change.to(slope.real.dtype if slope.is_complex() else slope.dtype)
    return at + change.to(at.device), state + slope * column.reshape(-1, *[1] * (state.ndim - 1))
