"""Continuous adjoint: gradients by solving another differential equation backwards in time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Inexact
from torch import Tensor
from torch.autograd.function import once_differentiable

from odecore.driver.solve import solve
from odecore.gradients.adjoint import check_whole
from odecore.stepper import Stepper, column


class _Problem(NamedTuple):
    """What the forward and the backward solves share."""

    stepper: Stepper
    field: Callable[..., Tensor]
    rtol: float
    atol: float
    adjoint_rtol: float
    adjoint_atol: float
    seminorm: bool
    options: dict[str, Any]


def backsolve(
    stepper: Stepper,
    field: Callable[..., Tensor],
    y0: Inexact[Tensor, "samples ..."],
    times: Sequence[float] | Float[Tensor, " nodes"] | Float[Tensor, "nodes samples"],
    *,
    rtol: float,
    atol: float,
    args: tuple[Tensor, ...] = (),
    parameters: Iterable[Tensor] = (),
    seminorm: bool = True,
    adjoint_rtol: float | None = None,
    adjoint_atol: float | None = None,
    **options: Any,
) -> Inexact[Tensor, "nodes samples ..."]:
    """Integrate through observation times; differentiate by the adjoint equation.

    With a the gradient of a loss with respect to the state at time t::

        da/dt = -(∂f/∂y)ᵀ a        dL/dθ = ∫_{t_0}^{t_N} (∂f/∂θ)ᵀ a dt        dL/dt_k = g_k · f(y_k, t_k)

    where a jumps by the gradient g_k of the loss with respect to y_k at each observation. The
    state is integrated backwards along with a, and starts afresh from the stored y_k at each
    observation. The gradient is that of the exact flow: it differs from the gradient of what was
    computed by errors of the size of the tolerances. :mod:`odecore.gradients.adjoint` has none.

    Args:
        stepper: the method, of both solves.
        field: ``field(y, t, *args) -> value``, t of shape (samples,); samples must not mix.
        y0: initial states of shape (samples, …), of float32 or more.
        times: start and observation times, for all samples or one column a sample; in either
            direction; a tensor gets its gradient.
        rtol: relative tolerance.
        atol: absolute tolerance.
        args: tensors with one row a sample for the field; those that require it get a gradient.
        parameters: what else needs a gradient.
        seminorm: leave the gradients of parameters and arguments out of the error norm of the
            backward solve. They are plain integrals, which feed no error back.
        adjoint_rtol: relative tolerance of the backward solve; None for ``rtol``.
        adjoint_atol: absolute tolerance of the backward solve; None for ``atol``.
        options: further arguments of :func:`~odecore.driver.solve.solve` for both solves; ``norm`` for the
            forward one alone.

    Returns:
        The states at all ``times``, the first being y0; differentiable once.

    Raises:
        ValueError: wrong times, half precision, an event, a watch or ``partial``, or as ``solve``.
        SolveError: some samples failed; in the backward pass too.

    Cost: the solve; backward another of a state of twice the size plus that of the parameters, all
        samples with common steps, each stage one evaluation and one vector–Jacobian product. Memory:
        the states at the observations, whatever the number of steps.

    Source: Chen et al. 2018, arXiv:1806.07366; seminorm: Kidger, Chen & Lyons 2021, "Hey, that's not
        an ODE", arXiv:2009.09457.
    """
    if y0.dtype in (torch.float16, torch.bfloat16):
        raise ValueError(f"y0 has dtype {y0.dtype}: give float32 or more, since errors add up backwards")
    check_whole(options, "odecore.facade.odeint.odeint_event with odeint_adjoint, or autograd through odecore.solve")
    grid = times if isinstance(times, Tensor) else torch.tensor(times, dtype=torch.float64)
    if grid.ndim not in (1, 2) or len(grid) < 2 or (grid.ndim == 2 and grid.shape[1] != len(y0)):
        raise ValueError(f"times has shape {tuple(grid.shape)}: give two times or more, alone or in {len(y0)} columns")
    nodes = grid.double().cpu().reshape(len(grid), -1).expand(-1, len(y0))
    problem = _Problem(stepper, field, rtol, atol, rtol if adjoint_rtol is None else adjoint_rtol,
                       atol if adjoint_atol is None else adjoint_atol, seminorm, options)
    extra = tuple({id(p): p for p in parameters if p.requires_grad}.values())
    return _Backsolve.apply(problem, len(args), nodes, y0, *args, *extra)


class _Backsolve(torch.autograd.Function):
    """The forward solve, and the adjoint equation in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, problem: _Problem, arguments: int, nodes: Tensor, y0: Tensor, *tensors: Tensor
    ) -> Tensor:
        args, y, states = tensors[:arguments], y0, [y0]
        for begin, end in zip(nodes[:-1], nodes[1:], strict=True):
            y = solve(problem.stepper, problem.field, y, begin, end, rtol=problem.rtol, atol=problem.atol, args=args,
                      **problem.options).y
            states.append(y)
        result = torch.stack(states)
        ctx.problem, ctx.arguments = problem, arguments
        ctx.save_for_backward(nodes, result, *tensors)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangents: Tensor) -> tuple[Tensor | None, ...]:
        nodes, states, *tensors = ctx.saved_tensors
        problem, args = ctx.problem, tuple(tensors[: ctx.arguments])
        wanted = tuple(t for t in tensors if t.requires_grad)
        to_nodes = torch.zeros_like(nodes)
        adjoint = cotangents[-1]
        integral = torch.zeros(sum(map(_real_size, wanted)), dtype=_real(states.dtype), device=states.device)
        for k in range(len(nodes) - 1, 0, -1):
            if ctx.needs_input_grad[2]:
                to_nodes[k] += _inner(cotangents[k], problem.field(states[k], _on(nodes[k], states), *args))
            adjoint, integral = _one_interval(problem, nodes[k], nodes[k - 1], states[k], adjoint, integral, args,
                                              wanted)
            if k > 1:
                adjoint = adjoint + cotangents[k - 1]
        if ctx.needs_input_grad[2]:
            to_nodes[0] = -_inner(adjoint, problem.field(states[0], _on(nodes[0], states), *args))
        by_tensor = dict(zip(map(id, wanted), _split(integral, wanted), strict=True))
        gradients = [by_tensor.get(id(t)) for t in tensors]
        return (None, None, to_nodes, adjoint + cotangents[0], *gradients)


def _one_interval(
    problem: _Problem, begin: Tensor, end: Tensor, y: Tensor, adjoint: Tensor, integral: Tensor,
    args: tuple[Tensor, ...], wanted: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """Carry the adjoint and the integral of the gradients from one observation to the one before it.

    All samples go together, as one sample of the driver, since they share the parameters; the
    clock s of that sample runs from 0 to 1 while the time of each runs from its begin to its end.
    """
    length = end - begin
    size = _real_size(y)
    begins, ends = _on(begin, y), _on(end, y)

    def field(packed: Tensor, s: Tensor) -> Tensor:
        point, covector = _unpack(packed[0, :size], y), _unpack(packed[0, size:2 * size], y)
        t = torch.lerp(begins, ends, s[0])
        slope, gradients = _pull_back(problem.field, point, t, covector * column(length, y), args, wanted)
        rates = [_pack(slope * column(length, y)), *(-_pack(g).to(packed.dtype) for g in gradients)]
        return torch.cat(rates).unsqueeze(0)

    def norm(error: Tensor, magnitude: Tensor, rtol: float, atol: float) -> Tensor:
        parts = [slice(0, size), slice(size, 2 * size)]
        if not problem.seminorm and integral.numel():
            parts.append(slice(2 * size, None))
        scaled = error / (atol + rtol * magnitude)
        scaled = torch.where(error == 0, torch.zeros_like(scaled), scaled)  # 0 / 0 with atol = 0
        return torch.stack([scaled[:, part].square().mean(1).sqrt() for part in parts]).amax(0)

    start = torch.cat([_pack(y), _pack(adjoint), integral]).unsqueeze(0)
    options = _in_clock({**problem.options, "norm": norm}, length)
    ended = solve(problem.stepper, field, start, 0.0, 1.0, rtol=problem.adjoint_rtol, atol=problem.adjoint_atol,
                  **options).y[0]
    return _unpack(ended[size:2 * size], y), ended[2 * size:]


def _pull_back(
    field: Callable[..., Tensor], y: Tensor, t: Tensor, cotangent: Tensor, args: tuple[Tensor, ...],
    wanted: tuple[Tensor, ...],
) -> tuple[Tensor, list[Tensor]]:
    """The field, and the cotangent times its Jacobians with respect to y and to what is wanted."""
    with torch.enable_grad():
        point = y.detach().requires_grad_()
        slope = field(point, t, *args)
    gradients: Sequence[Tensor | None] = [None] * (1 + len(wanted))
    if slope.requires_grad:
        gradients = torch.autograd.grad(slope, [point, *wanted], cotangent, allow_unused=True)
    return slope.detach(), [torch.zeros_like(x) if g is None else g
                            for x, g in zip((point, *wanted), gradients, strict=True)]


def _in_clock(options: dict[str, Any], length: Tensor) -> dict[str, Any]:
    """Turn the first step's length from units of time into units of the backward clock."""
    longest = float(length.abs().max())
    if options.get("first_step") is None or longest == 0.0:
        return options
    return {**options, "first_step": min(options["first_step"] / longest, 1.0)}


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Real inner product of each sample, float64 on the host."""
    return (a.conj() * b).real.reshape(len(a), -1).sum(1).double().cpu()


def _on(t: Tensor, like: Tensor) -> Tensor:
    return t.to(like.device)


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def _real_size(tensor: Tensor) -> int:
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def _pack(tensor: Tensor) -> Tensor:
    """Write a tensor as a vector of real numbers."""
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).reshape(-1)


def _unpack(vector: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`_pack`."""
    if like.is_complex():
        return torch.view_as_complex(vector.reshape(*like.shape, 2).to(like.dtype.to_real()))
    return vector.reshape(like.shape).to(like.dtype)


def _split(vector: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    pieces = vector.split([_real_size(t) for t in tensors]) if tensors else ()
    return [_unpack(piece, tensor) for piece, tensor in zip(pieces, tensors, strict=True)]
