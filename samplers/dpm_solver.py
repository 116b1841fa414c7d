"""DPM-Solver and DPM-Solver++: exponential schemes over log-SNR, singlestep and multistep.

A rule turns the predictions of a step into its weights. Exact quadrature of the polynomial through
them is the plain one. The second-order multistep solvers take the published "midpoint" weights: with
few evaluations they err less, on the embedded models by a sixth to a half. The other published rules
err more than exact quadrature there, and stand here for whoever must match other code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from odecore.phi import exponential_weights
from odecore.plan import Row, Weight
from odecore.schemes import exponential_multistep, exponential_singlestep
from odecore.schemes.exponential import inner_nodes
from odecore.schemes.variable import Rule
from samplers.solver import Path, Solver

FRACTIONS: dict[int, tuple[float, ...]] = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}
"""Where the inner stages of a singlestep method of each order lie in its step, in log-SNR."""

TAPER_BELOW = 15
"""Multistep methods lower their order over the last steps where fewer evaluations than this are spent."""


def half_difference(offsets: Sequence[float], h: float, rate: Weight) -> tuple[Weight, ...]:
    """Weigh a first difference by half the zeroth moment ("midpoint" in other code).

    ``W m_0 + W (h/2) (m_1 - m_0)/(u_1 - u_0)`` with ``W = ∫_0^h e^{-rate (h-u)} du``; exact
    quadrature has the first moment in place of W h/2. With u_1 = h/2 only m_1 remains.
    """
    (total,) = exponential_weights((0.0,), h, rate)
    slope = total * h / 2 / (offsets[1] - offsets[0])
    return total - slope, slope


def half_curvature(offsets: Sequence[float], h: float, rate: Weight) -> tuple[Weight, ...]:
    """Exact quadrature of three predictions, less half the contribution of their second difference.

    So the published third-order multistep update weighs it; its order of convergence is two.
    """
    exact: tuple[Weight, ...] = exponential_weights(offsets, h, rate)
    slopes = _quadratic_part(offsets)
    second_moment = sum((w * u**2 for w, u in zip(exact, offsets, strict=True)), start=0.0 * rate)
    return tuple(w - s * second_moment / 2 for w, s in zip(exact, slopes, strict=True))


def skip_middle(offsets: Sequence[float], h: float, rate: Weight) -> tuple[Weight, ...]:
    """Exact quadrature of the first and the last of three predictions (DPM-Solver-3's last stage)."""
    first, last = exponential_weights((offsets[0], offsets[2]), h, rate)
    return first, 0.0, last


def _quadratic_part(offsets: Sequence[float]) -> tuple[float, ...]:
    """Weights of the second divided difference."""
    return tuple(
        1 / math.prod(u - v for j, v in enumerate(offsets) if j != i) for i, u in enumerate(offsets))


def _by_count(special: dict[int, Rule], offsets: Sequence[float], h: float, rate: Weight) -> tuple[Weight, ...]:
    return special.get(len(offsets), exponential_weights)(offsets, h, rate)


RULES: dict[str, Rule] = {
    "exact": exponential_weights,
    "multistep-midpoint": partial(_by_count, {2: half_difference, 3: half_curvature}),
    "multistep-heun": partial(_by_count, {3: half_curvature}),
    "singlestep-midpoint": partial(_by_count, {2: half_difference, 3: skip_middle}),
}
"""Quadrature rules by name; the published ones are called after the ``solver_type`` of other code."""


def multistep_orders(clocks: Sequence[float], order: int, *, taper: bool) -> list[int]:
    """Order of each step: rises with the history, and falls again over the last steps if ``taper``.

    A step of infinite length has order one, and a prediction made at an infinite clock is no history.
    """
    steps = len(clocks) - 1
    orders = []
    for i in range(steps):
        history = i + 1 if math.isfinite(clocks[0]) else max(i, 1)
        left = steps - i if taper else order
        orders.append(min(order, history, left) if math.isfinite(clocks[i + 1] - clocks[i]) else 1)
    return orders


def singlestep_orders(nfe: int, order: int) -> list[int]:
    """Orders of steps that together spend exactly ``nfe``: as many of ``order`` as leave a lower one for the end.

    Order 3 gives the published mixed-order scheme (DPM-Solver, appendix B.5 "DPM-Solver-fast"):
    3, …, 3, then 2 and 1 if nfe is a multiple of three, else the remainder.
    """
    if order < 3:
        return [order] * (nfe // order) + [1] * (nfe % order)
    if nfe % 3 == 0:
        return [3] * (nfe // 3 - 1) + [2, 1]
    return [3] * (nfe // 3) + [nfe % 3]


def orders_on_path(path: Path, nfe: int, order: int) -> list[int]:
    """Orders of singlestep steps that spend exactly ``nfe``, with first-order ones where a step is infinitely long."""
    free = [path.schedule.log_snr(path.end) == math.inf, path.schedule.log_snr(path.schedule.t_max) == -math.inf]
    middle = singlestep_orders(max(nfe - sum(free), 0), order) if nfe > sum(free) else []
    return [1] * free[1] + middle + [1] * free[0] if nfe >= sum(free) else [1] * nfe


def _multistep(
    path: Path, nfe: int, *, variable: str, order: int, rule: str = "exact", taper_below: int = TAPER_BELOW
) -> tuple[tuple[Row, ...], list[float]]:
    times = path.times(nfe)
    chosen = path.variable(variable)
    clocks = [chosen.at_time(t).clock for t in times]
    orders = multistep_orders(clocks, order, taper=nfe < taper_below)
    return exponential_multistep(chosen, times, orders, rule=RULES[rule]), times


def _singlestep(
    path: Path, nfe: int, *, variable: str, order: int, rule: str = "exact"
) -> tuple[tuple[Row, ...], list[float]]:
    """Steps of equal length in the grid, each with stages at fixed fractions; infinite steps have order one."""
    chosen = path.variable(variable)
    orders = orders_on_path(path, nfe, order)
    times = path.times(len(orders))
    steps = [inner_nodes(chosen, t, s, FRACTIONS[k]) for t, s, k in zip(times[:-1], times[1:], orders, strict=True)]
    return exponential_singlestep(chosen, steps, rule=RULES[rule]), times


def with_rule(solver: Solver, rule: str) -> Solver:
    """Build a solver of this family with the weights of another rule.

    Raises:
        ValueError: an unknown rule, or a solver of another family.
    """
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is unknown: choose one of {', '.join(RULES)}")
    if solver.name not in FAMILY:
        raise ValueError(f"solver={solver.name!r} has no rule to choose: take one of {', '.join(FAMILY)}")
    build: Callable[..., tuple[tuple[Row, ...], list[float]]] = solver.build
    return replace(solver, rule=rule, build=partial(build, rule=rule))


def _family(name: str, kind: str, variable: str, order: int, source: str) -> Solver:
    build = {"singlestep": _singlestep, "multistep": _multistep}[kind]
    end = "minimum" if variable == "noise" else "clean"
    rule = "multistep-midpoint" if kind == "multistep" and order == 2 else "exact"
    sigma_grid = "log-snr" if kind == "multistep" and variable == "data" and order == 3 else "karras"
    return Solver(name, order, partial(build, variable=variable, order=order, rule=rule), variable, "log-snr", end,
                  sigma_grid, rule, source=source)


_LU = "Lu et al. 2022, arXiv:2206.00927"
_LU_PLUS = "Lu et al. 2022, arXiv:2211.01095"
SINGLESTEP = tuple(_family(f"dpm-solver-{k}", "singlestep", "noise", k, _LU) for k in (1, 2, 3))
MULTISTEP = tuple(_family(f"dpm-solver-{k}m", "multistep", "noise", k, _LU) for k in (2, 3))
PLUS_PLUS = (
    *(_family(f"dpm-solver++-{k}s", "singlestep", "data", k, _LU_PLUS) for k in (2, 3)),
    *(_family(f"dpm-solver++-{k}m", "multistep", "data", k, _LU_PLUS) for k in (2, 3)),
)
FAMILY = frozenset(solver.name for solver in (*SINGLESTEP, *MULTISTEP, *PLUS_PLUS))
