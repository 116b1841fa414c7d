"""Choose solver and grid for one model and one number of evaluations, by trying them on that model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from odecore.plan import Plan
from samplers.candidates import candidates, grid_names
from samplers.halving import FEW, KEPT, LEAST, Entrant, Progress, Trial, ranked
from samplers.lockstep import Walk, walk_plan
from samplers.sample import sample
from scoremodels.model import ScoreModel

REFERENCE = ("dpm-solver++-3m", "log-snr", 128)
"""Solver, grid and evaluations of the solution that candidates are compared with."""
PROBES = ("log-snr", "karras", "time")
"""Grids that every solver is tried on; the better solvers then meet the other grids."""


def calibrate(
    model: ScoreModel,
    *,
    nfe: int,
    num: int = 32,
    seed: int = 1 << 20,
    solvers: Sequence[str] | None = None,
    grids: Sequence[str] | None = None,
    condition: int | Tensor | None = None,
    batch: int = 256,
    progress: Progress | None = None,
) -> Plan:
    """Run the plain solvers on the grids from a few noises, and return the plan that ends nearest to the solution.

    The score is the RMS distance to a converged solution of the same model, without noise, from the same noises.
    All solvers meet two noises on three grids, the best quarter of the solvers meets them on all others, and then
    ever fewer candidates meet ever more noises, until the last eight have met ``num``.

    Args:
        model: the model, guidance included.
        nfe: evaluations of the plan.
        num: noises, at least 4.
        seed: seed of the first noise; keep it away from the seeds of whatever is reported.
        solvers: names to try, of the registry or :data:`samplers.candidates.VARIANTS`; None for all.
        grids: names to try, of the registry or :data:`samplers.candidates.FURTHER_GRIDS`; None for all.
        condition: a class label, or one for each noise.
        batch: how many states to evaluate at once, those of several candidates together.
        progress: see :data:`samplers.halving.Progress`.

    Returns:
        The winning plan; ``plan.about["calibration"]`` holds the table of the last round, and what it cost.

    Raises:
        ValueError: an argument out of range, or no candidate that can spend ``nfe``.

    Cost: ``num · 128`` evaluations for the solution, which is kept as long as the model's weights stay, so that a
        further ``nfe`` does not pay for it again; about ``1500 nfe`` for the rest.

    Source: successive halving, Jamieson & Talwalkar 2016, arXiv:1502.07943; see :class:`samplers.halving.Trial`.
    """
    if isinstance(num, bool) or not isinstance(num, int) or num < 4:
        raise ValueError(f"num={num!r}: give a whole number of noises, at least 4")
    names = grid_names() if grids is None else list(grids)
    probes = [name for name in names if name in PROBES] or names[:len(PROBES)]
    entrants = _entrants(model, nfe, solvers, probes)
    others = [name for name in names if name not in probes]
    if not entrants:
        raise ValueError(f"nfe={nfe!r}: none of the solvers can spend that on any of the grids; allow more of either")
    labels = None if condition is None else torch.as_tensor(condition).expand(num).clone()
    solution, spent = converged(model, num, seed, labels, batch)
    trial = Trial(model, seed, solution, labels, batch, progress)
    trial.run(entrants, FEW, "solvers")
    if others:
        by_rank = list(dict.fromkeys(entrant.name[0] for entrant in ranked(entrants)))
        further = _entrants(model, nfe, by_rank[:max(LEAST, len(by_rank) // KEPT)], others)
        trial.run(further, FEW, "grids")
        entrants += further
    last = trial.halve(entrants)
    solver, grid = last[0].name
    (best,) = candidates(model, nfe, [solver], [grid])
    about = {"num": num, "seed": seed, "candidates": len(entrants), "evaluations": spent + nfe * trial.states,
             "table": [{"solver": e.name[0], "grid": e.name[1], "rms": e.rms} for e in last]}
    return replace(best.plan, about={**best.plan.about, "solver": solver, "calibration": about})


def _entrants(model: ScoreModel, nfe: int, solvers: Iterable[str] | None, grids: Sequence[str]) -> list[Entrant]:
    return [Entrant((c.solver, c.grid), partial(_start, c.plan, model.schedule.prior_scale(float(c.plan.t_start))))
            for c in candidates(model, nfe, solvers, grids)]


def _start(plan: Plan, scale: float, noise: Tensor) -> Walk:
    return walk_plan(plan, noise * scale)


_SOLUTIONS: WeakKeyDictionary[ScoreModel, dict[tuple[object, ...], Tensor]] = WeakKeyDictionary()


def converged(
    model: ScoreModel, num: int, seed: int, labels: Tensor | None = None, batch: int = 256
) -> tuple[Tensor, int]:
    """The converged end points without noise, in float64 on the host, and how many evaluations they cost now."""
    versions = tuple(p._version for p in model.parameters())
    key = (num, seed, None if labels is None else tuple(labels.tolist()), versions)
    kept = _SOLUTIONS.setdefault(model, {})
    if key in kept:
        return kept[key], 0
    solver, grid, nfe = REFERENCE
    result = sample(model, num=num, solver=solver, grid=grid, nfe=nfe, end="clean", seed=seed, condition=labels,
                    batch=batch)
    kept[key] = result.samples.cpu().double()
    return kept[key], num * nfe
