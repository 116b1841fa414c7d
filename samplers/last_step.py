"""Denoising to zero: the last evaluation, at the least noise of training, is taken for the sample itself."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from odecore.plan import Row
from odecore.schemes import exponential_multistep
from samplers.solver import Path, Solver


def denoise_to_zero(solver: Solver) -> Solver:
    """Let a solver end at the least noise of training, and spend one of its evaluations on the x0 predicted there.

    It takes the steps down to that time that the solver takes with one evaluation less and ``end="minimum"``; grids
    that run down to σ = 0 have that time as their last but one. The last row is DDIM's step to σ = 0, which is the
    predicted sample in every variable. For DPM-Solver++, whose last step is that anyway, little changes; solvers
    over ρ or log ρ do not extrapolate to σ = 0 then.

    Args:
        solver: any fixed-grid solver.

    Returns:
        The solver, which ends at "clean" with as many evaluations as it is asked for, at least two.

    Raises:
        ValueError: a solver with an analytic first step, which must be wrapped the other way round; once it is
            compiled, an end with noise.

    Source: Lu et al. 2022, arXiv:2206.00927, the option ``denoise_to_zero`` of its published code.
    """
    if solver.enter is not None:
        raise ValueError(f"solver={solver.name!r} has an analytic first step: denoise to zero first, then take that "
                         "step ('+denoise+afs')")
    return replace(solver, name=f"{solver.name}+denoise", build=partial(_build, solver=solver), end="clean",
                   least_nfe=solver.least_nfe + 1)


def _build(path: Path, nfe: int, *, solver: Solver) -> tuple[tuple[Row, ...], list[float]]:
    if path.schedule.sigma(path.end) != 0.0:
        raise ValueError(f"end={path.end}: solver {solver.name + '+denoise'!r} removes all noise; ask for end='clean', "
                         f"or take {solver.name!r}")
    custom = not callable(path.grid)
    last = float(path.grid[-2]) if custom else float(path.schedule.t_min)  # type: ignore[index]
    before = replace(path, grid=path.grid[:-1] if custom else path.grid, end=last)  # type: ignore[index]
    rows, times = solver.build(before, nfe - 1)
    final = exponential_multistep(path.variable(solver.variable), [last, path.end], [1])
    return (*rows, *final), [*times, path.end]
