"""Algebraically reversible coupling of any one-step method: exact gradients without stored states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor
from torch.autograd.function import once_differentiable

from odecore.explicit.tableaus import Tableau
from odecore.plan import combine

Increment = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(t0, t1, y) -> Φ(y) - y`` of a one-step method from t0 to t1, in either direction."""


def reversible(
    increment: Increment,
    y0: Inexact[Tensor, "*shape"],
    times: Sequence[float] | Float[Tensor, " nodes"] | Float[Tensor, "nodes samples"],
    *,
    coupling: float = 0.999,
    parameters: Iterable[Tensor] = (),
) -> Inexact[Tensor, "*shape"]:
    """Integrate on a grid with a scheme that can be run backwards exactly, and differentiate it so.

    With Ψ_h(t, y) the increment of a one-step method, λ the coupling and z_0 = y_0::

        y_{n+1} = λ y_n + (1 - λ) z_n + Ψ_h(t_n, z_n)
        z_{n+1} = z_n - Ψ_{-h}(t_{n+1}, y_{n+1})

    has the order of the method, and an inverse in closed form::

        z_n = z_{n+1} + Ψ_{-h}(t_{n+1}, y_{n+1})
        y_n = (y_{n+1} - (1 - λ) z_n - Ψ_h(t_n, z_n)) / λ

    The backward pass walks through the states by the inverse. Its gradient is that of the scheme,
    up to the rounding of the walk, which grows like λ^{-n} times what the problem itself adds.

    Args:
        increment: Ψ; :func:`runge_kutta_increment` makes one of a tableau.
        y0: initial state.
        times: the grid: numbers, or a tensor, which gets its gradient; with one column a sample if
            the increment takes one time a sample. The increment gets rows of it.
        coupling: λ, above 0 and at most 1. At 1 the difference of y and z is never damped, so that
            decaying solutions are unstable in the long run; the smaller, the more stable the scheme
            and the more rounding in the walk back.
        parameters: every other tensor that the increment reads and that needs a gradient.

    Returns:
        y at the last time, differentiable once.

    Raises:
        ValueError: fewer than two times, or a coupling out of range.

    Cost: two increments a step, and as many with their vector–Jacobian products in the backward
        pass; memory of two states and of what autograd keeps of one increment.

    Source: McCallum & Foster 2024, Efficient, accurate and stable gradients for neural ODEs,
        arXiv:2410.11648; the default coupling is that of their implementation in diffrax.
    """
    grid = times if isinstance(times, Tensor) else torch.tensor(times, dtype=torch.float64)
    if grid.ndim not in (1, 2) or len(grid) < 2:
        raise ValueError(f"times has shape {tuple(grid.shape)}: give two times or more")
    if not 0.0 < coupling <= 1.0:
        raise ValueError(f"coupling={coupling}: give a number above 0 and at most 1")
    extra = tuple({id(p): p for p in parameters if p.requires_grad}.values())
    return _Reversible.apply(increment, coupling, grid, y0, *extra)


def reversible_step(
    increment: Increment, coupling: float, t0: Tensor, t1: Tensor, y: Tensor, z: Tensor
) -> tuple[Tensor, Tensor]:
    """Take one step of the coupled scheme; see :func:`reversible`."""
    after = coupling * y + (1.0 - coupling) * z + increment(t0, t1, z)
    return after, z - increment(t1, t0, after)


def reversible_step_back(
    increment: Increment, coupling: float, t0: Tensor, t1: Tensor, y: Tensor, z: Tensor
) -> tuple[Tensor, Tensor]:
    """Undo :func:`reversible_step`: from the states at t1 to those at t0."""
    before = z + increment(t1, t0, y)
    return (y - (1.0 - coupling) * before - increment(t0, t1, before)) / coupling, before


def runge_kutta_increment(tableau: Tableau, field: Callable[[Tensor, Tensor], Tensor]) -> Increment:
    """Make the increment ``h Σ_i b_i k_i`` of an explicit Runge–Kutta method for ``dy/dt = f(y, t)``.

    Args:
        tableau: the method.
        field: ``field(y, t) -> value``; t is one number, or has one for each sample of y.

    Cost: ``tableau.stages`` evaluations.
    """
    def increment(t0: Tensor, t1: Tensor, y: Tensor) -> Tensor:
        h = t1 - t0
        length = h.to(y.device, y.dtype.to_real() if y.is_complex() else y.dtype).reshape(-1, *[1] * (y.ndim - 1))
        length = length if h.ndim else length.reshape(())
        slopes: list[Tensor] = []
        for c, a in zip(tableau.c, tableau.a, strict=True):
            point = y + length * combine(a, slopes) if a else y
            slopes.append(field(point, (t0 + c * h).to(y.device)))
        return length * combine(tableau.b, slopes)

    return increment


class _Reversible(torch.autograd.Function):
    """The forward loop, and the walk back along the same states."""

    @staticmethod
    def forward(
        ctx: Any, increment: Increment, coupling: float, times: Tensor, y0: Tensor, *parameters: Tensor
    ) -> Tensor:
        y = z = y0
        for t0, t1 in zip(times[:-1], times[1:], strict=True):
            y, z = reversible_step(increment, coupling, t0, t1, y, z)
        ctx.increment, ctx.coupling, ctx.parameters = increment, coupling, parameters
        ctx.save_for_backward(times, y, z, *parameters)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_y: Tensor) -> tuple[Tensor | None, ...]:
        times, y, z, *_ = ctx.saved_tensors  # raises if a parameter was changed in place
        parameters, coupling = ctx.parameters, ctx.coupling
        to_z = torch.zeros_like(to_y)
        totals: list[Tensor | None] = [None] * len(parameters)
        to_times = torch.zeros_like(times)
        for n in range(len(times) - 2, -1, -1):
            # z_{n+1} = z_n - Ψ_{-h}(y_{n+1})
            value, to_end, to_start, to_point, gradients = _pull_back(ctx.increment, times[n + 1], times[n], y, -to_z,
                                                                      parameters)
            z = z + value
            to_y = to_y + to_point
            totals = list(map(_add, totals, gradients))
            to_times[n + 1] += to_end
            to_times[n] += to_start
            # y_{n+1} = λ y_n + (1 - λ) z_n + Ψ_h(z_n)
            value, to_start, to_end, to_point, gradients = _pull_back(ctx.increment, times[n], times[n + 1], z, to_y,
                                                                      parameters)
            y = (y - (1.0 - coupling) * z - value) / coupling
            to_z = to_z + (1.0 - coupling) * to_y + to_point
            to_y = coupling * to_y
            totals = list(map(_add, totals, gradients))
            to_times[n + 1] += to_end
            to_times[n] += to_start
        return (None, None, to_times, to_y + to_z, *totals)


def _pull_back(
    increment: Increment, t0: Tensor, t1: Tensor, y: Tensor, cotangent: Tensor, parameters: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor | None]]:
    """The increment's value, and the cotangent times its Jacobians: to t0, t1, y and the parameters."""
    with torch.enable_grad():
        start, end, point = (x.detach().requires_grad_() for x in (t0, t1, y))
        value = increment(start, end, point)
    inputs = (start, end, point, *parameters)
    gradients: list[Tensor | None] = [None] * len(inputs)
    if value.requires_grad:
        gradients = list(torch.autograd.grad(value, inputs, cotangent, allow_unused=True))
    to_start, to_end, to_point = (torch.zeros_like(x) if g is None else g
                                  for x, g in zip(inputs[:3], gradients[:3], strict=True))
    return value.detach(), to_start, to_end, to_point, gradients[3:]


def _add(total: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if total is None else total if new is None else total + new
