"""Roots of ``F(z) = 0`` as differentiable values: gradients by one transposed linear solve."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Inexact
from torch import Tensor
from torch.autograd.function import once_differentiable

from odecore.implicit.jacobian import Inverse, Shifted, Solved
from odecore.implicit.newton import Measure, Root, RootFinder


def root(
    finder: RootFinder,
    residual: Callable[[Tensor], Tensor],
    guess: Inexact[Tensor, "samples ..."],
    *,
    scale: Float[Tensor, "samples ..."] | None = None,
    inverse: Inverse | None = None,
    measure: Measure | None = None,
) -> Root:
    """Solve ``F(z) = 0`` for every sample, differentiably in everything that F reads.

    The iterations leave no trace for autograd. With the root z, the cotangent v and ``J = ∂F/∂z``, the
    gradient with respect to any θ that F depends on, listed nowhere, is::

        uᵀ ∂F/∂θ    with    Jᵀ u = -v

    Complex states count as pairs of real ones, so F need not be holomorphic. The root is
    differentiable once, in reverse and in forward mode (``torch.autograd.forward_ad``); where a sample has
    not converged its gradient means nothing.

    Args:
        finder: the method: ``Newton``, ``Chord``, ``NewtonKrylov``, ``Anderson``.
        residual: F, ``z -> F(z)`` of the shape of z, in which no sample depends on another.
        guess: first iterate, of shape (samples, …).
        scale: sizes that changes of z are compared with, besides z itself; real, not negative, and
            infinite where any change is small.
        inverse: ``Root.inverse`` of a similar system, for ``Chord`` to start with.
        measure: of changes of z, as real vectors, in place of the scale where the finder has no
            tolerance of its own.

    Returns:
        The roots, which samples converged, and counts of evaluations of F.

    Raises:
        ValueError: a guess without samples' axis or of a type that is not floating-point, a residual
            or scale of another shape.
        RuntimeError: in the backward pass, a linear system that could not be solved.

    Cost: that of the finder, and one evaluation if gradients are on; the backward pass takes a Jacobian
        (n evaluations) or Krylov iterations (a vector–Jacobian product each).

    Source: Bai, Kolter & Koltun 2019, Deep equilibrium models, arXiv:1909.01377, theorem 1.
    """
    _check(guess, scale)
    flat = residual
    if guess.ndim != 2 or guess.is_complex():
        flat = _FlatShifted(residual, guess) if isinstance(residual, Shifted) else _Flat(residual, guess)
    start = flatten(guess.detach())
    sizes = torch.zeros_like(start) if scale is None else flatten(scale.detach().abs().to(guess.dtype.to_real()))
    if guess.is_complex() and scale is not None:
        sizes = sizes.repeat_interleave(2, 1)
    with torch.no_grad():
        found = finder.find(flat, start, sizes, inverse, measure)
    z, nfe = found.z.detach(), found.nfe
    if torch.is_grad_enabled():
        value = flat(z)
        # An iteration may end a step away from where F is defined, and there is no gradient there.
        found = found._replace(converged=found.converged & torch.isfinite(value).all(1))
        z, nfe = _Implicit.apply(value, z, partial(finder.linearised, flat, accurate=True)), nfe + 1
    return found._replace(z=unflatten(z, guess), nfe=nfe)


def flatten(state: Inexact[Tensor, "samples ..."]) -> Float[Tensor, "samples n"]:
    """View states as real vectors."""
    return (torch.view_as_real(state) if state.is_complex() else state).reshape(len(state), -1)


def unflatten(vectors: Float[Tensor, "samples n"], like: Inexact[Tensor, "samples ..."]) -> Tensor:
    """View real vectors as states of the shape and kind of ``like``."""
    if like.is_complex():
        return torch.view_as_complex(vectors.reshape(*like.shape, 2).contiguous())
    return vectors.reshape(like.shape)


class _Flat:
    """A function of states as one of real vectors."""

    def __init__(self, function: Callable[[Tensor], Tensor], like: Tensor) -> None:
        self.function, self.like = function, like

    def __call__(self, z: Tensor) -> Tensor:
        value = self.function(unflatten(z, self.like))
        if value.shape != self.like.shape:
            raise ValueError(f"residual returned shape {tuple(value.shape)} for a guess of shape "
                             f"{tuple(self.like.shape)}: they must be the same")
        return flatten(value)


class _FlatShifted(_Flat):
    """The same of a function whose Jacobian is the identity less a multiple of another."""

    @property
    def reach(self) -> Tensor:
        """The multiple, of shape (samples, 1)."""
        assert isinstance(self.function, Shifted)
        return self.function.reach


class _Implicit(torch.autograd.Function):
    """The root z of F as a function of the value of F at z: its derivative is ``-J^{-1}``."""

    @staticmethod
    def forward(
        value: Tensor, z: Tensor, linearised: Callable[[Tensor], tuple[Inverse, int]]
    ) -> Tensor:
        return z.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, _, ctx.linearised = inputs
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        return -_solution(ctx.linearised(z)[0].solve_transposed, cotangent), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        (z,) = ctx.saved_tensors
        return -_solution(ctx.linearised(z.detach())[0].solve, tangent)


def _solution(solve: Callable[[Tensor], Solved], r: Tensor) -> Tensor:
    """Solve a linear system; a sample that nothing is asked of gives nothing, even where its matrix is singular."""
    solved = solve(r)
    worst = solved.residual.max().item() if len(r) else 0.0
    if worst > math.sqrt(torch.finfo(r.dtype).eps):
        raise RuntimeError(f"the linear system of a gradient was solved to a relative residual of {worst:.1e} only: "
                           "raise linear_limit or restart, or use Newton with factorised Jacobians")
    return torch.where((r == 0).all(1, keepdim=True), torch.zeros_like(r), solved.x)


def _check(guess: Tensor, scale: Tensor | None) -> None:
    if guess.ndim < 1 or not (guess.is_floating_point() or guess.is_complex()):
        raise ValueError(f"guess has dtype {guess.dtype} and shape {tuple(guess.shape)}: give floating-point or "
                         "complex values of shape (samples, …)")
    if scale is not None and scale.shape != guess.shape:
        raise ValueError(f"scale has shape {tuple(scale.shape)}: give that of the guess, {tuple(guess.shape)}")
