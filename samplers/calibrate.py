"""Choose solver and grid for one model and one number of evaluations, by trying them on that model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odecore.plan import Plan
from samplers.candidates import candidates, compiled_on, grid_names
from samplers.converged import converged
from samplers.halving import LEAST, Entrant, Progress, Trial, ranked
from samplers.lockstep import start_plan
from samplers.refine import refine
from scoremodels.model import ScoreModel

FIRST = 1
"""Noises of the first round, in which all candidates take part."""
PROBES = ("log-snr", "log-snr:early", "karras", "time", "time:shift-3:early")
"""Grids that every solver is tried on; the best solvers then meet the other grids."""
MOVED, FEW = 4, 8
"""So many solvers have their times moved by a few noises, before the best of them has them moved by all."""


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
    rounds: int = 2,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Run the plain solvers on the grids from a few noises, and return the plan that ends nearest to the solution.

    The score is the RMS distance to a converged solution of the same model, without noise, from the same noises.
    All solvers meet one noise on a few grids, the best eight solvers meet it on all others, and then ever fewer
    candidates meet ever more noises, until the last eight have met ``num``. At last the times of the best ones are
    moved to where they do best, see :func:`samplers.refine.refine`.

    Args:
        model: the model, guidance included.
        nfe: evaluations of the plan.
        num: noises, at least 4.
        seed: seed of the first noise; keep it away from the seeds of whatever is reported.
        solvers: names to try, of the registry or :data:`samplers.candidates.VARIANTS`; None for all.
        grids: names to try, of the registry or :data:`samplers.candidates.FURTHER_GRIDS`; None for all.
        condition: a class label, or one for each noise.
        batch: how many states to evaluate at once, those of several candidates together.
        rounds: how often to move the times at most; 0 to stay on the grid of that name.
        cache: folder in which the solution is kept for the next calibration; None for memory alone.
        progress: see :data:`samplers.halving.Progress`.

    Returns:
        The winning plan; ``plan.about["calibration"]`` holds the table of the last round, by what fraction moving
        the times has lowered the distance since, and what all that cost.

    Raises:
        ValueError: an argument out of range, or no candidate that can spend ``nfe``.

    Cost: ``128 num`` evaluations for the solution, if it is not kept; about ``(1100 + 40 num) nfe`` for the rest.

    Source: successive halving, Jamieson & Talwalkar 2016, arXiv:1502.07943; see :class:`samplers.halving.Trial`.
    """
    if isinstance(num, bool) or not isinstance(num, int) or num < 4:
        raise ValueError(f"num={num!r}: give a whole number of noises, at least 4")
    names = grid_names() if grids is None else list(grids)
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise ValueError(f"rounds={rounds!r}: give a whole number of rounds, 0 or more")
    probes = [name for name in names if name in PROBES] or names[:len(PROBES)]
    entrants = _entrants(model, nfe, solvers, probes)
    others = [name for name in names if name not in probes]
    if not entrants:
        raise ValueError(f"nfe={nfe!r}: none of the solvers can spend that on any of the grids; allow more of either")
    labels = None if condition is None else torch.as_tensor(condition).expand(num).clone()
    solution, spent = converged(model, num, seed, labels, batch, cache)
    trial = Trial(model, seed, solution, labels, batch, progress)
    trial.run(entrants, FIRST, "solvers")
    if others:
        by_rank = list(dict.fromkeys(entrant.name[0] for entrant in ranked(entrants)))
        further = _entrants(model, nfe, by_rank[:LEAST], others)
        trial.run(further, FIRST, "grids")
        entrants += further
    last = trial.halve(entrants)
    plan, gain, grid = _moved(trial, nfe, last, rounds)
    about = {"num": num, "seed": seed, "candidates": len(entrants), "evaluations": spent + nfe * trial.states,
             "table": [{"solver": e.name[0], "grid": e.name[1], "rms": e.rms} for e in last],
             "rms": (1.0 - gain) * last[0].rms, "gain": gain}
    return replace(plan, about={**plan.about, "grid": grid, "calibration": about})


def _moved(trial: Trial, nfe: int, last: Sequence[Entrant], rounds: int) -> tuple[Plan, float, str]:
    """Move the times of the best; return the plan, by what fraction that betters the first, and name its grid."""
    num, model = len(trial.solution), trial.model
    best = _named(model, nfe, last[0])
    if rounds == 0:
        return best, 0.0, last[0].name[1]
    of_each_solver = list({entrant.name[0]: entrant for entrant in reversed(last)}.values())
    tried = []
    for entrant in sorted(of_each_solver, key=lambda entrant: entrant.rms)[:MOVED]:
        compiled = partial(compiled_on, model, entrant.name[0], nfe)
        times = np.asarray(_named(model, nfe, entrant).about["times"])
        found = refine(trial, compiled, times, rounds=1, noises=min(num, FEW))
        tried.append((found.rms, entrant, found.plan, compiled))
    _, entrant, begun, compiled = min(tried, key=lambda one: one[0])
    found = refine(trial, compiled, np.asarray(begun.about["times"]), rounds=rounds)
    if not found.rms < last[0].rms:
        return best, 0.0, last[0].name[1]
    plan = replace(found.plan, about={**found.plan.about, "solver": entrant.name[0]})
    return plan, 1.0 - found.rms / last[0].rms, f"{entrant.name[1]}, moved"


def _named(model: ScoreModel, nfe: int, entrant: Entrant) -> Plan:
    ((solver, grid, plan),) = candidates(model, nfe, [entrant.name[0]], [entrant.name[1]])
    return replace(plan, about={**plan.about, "solver": solver, "grid": grid})


def _entrants(model: ScoreModel, nfe: int, solvers: Iterable[str] | None, grids: Sequence[str]) -> list[Entrant]:
    return [Entrant((c.solver, c.grid), start_plan(model, c.plan)) for c in candidates(model, nfe, solvers, grids)]
