"""Solvers and grids by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from samplers import (
    ancestral,
    auto,
    churn,
    consistency,
    ddim,
    deis,
    dpm_solver,
    edm,
    era,
    flow_grids,
    grids,
    ipndm,
    levels,
    lms,
    pndm,
    res,
    restart_sampling,
    sa_solver,
    sde_dpm_solver,
    stork,
    unipc,
)
from samplers.dpm_solver_v3 import PREFIX, dpm_solver_v3_named
from samplers.first_step import analytic_first_step
from samplers.grids import Grid
from samplers.last_step import denoise_to_zero
from samplers.solver import AdaptiveSolver, SelectingSolver, Solver

T = TypeVar("T")

_ALL: tuple[Solver | AdaptiveSolver, ...] = (
    edm.EULER_SOLVER, ddim.DDIM, ddim.DDPM, *dpm_solver.SINGLESTEP, *dpm_solver.MULTISTEP, *dpm_solver.PLUS_PLUS,
    edm.EDM_HEUN, *ipndm.IPNDM, *lms.LMS, *deis.DEIS, *unipc.UNIPC,
    *edm.RHO_RUNGE_KUTTA, edm.FLOW_HEUN, *lms.FLOW_AB, *res.RES, *pndm.PNDM, *stork.STORK,
    *sde_dpm_solver.SDE_DPM_SOLVER, *sde_dpm_solver.DPMPP_SDE, *sa_solver.SA_SOLVER,
    ddim.DDPM_LARGE, *ancestral.ANCESTRAL, *churn.CHURN, *restart_sampling.RESTART,
    AdaptiveSolver("dpm-solver-12", 2, "Lu et al. 2022, arXiv:2206.00927"),
    AdaptiveSolver("dpm-solver-23", 3, "Lu et al. 2022, arXiv:2206.00927"),
)
SOLVERS: Mapping[str, Solver | AdaptiveSolver] = {solver.name: solver for solver in _ALL}
"""Every sampler, by the name that users give."""

SELECTING: Mapping[str, SelectingSolver] = {solver.name: solver for solver in era.ERA}
"""Samplers whose weights depend on the samples: for :func:`samplers.sample.sample` alone."""

DISTILLED: Mapping[str, Solver] = {solver.name: solver for solver in consistency.DISTILLED}
"""Samplers of models that were distilled for them; on others they do not converge."""

CHOOSING: Mapping[str, Solver] = {auto.AUTO.name: auto.AUTO}
"""Names that become another solver when a plan is compiled."""

ALIASES: Mapping[str, str] = {
    **{f"{name}-{k}": f"lms-{k}" for name in ("ipndm-v", "deis-rho") for k in (2, 3, 4)},
    "deis-log-3": "dpm-solver-3m", "rho-heun": "edm-heun", "res-2s": "dpm-solver++-2s",
    "dpmpp-2m-sde": "sde-dpm-solver++-2m",
    "euler-ancestral": "ddpm",
}
"""Further names that the field has for some of them."""

WRAPPERS: Mapping[str, Callable[[Solver], Solver]] = {
    "afs": analytic_first_step, "denoise": denoise_to_zero, "unic": unipc.unic}
"""What may follow a solver's name after a plus."""

GRIDS: Mapping[str, Grid] = {
    "log-snr": grids.log_snr, "time": grids.time, "quadratic": grids.quadratic, "karras": grids.karras,
    "exponential": grids.exponential, "leading": grids.leading, "linspace": grids.linspace,
    "trailing": grids.trailing, "polyexponential": levels.polyexponential, "beta": levels.beta,
    "arctan": levels.arctan, "align-your-steps": levels.align_your_steps, "skipping": consistency.skipping,
    "sgm-uniform": grids.sgm_uniform, "linear-quadratic": flow_grids.linear_quadratic,
}
"""Every time grid, by the name that users give."""

GRID_ALIASES: Mapping[str, str] = {"cosine": "arctan", "kl-optimal": "arctan", "normal": "time"}
"""Further names that the field has for some of them."""


def solver_named(name: str) -> Solver | AdaptiveSolver:
    """Look a solver up, by its name or by an alias; words after a plus wrap it, see ``WRAPPERS``.

    ``dpm-solver-v3-3@FILE`` is built with the model's statistics of a file.

    Raises:
        ValueError: there is none of that name, or one that cannot be wrapped.
    """
    if str(name).startswith(PREFIX):
        return dpm_solver_v3_named(name)
    base, plus, wrapper = str(name).rpartition("+")
    if not plus or wrapper not in WRAPPERS:
        return _named("solver", ALIASES.get(name, name), {**SOLVERS, **SELECTING, **DISTILLED, **CHOOSING})
    solver = solver_named(base)
    if isinstance(solver, AdaptiveSolver | auto.AutoSolver):
        raise ValueError(f"solver={name!r}: {base!r} chooses its own steps, and {wrapper!r} needs a fixed grid")
    return WRAPPERS[wrapper](solver)


def grid_named(name: str) -> Grid:
    """Look a grid up, by its name or by an alias.

    Raises:
        ValueError: there is none of that name.
    """
    return _named("grid", GRID_ALIASES.get(name, name), GRIDS)


def _named(kind: str, name: str, table: Mapping[str, T]) -> T:
    if name not in table:
        raise ValueError(f"{kind}={name!r} is unknown: {_suggestion(name, table)}choose one of {', '.join(table)}")
    return table[name]


def _suggestion(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(names), n=1)
    return f"did you mean {close[0]!r}? Else " if close else ""
