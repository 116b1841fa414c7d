"""What calibration tries: every deterministic solver in its published variants, on every grid that fits.

Besides the registry these are the weights that other libraries give the same methods, the analytic first step,
and grids with other parameters, so that whatever a deterministic scheduler elsewhere does is among them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from odecore.plan import Plan, execute
from samplers import flow_grids, grids, levels
from samplers.compile import compile_plan
from samplers.first_step import analytic_first_step
from samplers.grids import Grid, Times
from samplers.lms import lms
from samplers.multistep import ALWAYS
from samplers.published import WEIGHTS, published_multistep, published_singlestep
from samplers.registry import GRIDS, SOLVERS, grid_named, solver_named
from samplers.solver import Solver
from samplers.unipc import unipc
from scoremodels.model import ScoreModel
from scoremodels.schedule import NoiseSchedule

_FROM_NOISE = ("ddim", "dpm-solver-2m", "dpm-solver-3m", "dpm-solver++-2m", "dpm-solver++-3m", "deis-2", "deis-3",
               "ipndm-2", "ipndm-3", "ipndm-4", "lms-2", "lms-3", "unipc-2", "unipc-3", "dpm-solver-2",
               "dpm-solver++-2s")
"""Solvers that are tried with the analytic first step too."""


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


def _variants() -> dict[str, Solver]:
    """Solvers by name, as other libraries weigh them."""
    found: dict[str, Solver] = {}
    for variable, family in (("data", "dpm-solver++"), ("noise", "dpm-solver")):
        for order in (2, 3):
            for weights in WEIGHTS:
                found[f"{family}-{order}m:{weights}"] = published_multistep(variable, order, weights)
                found[f"{family}-{order}s:{weights}"] = published_singlestep(variable, order, weights)
            found[f"unipc-{order}:{variable}-bh1"] = unipc(order, variable, "bh1")
    for order in (2, 3):
        found[f"unipc-{order}:noise-bh2"] = unipc(order, "noise", "bh2")
        found[f"unipc-{order}:exact"] = unipc(order, "data", "exact")
        found[f"lms-{order}:tapered"] = lms(order, taper_below=ALWAYS)
    return {name: replace(solver, name=name) for name, solver in found.items()}


VARIANTS: Mapping[str, Solver] = {
    **_variants(), **{f"{name}+afs": analytic_first_step(SOLVERS[name]) for name in _FROM_NOISE}}  # type: ignore[arg-type]
"""Solvers that calibration tries beyond the registry."""


def early(schedule: NoiseSchedule, steps: int, end: float, *, grid: Grid) -> Times:
    """A grid of one time more, without the last before the end: the last step begins early."""
    times = grid(schedule, steps + 1, end)
    return np.append(times[:-2], times[-1])


FURTHER_GRIDS: Mapping[str, Grid] = {
    "karras:rho-4": partial(grids.karras, rho=4.0), "karras:rho-12": partial(grids.karras, rho=12.0),
    "leading:from-0": partial(grids.leading, dropped=0), "linspace:to-0": partial(grids.linspace, dropped=0),
    "arctan:std-0.5": partial(levels.arctan, std=0.5),
    "align-your-steps:sdxl": partial(levels.align_your_steps, model="sdxl"),
    "align-your-steps:svd": partial(levels.align_your_steps, model="svd"),
    **{f"{name}:early": partial(early, grid=GRIDS[name]) for name in ("log-snr", "karras", "arctan")},
    **{f"time:shift-{s}": flow_grids.shifted(grids.time, float(s)) for s in (2, 3, 5)},
    **{f"time:shift-{s}:early": partial(early, grid=flow_grids.shifted(grids.time, float(s))) for s in (1, 3)}}
"""Grids that calibration tries beyond the registry."""


def candidates(
    model: ScoreModel, nfe: int, solvers: Iterable[str] | None = None, on: Iterable[str] | None = None
) -> list[Candidate]:
    """Compile every combination that can spend ``nfe``; of those that are the same plan, the first.

    Args:
        model: the model.
        nfe: evaluations of each plan.
        solvers: names to try; None for all of :func:`plain_solvers`.
        on: names of grids to try; None for all of :func:`grid_names`.

    Returns:
        The combinations; none if there are no such.

    Raises:
        ValueError: an unknown name, or a solver that adds noise or has no plan.
    """
    chosen = {name: solver_of(name) for name in (plain_solvers() if solvers is None else solvers)}
    ways = {name: grid_of(name) for name in (grid_names() if on is None else on)}
    found: dict[tuple[str, ...], Candidate] = {}
    for name, solver in chosen.items():
        for grid, function in ways.items():
            try:
                plan = compile_plan(solver, model.schedule, nfe=nfe, grid=function, prediction=model.prediction)
            except ValueError:
                continue  # this schedule has no such grid, or the solver cannot spend so few evaluations
            plan = replace(plan, about={**plan.about, "grid": grid})
            found.setdefault(_mark(plan), Candidate(name, grid, plan))
    return list(found.values())


def compiled_on(model: ScoreModel, solver: str, nfe: int, times: Times) -> Plan:
    """Compile a solver, by its name here, on times of one's own.

    Raises:
        ValueError: they are not as many as the solver takes, or do not decrease.
    """
    return compile_plan(solver_of(solver), model.schedule, nfe=nfe, grid=times, prediction=model.prediction)


def plain_solvers() -> list[str]:
    """Names of all solvers that have a plan without noise."""
    registered = [name for name, solver in SOLVERS.items() if isinstance(solver, Solver) and not solver.stochastic]
    return [*registered, *VARIANTS]


def grid_names() -> list[str]:
    """Names of all grids, those for distilled models left out."""
    return [name for name in (*GRIDS, *FURTHER_GRIDS) if name != "skipping"]


def solver_of(name: str) -> Solver:
    """Look a deterministic solver up, those that only calibration knows included.

    Raises:
        ValueError: an unknown name, or a solver that adds noise or has no plan.
    """
    solver = VARIANTS[name] if name in VARIANTS else solver_named(name)
    if not isinstance(solver, Solver) or solver.stochastic:
        raise ValueError(f"solvers has {name!r}, which has no plan or adds noise: choose deterministic solvers")
    return solver


def grid_of(name: str) -> Grid:
    """Look a grid up, those that only calibration knows included.

    Raises:
        ValueError: an unknown name.
    """
    return FURTHER_GRIDS[name] if name in FURTHER_GRIDS else grid_named(name)


def _mark(plan: Plan) -> tuple[str, ...]:
    """Where the plan leads with a made-up network, to eight digits: solvers that are one method lead to one place."""
    start = torch.tensor([0.7, -1.1], dtype=torch.float64)
    end = execute(plan, lambda x, t: torch.sin(3.0 * x + t), start)
    return tuple(f"{value:.8g}" for value in end.tolist())
