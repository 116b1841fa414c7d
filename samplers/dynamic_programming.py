"""Grids by dynamic programming: for each number of evaluations and each time, the runs nearest to the solution.

A solver walks from time to time of a fine grid on which the solution is known. Its states carry what it has seen, so
that a multistep method is searched with its own history, and the last step is judged by where the samples end.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from odecore.plan import Registers, Row
from samplers.grids import Times
from samplers.lockstep import Walk, run_together
from samplers.solver import Path, Solver
from scoremodels.model import ScoreModel


@dataclass(frozen=True, slots=True)
class FinePath:
    """The solution at the times that a grid may be made of.

    Args:
        model: the model.
        times: decreasing, from the noisiest to the end, of shape (N + 1,).
        states: of shape (N + 1, noises, …), from standard normal noise times the prior's scale.
        noise: that noise, of shape (noises, …).
        labels: one label a noise, or None.
    """

    model: ScoreModel
    times: Times
    states: Tensor
    noise: Tensor
    labels: Tensor | None = None

    def thinned(self, steps: int) -> FinePath:
        """Keep about so many steps, the first and the last time among theirs."""
        places = np.unique(np.linspace(0, len(self.times) - 1, steps + 1).round().astype(int))
        return replace(self, times=self.times[places], states=self.states[torch.from_numpy(places)])


class Found(NamedTuple):
    """A grid and how far its samples end from the solution.

    Attributes:
        places: indices of its times in those of the fine path.
        rms: root of the mean square of the distance.
    """

    places: tuple[int, ...]
    rms: float


class _Branch(NamedTuple):
    """A run that has come as far as the last of its places; its registers are those of :class:`Registers`."""

    places: tuple[int, ...]
    anchor: Tensor
    point: Tensor
    predictions: Sequence[Tensor]


@torch.no_grad()
def best_grids(
    fine: FinePath, solver: Solver, nfe: int, *, width: int = 2, starts: int = 1, batch: int = 256
) -> list[Found]:
    """Find grids of ``nfe`` steps over the times of a fine path whose samples end nearest to its last states.

    With ``X_k(j)`` the ``width`` best runs that reach time ``t_j`` after k evaluations,

        X_{k+1}(j) = the best of { step(x, t_i → t_j) : x in X_k(i), i < j } by |x - solution(t_j)|.

    Runs are only compared where they have come to the same time, so distances at different noise levels need no
    weights. With width 1 this is one pass over pairs of times; a width no less than the number of grids is
    exhaustive search.

    Args:
        fine: the solution.
        solver: takes one evaluation a step.
        nfe: evaluations, at least ``solver.least_nfe``.
        width: runs that are kept for each time.
        starts: runs begin at the first so many times, from noise of the scale there.
        batch: how many states to evaluate at once.

    Returns:
        All grids that came to the end, the best first; at most ``width`` times the number of times.

    Raises:
        ValueError: a solver that takes several evaluations a step, or too few times.

    Cost: ``nfe · N · width`` evaluations from each noise at most, and the memory of the registers of ``N · width``
        runs; on the host ``nfe · width · N² / 2`` compilations.

    Source: Pei et al. 2025 (optimal stepsizes), arXiv:2503.21774, who keep one run and distil a one-step method.
    """
    last = len(fine.times) - 1
    if last - (starts - 1) < nfe:
        raise ValueError(f"nfe={nfe}: the fine path has {last} steps from its first time and begins at {starts} of "
                         "them: give it more")
    example = _built(fine, solver, nfe, tuple(range(nfe)) + (last,))
    depth = max(0, *(max(len(row.anchor), len(row.point)) - 3 for row in example))
    scale = fine.model.schedule.prior_scale
    branches = []
    for place in range(starts):
        x = fine.noise * scale(float(fine.times[place]))
        branches.append(_Branch((place,), x, x, ()))
    for k in range(nfe):
        asked = [_ask(branch.point, float(fine.times[branch.places[-1]])) for branch in branches]
        raws = run_together(fine.model, asked, fine.labels, states=len(fine.noise), batch=batch)
        best = _stepped(fine, solver, nfe, branches, raws, depth, width)
        if k == nfe - 1:
            return sorted((Found(branch.places, -rms) for rms, _, branch in best[last]), key=lambda found: found.rms)
        branches = [branch for place in sorted(best) for _, _, branch in sorted(best[place], reverse=True)]
    raise AssertionError("nfe is positive")


def distinct(grids: Sequence[Found], most: int) -> list[Found]:
    """The first ``most`` grids that differ from all before by more than one place somewhere."""
    kept: list[Found] = []
    for found in grids:
        apart = all(max(abs(a - b) for a, b in zip(found.places, other.places, strict=True)) > 1 for other in kept)
        if apart and len(kept) < most:
            kept.append(found)
    return kept


def _stepped(
    fine: FinePath, solver: Solver, nfe: int, branches: Sequence[_Branch], raws: Sequence[Tensor], depth: int,
    width: int,
) -> dict[int, list[tuple[float, int, _Branch]]]:
    """Step from each branch to each later time; by time, the nearest ones as (-RMS, tie-break, branch)."""
    last, done = len(fine.times) - 1, len(branches[0].places)
    final = done == nfe
    best: dict[int, list[tuple[float, int, _Branch]]] = {}
    ticket = count(0, -1)  # among equals the first stays
    for branch, raw in zip(branches, raws, strict=True):
        nearest = last if final else branch.places[-1] + 1
        for place in range(nearest, last - (nfe - done) + 1):
            row = _row(fine, solver, nfe, (*branch.places, place))
            registers = Registers(branch.anchor, depth, reuse=False)
            registers.point, registers.predictions = branch.point, branch.predictions
            registers.advance(row, raw)
            reached = registers.anchor if final else registers.point
            rms = (reached - fine.states[place]).square().mean().sqrt().item()
            heap = best.setdefault(place, [])
            entry = (-rms, next(ticket), _Branch((*branch.places, place), registers.anchor, registers.point,
                                                 registers.predictions))
            keep = len(fine.times) * width if final else width
            if len(heap) < keep:
                heapq.heappush(heap, entry)
            elif rms == rms:
                heapq.heappushpop(heap, entry)
    return best


def _row(fine: FinePath, solver: Solver, nfe: int, places: tuple[int, ...]) -> Row:
    """The row that steps to the last of the places: it does not depend on the times after that."""
    done, last = len(places), len(fine.times) - 1
    return _built(fine, solver, nfe, (*places, *range(last + done - nfe, last + 1)))[done - 2]


def _built(fine: FinePath, solver: Solver, nfe: int, places: tuple[int, ...]) -> tuple[Row, ...]:
    times = fine.times[list(places)]
    try:
        rows, _ = solver.build(Path(fine.model.schedule, fine.model.prediction, times, float(times[-1])), nfe)
    except ValueError as error:
        raise ValueError(f"solver={solver.name!r} takes several evaluations a step: search its grid by "
                         f"method=Refinement() ({error})") from error
    return rows


def _ask(point: Tensor, t: float) -> Walk:
    """A walk of one evaluation, whose end is the raw prediction."""
    return (yield point, t)
