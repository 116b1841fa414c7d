"""From data back to the noise that a sampler would have started from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from odecore.plan import Row
from samplers.solver import Path, Solver

Rows = tuple[tuple[Row, ...], list[float]]


def ddim_inversion(iterations: int = 1) -> Solver:
    """Build the inverse of DDIM, step by step, each solved for its start by fixed-point iteration.

    DDIM leads from t to the less noisy s by ``x_s/α_s = x_t/α_t - (ρ_t - ρ_s) ε(x_t, t)``. Given x_s, the inverse
    iterates ``x_t/α_t ← x_s/α_s + (ρ_t - ρ_s) ε(x_t, t)`` from ``x_t = x_s``. One iteration is the usual DDIM
    inversion, which takes the noise at the wrong state. More of them converge to the state from which DDIM on the
    same times gives x_s, where steps are short enough for the iteration to contract; the step from the
    data themselves (σ_s = 0) has no unique inverse, so that only a plan that ends with noise is inverted exactly.

    Args:
        iterations: evaluations for each step.

    Returns:
        A solver whose times grow. It stands in no registry, for it draws no samples.

    Raises:
        ValueError: fewer than one iteration; when compiled, evaluations that are no multiple of it, or a
            schedule that starts at α = 0.

    Cost: ``iterations`` evaluations a step; one more tensor than DDIM.

    Source: Song et al. 2021, arXiv:2010.02502, section 4.3 (one iteration); Pan et al. 2023 (AIDI), arXiv:2309.04907.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations={iterations!r}: give a whole number of evaluations for each step, at least 1")
    return Solver("ddim-inversion", 1, partial(_fixed_point, iterations=iterations), "plain", grid="time", rule=None,
                  least_nfe=iterations, source="Song et al. 2021, arXiv:2010.02502; Pan et al. 2023, arXiv:2309.04907")


def backwards(solver: Solver) -> Solver:
    """Let a multistep solver of the ODE walk its times from data to noise.

    That is as accurate as the solver is, but not its inverse: the polynomials of the way back are others.

    Args:
        solver: a solver of one row a step without noise.

    Raises:
        ValueError: a solver that adds noise; when compiled, a solver that cannot start at the end of the times. Over
            log-SNR that is σ = 0: end them at the least noise.

    Cost: that of the solver.
    """
    if solver.stochastic:
        raise ValueError(f"solver={solver.name!r} adds noise, which no way back removes: choose a solver of the ODE")
    return replace(solver, name=f"{solver.name}-backwards", build=partial(_backwards, build=solver.build), rule=None)


def _fixed_point(path: Path, nfe: int, *, iterations: int) -> Rows:
    if nfe % iterations:
        raise ValueError(f"nfe={nfe}: an inversion of {iterations} iterations spends a multiple of these")
    times = path.times(nfe // iterations)[::-1]
    plain = path.variable("plain")
    rows: list[Row] = []
    for s, t in zip(times[:-1], times[1:], strict=True):
        decay, (weight,) = plain.propagator(plain.at_time(s), plain.at_time(t))
        improved = (decay, 0.0, weight)
        rows += [Row(t, s, plain.to_prediction(t), point=improved)] * (iterations - 1)
        rows.append(Row(t, t, plain.to_prediction(t), improved))
    return tuple(rows), times


@dataclass(frozen=True, slots=True)
class _Ascent(Path):
    """A path that is walked from its end to its start."""

    def times(self, steps: int) -> list[float]:
        return Path.times(self, steps)[::-1]


def _backwards(path: Path, nfe: int, *, build: Callable[[Path, int], Rows]) -> Rows:
    return build(_Ascent(path.schedule, path.prediction, path.grid, path.end), nfe)
