"""The stages of an implicit Runge–Kutta step: one after the other, or as one coupled system."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from odecore.analysis.trees import square
from odecore.implicit.jacobian import Factors, Inverse, Matrices, Structure, jacobian
from odecore.implicit.newton import Chord, Measure, Root, RootFinder
from odecore.implicit.root import flatten, root, unflatten
from odecore.implicit.tableaus import ImplicitTableau
from odecore.plan import combine
from odecore.stepper import Field, Judge, column, send

_SHARE = 0.001
"""Share of the error that a step may have, that an iteration may leave."""

_ROUNDING = 32
"""Rounding units of the whole state within which its changes are not to be told from none."""


class StepSystem(NamedTuple):
    """A step's problem in real vectors, (samples, n).

    Attributes:
        field: ``(y, c) -> f(y, t0 + c h)``.
        start: y at t0.
        length: h, of shape (samples, 1).
        judge: what errors of y are judged by, if anything.
    """

    field: Callable[[Tensor, float], Tensor]
    start: Tensor
    length: Tensor
    judge: Judge | None

    @classmethod
    def of(cls, field: Field, t0: Tensor, t1: Tensor, y: Tensor, judge: Judge | None = None) -> StepSystem:
        """View a step so."""
        def flat(z: Tensor, c: float) -> Tensor:
            return flatten(field(unflatten(z, y), send(torch.lerp(t0, t1, c), y.device)))

        def judged(error: Tensor, magnitude: Tensor) -> Tensor:
            assert judge is not None
            return judge(unflatten(error, y), unflatten(magnitude, y).abs())

        start = flatten(y)
        return cls(flat, start, column(t1 - t0, start), None if judge is None else judged)

    def at(self, c: float) -> Callable[[Tensor], Tensor]:
        """The field at one time of the step."""
        return lambda y: self.field(y, c)


class Stages(NamedTuple):
    """Solved stages.

    Attributes:
        slopes: one a stage, each of shape (samples, n).
        converged: which samples' are.
        newton: iterations, summed over the stages.
        krylov: likewise.
        nfe: evaluations of the field.
        inverse: of the last stage's Jacobian, or of the coupled system's.
    """

    slopes: tuple[Tensor, ...]
    converged: Tensor
    newton: int
    krylov: int
    nfe: int
    inverse: Inverse | None


def solve_stages(
    tableau: ImplicitTableau, solver: RootFinder, system: StepSystem, latest: Float[Tensor, "samples n"], *, known: bool
) -> Stages:
    """Find the slopes of all stages.

    Args:
        tableau: the method.
        solver: what solves the stages.
        system: the step's problem.
        latest: the slope that was found last, to start from.
        known: whether it is the first stage.
    """
    slopes: tuple[Tensor, ...] = (latest,) if known else ()
    if tableau.explicit_first and not known:
        slopes = (system.field(system.start, 0.0),)
    nfe = len(slopes) - int(known)
    converged = torch.ones(len(latest), dtype=torch.bool, device=latest.device)
    before = Stages(slopes, converged, 0, 0, nfe, None)
    return (_one_by_one if tableau.diagonal else _together)(tableau, solver, system, latest, before)


def _one_by_one(
    tableau: ImplicitTableau, solver: RootFinder, system: StepSystem, latest: Tensor, stages: Stages
) -> Stages:
    diagonal = 0.0
    for i in range(len(stages.slopes), tableau.stages):
        before, diagonal = diagonal, tableau.a[i][i]
        base = _moved(system, tableau.a[i][:i], stages.slopes)
        if diagonal == 0.0:
            slope = system.field(base, tableau.c[i])
            stages = stages._replace(slopes=(*stages.slopes, slope), nfe=stages.nfe + 1)
            continue
        guess = stages.slopes[-1] if stages.slopes else latest
        found = solve_slope(solver, system.at(tableau.c[i]), base, diagonal * system.length, guess,
                            system.start.abs(), stages.inverse if diagonal == before else None, system.judge)
        stages = Stages((*stages.slopes, found.z), stages.converged & found.converged, stages.newton + found.newton,
                        stages.krylov + found.krylov, stages.nfe + found.nfe, found.inverse)
    return stages


def solve_slope(
    solver: RootFinder, field: Callable[[Tensor], Tensor], base: Tensor, reach: Tensor, guess: Tensor, size: Tensor,
    inverse: Inverse | None, judge: Judge | None = None,
) -> Root:
    """Solve ``k = f(base + reach k)`` for the slope k of one stage, of states of any shape.

    Args:
        solver: what solves it.
        field: f at the stage's time.
        base: what the stage knows.
        reach: h γ, broadcasting over the state.
        guess: of the slope.
        size: of the state; changes of ``reach k`` are compared with it.
        inverse: of a similar stage, to start with.
        judge: what errors of the state are judged by, if anything.
    """
    return root(solver, _Stage(field, base, reach), guess, scale=size / reach.abs(), inverse=inverse,
                measure=None if judge is None else noticed(judge, size, reach, guess))


@dataclass(frozen=True, slots=True)
class _Stage:
    """``k - f(base + reach k)``."""

    field: Callable[[Tensor], Tensor]
    base: Tensor
    length: Tensor

    def __call__(self, k: Tensor) -> Tensor:
        return k - self.field(self.base + self.length * k)

    @property
    def reach(self) -> Float[Tensor, "samples 1"]:
        """The factor h γ of the field's Jacobian."""
        reach = self.length.detach().reshape(-1, 1)
        return reach.real if reach.is_complex() else reach


def noticed(judge: Judge, size: Tensor, reach: Tensor, like: Tensor) -> Measure:
    """What a driver sees of changes δ of a slope z like ``like``: ``judge(hγ δ, |y|)``, but for rounding."""
    def measure(change: Tensor, z: Tensor) -> Tensor:
        move, there = reach * unflatten(change, like), torch.maximum(size, (reach * unflatten(z, like)).abs())
        rounding = _ROUNDING * torch.finfo(there.dtype).eps * flatten(there).square().mean(1).sqrt()
        return judge(torch.where(move.abs() <= column(rounding, there), 0.0, move), size) / _SHARE

    return measure


def _together(
    tableau: ImplicitTableau, solver: RootFinder, system: StepSystem, latest: Tensor, stages: Stages
) -> Stages:
    first = len(stages.slopes)
    coupled = Coupled(system, [_moved(system, row[:first], stages.slopes) for row in tableau.a[first:]],
                      [row[first:] for row in tableau.a[first:]], tableau.c[first:])
    count = tableau.stages - first
    scale = system.start.abs() / (damping(tableau) * system.length.abs())
    measure, inverse, cost = None, None, 0
    if isinstance(solver, Chord):
        # One Jacobian for all stages; where that is too far off, the iteration asks for those of the stages.
        blocks = jacobian(solver.jacobian, system.at(0.0), system.start)
        inverse, cost = Factors.of(coupled.linearised(blocks.values.unsqueeze(1).expand(-1, count, -1, -1))), blocks.nfe
    if system.judge is not None:
        each = noticed(system.judge, system.start.abs(), damping(tableau) * system.length, latest)

        def measure(change: Tensor, z: Tensor) -> Tensor:
            parts = zip(change.chunk(count, 1), z.chunk(count, 1), strict=True)
            return torch.stack([each(*part) for part in parts]).amax(0)

    found = root(solver, coupled, latest.repeat(1, count), scale=scale.repeat(1, count), inverse=inverse,
                 measure=measure)
    slopes = found.z.unflatten(1, (count, -1)).unbind(1)
    return Stages((*stages.slopes, *slopes), found.converged, found.newton, found.krylov,
                  stages.nfe + cost + count * found.nfe, found.inverse)


def _moved(system: StepSystem, weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    return system.start + system.length * combine(weights, slopes) if any(weights) else system.start


@dataclass(frozen=True, slots=True)
class Coupled:
    """``K_i - f(base_i + h Σ_j a_ij K_j)`` for all stages, as vectors of shape (samples, stages · n).

    Args:
        system: the step's problem.
        base: what stages start from, one tensor a stage.
        a: weights of the stages in each other.
        c: stage times.
    """

    system: StepSystem
    base: Sequence[Tensor]
    a: Sequence[Sequence[float]]
    c: Sequence[float]

    def __call__(self, z: Float[Tensor, "samples unknowns"]) -> Tensor:
        """The residual."""
        return z - self._field(self._points(z)).flatten(1)

    def jacobian(self, structure: Structure, z: Float[Tensor, "samples unknowns"]) -> Matrices:
        """``I - h a_ij J_i`` in blocks, by the Jacobians of the field at all stages at once."""
        points = self._points(z)
        samples, count, n = points.shape
        blocks = structure(lambda y: self._field(y.reshape(points.shape)).flatten(0, 1), points.flatten(0, 1))
        return Matrices(self.linearised(blocks.values.reshape(samples, count, n, n)), blocks.nfe)

    def linearised(self, blocks: Float[Tensor, "samples stages n n"]) -> Float[Tensor, "samples unknowns unknowns"]:
        """``I - h a_ij J_i`` in blocks."""
        samples, count, n, _ = blocks.shape
        weights = send(torch.tensor(self.a, dtype=blocks.dtype), blocks.device) * self.system.length.unsqueeze(2)
        coupled = torch.einsum("sij,sipq->sipjq", weights, blocks).reshape(samples, count * n, count * n)
        return _identity(coupled) - coupled

    def _points(self, z: Tensor) -> Tensor:
        slopes = z.unflatten(1, (len(self.c), -1)).unbind(1)
        return torch.stack([base + self.system.length * combine(row, slopes)
                            for base, row in zip(self.base, self.a, strict=True)], 1)

    def _field(self, points: Tensor) -> Tensor:
        return torch.stack([self.system.field(y, c) for y, c in zip(points.unbind(1), self.c, strict=True)], 1)


class Damped(NamedTuple):
    """A filtered error estimate, of shape (samples, n), and what it cost."""

    x: Tensor
    krylov: int
    nfe: int


def damped_error(
    tableau: ImplicitTableau, solver: RootFinder, system: StepSystem, stages: Stages, error: Float[Tensor, "samples n"]
) -> Damped:
    """Apply ``(I - h γ J)^{-1}``, with J of the last stage or, for coupled ones, of the first or the start."""
    inverse, cost = stages.inverse, 0
    if inverse is None:
        return Damped(error, 0, 0)
    first, n = int(tableau.explicit_first), error.shape[1]
    if tableau.diagonal:
        pass
    elif isinstance(inverse, Factors) and tableau.a[first][first]:
        block = inverse.matrices[:, :n, :n]
        identity = _identity(block)
        inverse = Factors.of(identity + damping(tableau) / tableau.a[first][first] * (block - identity))
    else:
        reach = damping(tableau) * system.length
        inverse, cost = solver.linearised(lambda y: y - reach * system.field(y, 0.0), system.start)
    solved = inverse.solve(error)
    return Damped(solved.x, solved.krylov, cost + solved.krylov)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)


@cache
def damping(tableau: ImplicitTableau) -> float:
    """The γ by which a coupled method's error is filtered: A's real eigenvalue, else the mean size of all.

    Explicit stages do not count.
    """
    matrix = square(tableau.a)
    eigenvalues = np.linalg.eigvals(matrix[int(tableau.explicit_first):, int(tableau.explicit_first):])
    real = eigenvalues.real[abs(eigenvalues.imag) < 1e-12]
    return float(real[0] if len(real) else np.prod(np.abs(eigenvalues)) ** (1 / len(eigenvalues)))
