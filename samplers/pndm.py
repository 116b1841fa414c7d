"""PNDM: iPNDM's multistep weights after a start of higher order, by pseudo Runge–Kutta steps or, in PLMS, by Heun's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from odecore.explicit.tableaus import HEUN, RK4, Tableau
from odecore.plan import Row, Weight
from odecore.schemes import Variable
from samplers.ipndm import equal_steps
from samplers.multistep import from_pure_noise, starts_at_pure_noise
from samplers.solver import Path, Solver

_SOURCE = "Liu et al. 2022, arXiv:2202.09778"
_ORDER = 4


def _pndm(path: Path, nfe: int, *, tableau: Tableau, most: int) -> tuple[tuple[Row, ...], list[float]]:
    """Rows of at most ``most`` starting steps, while at least one evaluation is left for a step that follows them."""
    starts = max(min(most, (nfe - 1 - starts_at_pure_noise(path)) // tableau.stages), 0)
    times = path.times(nfe - starts * (tableau.stages - 1))
    plain = path.variable("plain")
    rows = list(from_pure_noise(path, times))
    made: list[int] = []
    for i in range(len(rows), len(times) - 1):
        made.append(len(rows))
        if len(made) <= starts:
            rows += pseudo_runge_kutta(plain, times[i], times[i + 1], tableau)
        else:
            rows.append(_multistep(plain, times[i], times[i + 1], [len(rows) - row for row in made[-_ORDER:]]))
    return tuple(rows), times


def pseudo_runge_kutta(plain: Variable, t_start: float, t_end: float, tableau: Tableau) -> tuple[Row, ...]:
    """Turn one step into rows: stages lie at fractions of the network's time, and each is reached by DDIM.

    ``x_i/α_i = x_0/α_0 + (ρ_i - ρ_0) Σ_j (a_ij/c_i) ε_j`` with ``t_i = t_start + c_i (t_end - t_start)``, and the end
    likewise with weights b: over ρ in place of t this is the classical step.

    Source: Liu et al. 2022, arXiv:2202.09778, equation 13.
    """
    start = plain.at_time(t_start)
    rows: list[Row] = []
    places = [t_start, *(t_end if c == 1.0 else t_start + c * (t_end - t_start) for c in tableau.c[1:]), t_end]
    nodes = [plain.at_time(t) for t in places]
    means = [*([a / c for a in row] for row, c in zip(tableau.a[1:], tableau.c[1:], strict=True)), list(tableau.b)]
    for node, target, mean in zip(nodes[:-1], nodes[1:], means, strict=True):
        step = target.gain * (target.clock - start.clock)
        combination: tuple[Weight, ...] = (plain.decay(start, target), 0.0, *(step * w for w in reversed(mean)))
        if len(rows) == tableau.stages - 1:
            rows.append(Row(node.t, t_end, plain.to_prediction(node.t), combination))
        else:
            rows.append(Row(node.t, t_start, plain.to_prediction(node.t), point=combination))
    return tuple(rows)


def _multistep(plain: Variable, t_start: float, t_end: float, ages: Sequence[int]) -> Row:
    """A step of iPNDM over the predictions that were made so many rows ago, oldest first."""
    start, end = plain.at_time(t_start), plain.at_time(t_end)
    weights: list[Weight] = [0.0] * (ages[0] + 1)
    for age, weight in zip(reversed(ages), equal_steps([0.0] * len(ages), end.clock - start.clock, 0.0), strict=True):
        weights[age] = end.gain * weight
    return Row(start.t, end.t, plain.to_prediction(start.t), (plain.decay(start, end), 0.0, *weights))


def pndm() -> Solver:
    """Build PNDM as published: three pseudo Runge–Kutta steps of four evaluations, then fourth-order iPNDM.

    The steps lie where a grid has them; fewer than 13 evaluations take one or two such steps, fewer than five none.
    Its order of convergence is two: the mean of ε over a step is taken over the step's number, not over ρ.

    Cost: three evaluations more than the number of its steps for each starting step; 13 predictions are kept.

    Source: Liu et al. 2022, arXiv:2202.09778, algorithm 2; diffusers' ``PNDMScheduler``.
    """
    return _solver("pndm", RK4, 3)


def plms() -> Solver:
    """Build PLMS: one Heun step, then fourth-order iPNDM.

    Other code evaluates the network at the second timestep twice, and spends an evaluation more than it is asked for
    (``PNDMScheduler`` with ``skip_prk_steps``, as it runs Stable Diffusion). Here a step less is taken.

    Cost: one evaluation more than the number of its steps.

    Source: Liu et al. 2022, arXiv:2202.09778; Rombach et al. 2022, arXiv:2112.10752.
    """
    return _solver("plms", HEUN, 1)


def _solver(name: str, tableau: Tableau, most: int) -> Solver:
    build = partial(_pndm, tableau=tableau, most=most)
    return Solver(name, 2, build, "plain", "karras", source=_SOURCE)  # as measured on the embedded models


PNDM = (pndm(), plms())
