"""Search the times at which a given solver does best on a given model, from a few trajectories of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from odecore.plan import Plan
from samplers.candidates import Candidate, candidates, compiled_on, solver_of
from samplers.converged import REFERENCE
from samplers.counting import counted
from samplers.dynamic_programming import FinePath, best_grids, distinct
from samplers.grids import Times
from samplers.halving import LEAST, Entrant, Progress, Trial, ranked
from samplers.lockstep import start_plan
from samplers.noise import SampleNoise
from samplers.refine import refine
from samplers.sample import sample
from samplers.solver import Solver
from scoremodels.model import ScoreModel

FIRST_MOVES = (0.4, 0.2, 0.1, -0.1, -0.2, -0.4)
"""Moves of log(σ/α) of the first time, tried side by side."""


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number, at least 1")


class Method(Protocol):
    """Where a search begins; the times are then moved to where the samples end nearest."""

    @property
    def rounds(self) -> int:
        """How often the times are moved at most."""

    def starts(self, fine: FinePath, solver: Solver, fixed: Sequence[Plan], batch: int) -> list[Times]:
        """Times to begin from, given the solution and the plans on the fixed grids, the best first."""


@dataclass(frozen=True, slots=True)
class Refinement:
    """Move the times of the best fixed grids.

    Args:
        grids: so many of them, at least 1.
        rounds: how often at most, at least 1.

    Raises:
        ValueError: a number out of range.

    Source: :func:`samplers.refine.refine`.
    """

    grids: int = 3
    rounds: int = 4

    def __post_init__(self) -> None:
        _check(grids=self.grids, rounds=self.rounds)

    def starts(self, fine: FinePath, solver: Solver, fixed: Sequence[Plan], batch: int) -> list[Times]:
        """The times of the best fixed grids."""
        return [_times(plan) for plan in fixed[:self.grids]]


@dataclass(frozen=True, slots=True)
class DynamicProgramming:
    """Compose grids of the times of a finer one by dynamic programming, and move them.

    Args:
        steps: of the finer grid, which is even in log-SNR.
        width: runs that are kept for each time and number of evaluations.
        starts_within: the times at which a run may begin, as a fraction of the steps; 0 for the noisiest alone.
        grids: so many of the best grids are moved, besides the best fixed one.
        rounds: how often at most.

    Raises:
        ValueError: a number out of range.

    Source: :func:`samplers.dynamic_programming.best_grids`.
    """

    steps: int = 32
    width: int = 1
    starts_within: float = 0.25
    grids: int = 2
    rounds: int = 2

    def __post_init__(self) -> None:
        _check(steps=self.steps, width=self.width, grids=self.grids, rounds=self.rounds)
        if not 0.0 <= self.starts_within < 1.0:
            raise ValueError(f"starts_within={self.starts_within!r}: give a fraction of the steps, from 0 up to, but "
                             "not including, 1")

    def starts(self, fine: FinePath, solver: Solver, fixed: Sequence[Plan], batch: int) -> list[Times]:
        """The best fixed grid, and the best others that differ by more than a place."""
        thin = fine.thinned(self.steps)
        found = best_grids(thin, solver, fixed[0].nfe, width=self.width, batch=batch,
                           starts=1 + int(self.starts_within * self.steps))
        return [_times(fixed[0]), *(thin.times[list(grid.places)] for grid in distinct(found, self.grids))]


class _Contender(NamedTuple):
    """A plan that is to be validated, and its RMS distance on the noises of the search."""

    grid: str
    plan: Plan
    rms: float


def search_grid(
    model: ScoreModel,
    *,
    solver: str,
    nfe: int,
    method: Method = DynamicProgramming(),  # noqa: B008 (frozen)
    num: int = 16,
    seed: int = 1 << 21,
    condition: int | Tensor | None = None,
    grids: Sequence[str] | None = None,
    batch: int = 256,
    progress: Progress | None = None,
) -> Plan:
    """Find the times at which a solver's samples end nearest to the solution of the probability-flow ODE.

    One half of the noises finds the times, the other decides whether they are better than the best of the fixed
    grids; if they are not, the plan is that on the fixed grid. A grid may begin below the noisiest time: the state
    there is noise of its scale, as if a first step in closed form had led to it, and costs no evaluation.

    Args:
        model: the model, guidance included.
        solver: name of a deterministic solver, of the registry or :data:`samplers.candidates.VARIANTS`.
        nfe: evaluations of the plan.
        method: :class:`DynamicProgramming` or :class:`Refinement`; the former takes solvers of one evaluation a step.
        num: noises, half of them for the search and half for the validation; an even number, at least 4.
        seed: seed of the first noise; keep it away from the seeds of whatever is reported.
        condition: a class label, or one for each noise.
        grids: names of the fixed grids to compare with; None for all that calibration knows.
        batch: how many states to evaluate at once.
        progress: called with the name of what is done, how much of it is, and of how much.

    Returns:
        The plan; ``plan.about["search"]`` says how it was found, what it cost, and how far it and the best fixed grid
        ended from the solution on the noises of the search and of the validation.

    Raises:
        ValueError: an argument out of range, an unknown name, or a method that the solver does not fit.

    Cost: ``128 num`` evaluations for the solution; ``num / 2`` times about ``50 nfe`` for the fixed grids,
        ``steps · width · nfe`` for dynamic programming and ``18 nfe`` for each round of moving each grid.

    Source: grids by dynamic programming from few trajectories: Chen et al. 2024 (GITS), arXiv:2405.11326; with the
        solver's own state carried: Pei et al. 2025, arXiv:2503.21774.
    """
    if isinstance(num, bool) or not isinstance(num, int) or num < 4 or num % 2:
        raise ValueError(f"num={num!r}: give an even number of noises, at least 4")
    chosen = solver_of(solver)
    on_grids = candidates(model, nfe, [solver], grids)
    if not on_grids:
        raise ValueError(f"nfe={nfe!r}: solver {solver!r} can spend that on none of the grids; allow more of either")
    labels = None if condition is None else torch.as_tensor(condition).expand(num).clone()
    half = num // 2
    with counted(model) as count:
        fine = _solved(model, num, seed, labels, batch)
        ends = fine.states[-1].cpu().double()
        search, validation = (Trial(model, seed + first, ends[first:first + half], part, batch, progress)
                              for first, part in _halves(labels, half))
        fixed = _on_fixed_grids(search, on_grids)
        of_search = replace(fine, states=fine.states[:, :half], noise=fine.noise[:half], labels=search.labels)
        begun = method.starts(of_search, chosen, [contender.plan for contender in fixed], batch)
        moved = [_moved(search, solver, nfe, times, method.rounds) for times in begun]
        searched, best = _nearest(validation, moved), _nearest(validation, fixed[:LEAST])
    improved = searched is not None and best is not None and searched.rms < best.rms
    winner = searched if improved else best
    assert winner is not None and best is not None
    about = {"method": repr(method), "num": num, "seed": seed,
             "improved": improved, "evaluations": count.passes, "fixed": best.grid,
             "validation": {"fixed": best.rms, "searched": None if searched is None else searched.rms},
             "search": {"fixed": fixed[0].rms, "searched": min((one.rms for one in moved), default=None)}}
    return replace(winner.plan, about={**winner.plan.about, "solver": solver, "grid": winner.grid, "search": about})


def _halves(labels: Tensor | None, half: int) -> list[tuple[int, Tensor | None]]:
    """First noise and labels of the search and of the validation."""
    return [(first, None if labels is None else labels[first:first + half]) for first in (0, half)]


def _solved(model: ScoreModel, num: int, seed: int, labels: Tensor | None, batch: int) -> FinePath:
    """Solve from all noises, and keep all states."""
    solver, grid, nfe = REFERENCE
    run = sample(model, num=num, solver=solver, grid=grid, nfe=nfe, end="clean", seed=seed, condition=labels,
                 batch=batch, trajectory=True)
    assert run.trajectory is not None
    noise = SampleNoise(range(seed, seed + num), model.shape, device=model.device)()
    return FinePath(model, run.trajectory.times.numpy(), run.trajectory.states.to(noise), noise, labels)


def _on_fixed_grids(trial: Trial, on_grids: Sequence[Candidate]) -> list[_Contender]:
    """Let the solver meet the noises of the search on all fixed grids; the best first."""
    plans = {c.grid: c.plan for c in on_grids}
    met = [Entrant((grid,), start_plan(trial.model, plan)) for grid, plan in plans.items()]
    trial.run(met, len(trial.solution), "fixed grids")
    return [_Contender(one.name[0], plans[one.name[0]], one.rms) for one in ranked(met)]


def _nearest(trial: Trial, contenders: Sequence[_Contender]) -> _Contender | None:
    """The contender that does best on the noises of a trial, with its distance there."""
    met = [Entrant((str(index),), start_plan(trial.model, one.plan)) for index, one in enumerate(contenders)]
    trial.run(met, len(trial.solution), "validation")
    best = next((one for one in ranked(met) if math.isfinite(one.rms)), None)
    return None if best is None else contenders[int(best.name[0])]._replace(rms=best.rms)


def _moved(trial: Trial, solver: str, nfe: int, times: Times, rounds: int) -> _Contender:
    """Move all times: those between the first and the last by least squares, then the first by trial."""
    def compiled(on: Times) -> Plan:
        return from_noisiest(trial.model, compiled_on(trial.model, solver, nfe, on))

    rms = math.inf
    for _ in range(rounds):
        times = _times(refine(trial, compiled, times, rounds=1).plan)
        before, (times, rms) = rms, _first_moved(trial, compiled, times)
        if rms > 0.99 * before:
            break
    return _Contender("searched", compiled(times), rms)


def _first_moved(trial: Trial, compiled: Callable[[Times], Plan], times: Times) -> tuple[Times, float]:
    """Let a plan begin at other noise levels, and return the best times with their distance."""
    schedule = trial.model.schedule
    ratios = np.exp(FIRST_MOVES) * float(schedule.ratio(times[0]))
    most, least = float(schedule.ratio(schedule.t_max)), float(schedule.ratio(times[1]))
    # The first is as it is, and stays among equals; pure noise has no finite ratio to be moved.
    inside = [times, *(np.array([float(schedule.time_of_ratio(r)), *times[1:]])
                       for r in ratios if least < r < most and math.isfinite(r))]
    distances = [error.square().mean().sqrt().item()
                 for error in trial.errors([start_plan(trial.model, compiled(one)) for one in inside], slice(None))]
    best = min(range(len(inside)), key=lambda index: (not math.isfinite(distances[index]), distances[index]))
    return inside[best], distances[best]


def from_noisiest(model: ScoreModel, plan: Plan) -> Plan:
    """Let a plan that begins at less noise begin at the noisiest time, so that whoever starts there can run it.

    The noise is scaled down to what a state at the plan's first time has: a first step in closed form.
    """
    schedule, t_start = model.schedule, float(plan.t_start)  # type: ignore[arg-type]
    if t_start == float(schedule.t_max):
        return plan
    factor = float(schedule.prior_scale(t_start)) / float(schedule.prior_scale(schedule.t_max))
    return replace(plan, t_start=float(schedule.t_max), exact=None, entry=factor * plan.entry)


def _times(plan: Plan) -> Times:
    return np.asarray(plan.about["times"], dtype=np.float64)
