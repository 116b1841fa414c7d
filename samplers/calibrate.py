"""Choose solver and grid for one model and one number of evaluations, by trying them on that model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from odecore.plan import Plan
from samplers.candidates import Candidate, candidates, grid_names
from samplers.lockstep import run_together, walk_plan
from samplers.noise import SampleNoise
from samplers.sample import sample
from scoremodels.model import ScoreModel

REFERENCE = ("dpm-solver++-3m", "log-snr", 128)
"""Solver, grid and evaluations of the solution that candidates are compared with."""
PROBES = ("log-snr", "karras", "time")
"""Grids that every solver is tried on; the better solvers then meet the other grids."""
FEW = 2
"""Noises of the first round; each further round has twice as many."""
KEPT, LEAST = 4, 8
"""One in so many candidates meets the next round, and at least so many."""

Progress = Callable[[str, int, int], None]


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
    Candidates are halved in rounds (successive halving, with quarters): all solvers meet two noises on three
    grids, the best quarter of the solvers meets them on all others, and then ever fewer candidates meet ever more
    noises, until the last eight have met ``num``.

    Args:
        model: the model, guidance included.
        nfe: evaluations of the plan.
        num: noises, at least 4.
        seed: seed of the first noise; keep it away from the seeds of whatever is reported.
        solvers: names to try, of the registry or :data:`samplers.candidates.VARIANTS`; None for all.
        grids: names to try, of the registry or :data:`samplers.candidates.FURTHER_GRIDS`; None for all.
        condition: a class label, or one for each noise.
        batch: how many states to evaluate at once, those of several candidates together.
        progress: called with the name of the round, the number of candidates that are done with it, and of all.

    Returns:
        The winning plan; ``plan.about["calibration"]`` holds the table of the last round, and what it cost.

    Raises:
        ValueError: an argument out of range, or no candidate that can spend ``nfe``.

    Cost: ``num · 128`` evaluations for the solution, which is kept as long as the model's weights stay, so that a
        further ``nfe`` does not pay for it again; about ``1500 nfe`` for the rest.

    Source: successive halving, Jamieson & Talwalkar 2016, arXiv:1502.07943.
    """
    if isinstance(num, bool) or not isinstance(num, int) or num < 4:
        raise ValueError(f"num={num!r}: give a whole number of noises, at least 4")
    names = grid_names() if grids is None else list(grids)
    probes = [name for name in names if name in PROBES] or names[:len(PROBES)]
    entries = [_Entry(c) for c in candidates(model, nfe, solvers, probes)]
    others = [name for name in names if name not in probes]
    if not entries and not others:
        raise ValueError(f"nfe={nfe!r}: none of the solvers can spend that on any of the grids; allow more of either")
    labels = None if condition is None else torch.as_tensor(condition).expand(num).clone()
    solution, spent = _solution(model, num, seed, labels, batch)
    trial = _Trial(model, seed, solution, labels, batch, progress)
    trial.run(entries, FEW, "solvers")
    chosen = list(dict.fromkeys(e.candidate.solver for e in _best(entries, len(entries))))
    kept = chosen[: max(LEAST, len(chosen) // KEPT)] if others else []
    further = [_Entry(c) for c in candidates(model, nfe, kept, others)]
    trial.run(further, FEW, "grids")
    entries += further
    tried, count = len(entries), FEW
    while count < num:
        entries = _best(entries, max(LEAST, math.ceil(len(entries) / KEPT)))
        count = min(2 * count, num)
        trial.run(entries, count, f"{count} noises")
    ranked = _best(entries, len(entries))
    best = ranked[0].candidate.plan
    about = {"num": num, "seed": seed, "candidates": tried, "evaluations": spent + nfe * trial.states, "table": [
        {"solver": e.candidate.solver, "grid": e.candidate.grid, "rms": e.rms} for e in ranked]}
    return replace(best, about={**best.about, "solver": ranked[0].candidate.solver, "calibration": about})


@dataclass(slots=True)
class _Entry:
    """A candidate and how it fared: the sum of its mean square distances, over so many noises."""

    candidate: Candidate
    total: float = 0.0
    count: int = 0

    @property
    def rms(self) -> float:
        """RMS distance so far; inf for what diverged."""
        return math.sqrt(self.total / self.count)


def _best(entries: Sequence[_Entry], number: int) -> list[_Entry]:
    return sorted(entries, key=lambda entry: entry.rms)[:number]


@dataclass(slots=True)
class _Trial:
    """Runs candidates from the noises that they have not met yet."""

    model: ScoreModel
    seed: int
    solution: Tensor
    labels: Tensor | None
    batch: int
    progress: Progress | None
    states: int = 0

    def run(self, entries: Sequence[_Entry], count: int, name: str) -> None:
        """Let candidates, all of which have met as many noises, meet the first ``count``."""
        if not entries:
            return
        first = entries[0].count
        new = slice(first, count)
        schedule = self.model.schedule
        noise = SampleNoise(range(self.seed + first, self.seed + count), self.model.shape, device=self.model.device)()
        labels = None if self.labels is None else self.labels[new]
        together = max(1, self.batch // (count - first))
        for done in range(0, len(entries), together):
            group = entries[done:done + together]
            walks = [walk_plan(e.candidate.plan, noise * schedule.prior_scale(float(e.candidate.plan.t_start)))
                     for e in group]
            ends = run_together(self.model, walks, labels, states=count - first, batch=self.batch)
            for entry, end in zip(group, ends, strict=True):
                squares = (end.cpu().double() - self.solution[new]).square().flatten(1).mean(1).sum().item()
                entry.total += squares if math.isfinite(squares) else math.inf
                entry.count = count
            self.states += len(group) * (count - first)
            if self.progress is not None:
                self.progress(name, min(done + together, len(entries)), len(entries))


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
