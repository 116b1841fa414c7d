"""SA-Solver: stochastic Adams methods, with as much noise at each level as one likes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from odecore.phi import exponential_weights
from odecore.plan import Row
from odecore.schemes import Node, Variable
from odecore.schemes.predictor_corrector import corrected
from odecore.schemes.variable import Rule
from samplers.multistep import ALWAYS, HIGHEST_ORDER, checked_order, step_orders
from samplers.reverse_sde import reverse_multistep, reverse_step
from samplers.solver import Path, Solver
from samplers.unipc import bh1

Tau = Callable[[float], float]
"""The noise level τ ≥ 0 of the SDE at a noise-to-signal ratio ρ = σ/α; a step takes that of its start."""

_SOURCE = "Xue et al. 2023, arXiv:2309.05019"


def constant(tau: float) -> Tau:
    """Give one τ at all ratios: 0 is the ODE, 1 reverses the forward process."""
    return lambda ratio: tau


def between(tau: float, low: float, high: float) -> Tau:
    """Give τ where ``low ≤ ρ ≤ high``, and 0 elsewhere."""
    return lambda ratio: tau if low <= ratio <= high else 0.0


FULL = constant(1.0)
"""The noise of the forward process, reversed."""

MIDDLE = between(1.0, 0.7235, 25.74)
"""The published choice, which spares the ends: steps 200 to 800 of the linear discrete schedule."""


def sa_solver(
    predictor: int = 2, corrector: int = 2, variable: str = "data", *, tau: Tau = MIDDLE,
    weights: str = "published", lower_order_final: bool = True,
) -> Solver:
    """Build SA-Solver.

    Predictor and corrector of a step share its noise, and start from the same state. The corrector is
    applied once the prediction at the step's end is made for the next step, which spends no evaluation.

    Args:
        predictor: order 1 to 4: the number of predictions that it interpolates.
        corrector: 0 for none, or order 1 to 4: the number of predictions, that at the step's end among them.
        variable: "data" or "noise", what is interpolated over log-SNR.
        tau: τ, see :func:`constant` and :func:`between`. With 10 evaluations on the embedded EDM model the published
            choice halves the Fréchet distance that τ = 1 at all levels gives, and more.
        weights: "published", which over data take h²/2 for the first moment where there are two predictions, or
            "exact".
        lower_order_final: whether the orders fall over the last steps. A step to σ = 0 has order one and no noise in
            any case.

    Returns:
        A solver whose ``order``, that of the drift where τ does not jump, is min(corrector, predictor + 1), or that
        of the predictor without a corrector. With noise, paths are met with order one.

    Raises:
        ValueError: an argument out of its range.

    Cost: one evaluation and one normal draw a step.

    Source: Xue et al. 2023, arXiv:2309.05019, algorithm 1; diffusers' ``SASolverScheduler``.
    """
    if isinstance(corrector, bool) or not isinstance(corrector, int) or not 0 <= corrector <= HIGHEST_ORDER:
        raise ValueError(f"corrector={corrector!r}: choose a whole number between 0 and {HIGHEST_ORDER}")
    if variable not in ("data", "noise"):
        raise ValueError(f"variable={variable!r}: choose 'data' or 'noise'")
    if weights not in ("published", "exact"):
        raise ValueError(f"weights={weights!r}: choose 'published' or 'exact'")
    rule = bh1 if weights == "published" and variable == "data" else exponential_weights
    build = partial(_build, predictor=checked_order(predictor), corrector=corrector, variable=variable, tau=tau,
                    rule=rule, taper_below=ALWAYS if lower_order_final else 0)
    order = min(corrector, predictor + 1) if corrector else predictor
    return Solver(f"sa-solver-{predictor}", order, build, variable, end="clean" if variable == "data" else "minimum",
                  sigma_grid="log-snr", rule=None, stochastic=True, source=_SOURCE)


def _build(
    path: Path, nfe: int, *, predictor: int, corrector: int, variable: str, tau: Tau, rule: Rule, taper_below: int
) -> tuple[tuple[Row, ...], list[float]]:
    times, chosen = path.times(nfe), path.variable(variable)
    orders = step_orders(path, variable, times, predictor, taper_below=taper_below)
    strengths = [_checked(tau, float(path.schedule.ratio(t))) ** 2 for t in times[:-1]]
    rows = reverse_multistep(chosen, times, orders, strengths, rule=rule)
    nodes = [chosen.at_time(t) for t in times[:-1]]
    # The corrector of a step is applied with the next, where as many predictions as steps are left, and two, may do.
    counts = [min(corrector, i + 2, nfe - i + 1 if taper_below else corrector) for i in range(nfe - 1)]
    return corrected(rows, [
        _corrector(chosen, nodes[: i + 2], count, strengths[i], rule) for i, count in enumerate(counts)]), times


def _corrector(
    variable: Variable, nodes: Sequence[Node], count: int, strength: float, rule: Rule
) -> tuple[float, ...]:
    """Weights over the newest ``count`` of the nodes, the last being the step's end and the one before its start."""
    *_, start, end = nodes
    used = [node for node in reversed(nodes) if math.isfinite(node.clock)][:count]
    if count == 0 or not math.isfinite(end.clock - start.clock):
        return ()  # a step of infinite length is exact in its one prediction
    offsets = [node.clock - start.clock for node in used]
    if len(offsets) == 1:
        return reverse_step(variable, start, end, offsets, strength=strength, rule=rule).weights
    # Rules expect the start first.
    ahead, now, *past = offsets
    first, last, *older = reverse_step(variable, start, end, (now, ahead, *past), strength=strength, rule=rule).weights
    return last, first, *older


def _checked(tau: Tau, ratio: float) -> float:
    value = float(tau(ratio))
    if not 0.0 <= value < math.inf:
        raise ValueError(f"tau({ratio})={value}: τ must be a finite number, at least 0")
    return value


SA_SOLVER = tuple(sa_solver(predictor, corrector) for predictor, corrector in ((1, 1), (2, 2), (3, 4)))
