"""Choose solver and grid for one model and one number of evaluations, by trying them on that model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from odecore.plan import Plan, Row
from samplers.compile import compile_plan
from samplers.registry import GRIDS, SOLVERS, grid_named, solver_named
from samplers.sample import sample
from samplers.solver import Solver
from scoremodels.model import ScoreModel

REFERENCE = ("dpm-solver++-3m", "log-snr", 128)
"""Solver, grid and evaluations of the solution that candidates are compared with."""

Progress = Callable[[Sequence["Candidate"]], Iterable["Candidate"]]


class Candidate(NamedTuple):
    """A solver on a grid.

    Attributes:
        solver: name of the solver.
        grid: name of the grid.
        plan: what they compile to.
    """

    solver: str
    grid: str
    plan: Plan


def calibrate(
    model: ScoreModel,
    *,
    nfe: int,
    num: int = 32,
    seed: int = 1 << 20,
    solvers: Sequence[str] | None = None,
    grids: Sequence[str] | None = None,
    condition: int | Tensor | None = None,
    batch: int = 64,
    progress: Progress | None = None,
) -> Plan:
    """Run every plain solver on every grid from a few noises, and return the plan that ends nearest to the solution.

    The score is the RMS distance to a converged solution of the same model from the same noises. A quarter of
    the noises screens all candidates; the best eighth of these, at least eight, meets all noises.

    Args:
        model: the model, guidance included.
        nfe: evaluations of the plan.
        num: noises, at least 4.
        seed: seed of the first noise; keep it away from the seeds of whatever is reported.
        solvers: names to try; None for all deterministic ones.
        grids: names to try; None for all.
        condition: a class label, or one for each noise.
        batch: how many samples to compute at once.
        progress: wraps the candidates of the screening.

    Returns:
        The winning plan; ``plan.about["calibration"]`` holds the table of the finalists, and what it cost.

    Raises:
        ValueError: an argument out of range, or no candidate that can spend ``nfe``.

    Cost: ``num · 128`` evaluations for the solution, which is kept as long as the model's weights stay, and
        about ``nfe · num · (candidates/4 + candidates/8)`` for the rest.
    """
    if isinstance(num, bool) or not isinstance(num, int) or num < 4:
        raise ValueError(f"num={num!r}: give a whole number of noises, at least 4")
    candidates = _candidates(model, nfe, solvers, grids)
    labels = None if condition is None else torch.as_tensor(condition).expand(num).clone()
    solution, spent = _solution(model, num, seed, labels, batch)
    few = max(2, num // 4)

    def error(plan: Plan, count: int) -> float:
        part = None if labels is None else labels[:count]
        samples = sample(model, num=count, plan=plan, seed=seed, condition=part, batch=batch).samples
        value = (samples.cpu().double() - solution[:count]).square().mean().sqrt().item()
        return value if math.isfinite(value) else math.inf

    screened = sorted(((error(c.plan, few), c) for c in (candidates if progress is None else progress(candidates))),
                      key=lambda pair: pair[0])
    finalists = [c for _, c in screened[: max(8, len(screened) // 8)]]
    ranked = sorted(((error(c.plan, num), c) for c in finalists), key=lambda pair: pair[0])
    spent += nfe * (few * len(candidates) + num * len(finalists))
    best = ranked[0][1].plan
    table = [{"solver": c.solver, "grid": c.grid, "rms": value} for value, c in ranked]
    about = {**best.about, "calibration": {
        "num": num, "seed": seed, "candidates": len(candidates), "evaluations": spent, "table": table}}
    return replace(best, about=about)


def _candidates(
    model: ScoreModel, nfe: int, solvers: Sequence[str] | None, grids: Sequence[str] | None
) -> list[Candidate]:
    """Every combination that can spend ``nfe``; of those that are the same plan, the first."""
    found: dict[tuple[Row, ...], Candidate] = {}
    for name in _deterministic() if solvers is None else solvers:
        solver = solver_named(name)
        if not isinstance(solver, Solver) or solver.stochastic:
            raise ValueError(f"solvers has {name!r}, which has no plan or adds noise: choose deterministic solvers")
        for grid in GRIDS if grids is None else grids:
            chosen = grid_named(grid)
            try:
                plan = compile_plan(solver, model.schedule, nfe=nfe, grid=chosen, prediction=model.prediction)
            except ValueError:
                continue  # this schedule has no such grid, or the solver cannot spend so few evaluations
            plan = replace(plan, about={**plan.about, "grid": grid})
            found.setdefault(plan.rows, Candidate(name, grid, plan))
    if not found:
        raise ValueError(f"nfe={nfe!r}: none of the solvers can spend that on any of the grids; allow more of either")
    return list(found.values())


def _deterministic() -> list[str]:
    return [name for name, solver in SOLVERS.items() if isinstance(solver, Solver) and not solver.stochastic]


_KEPT: WeakKeyDictionary[ScoreModel, dict[tuple[object, ...], Tensor]] = WeakKeyDictionary()


def _solution(model: ScoreModel, num: int, seed: int, labels: Tensor | None, batch: int) -> tuple[Tensor, int]:
    """The converged end points in float64 on the host, and what they cost now."""
    versions = tuple(p._version for p in model.parameters())
    key = (num, seed, None if labels is None else tuple(labels.tolist()), versions)
    kept = _KEPT.setdefault(model, {})
    if key in kept:
        return kept[key], 0
    solver, grid, nfe = REFERENCE
    result = sample(model, num=num, solver=solver, grid=grid, nfe=nfe, end="clean", seed=seed, condition=labels,
                    batch=batch)
    kept[key] = result.samples.cpu().double()
    return kept[key], num * nfe
