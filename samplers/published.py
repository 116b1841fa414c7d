"""DPM-Solver as other libraries publish it: weights, orders and stages, for whoever must match them.

The differences from the solvers of :mod:`samplers.dpm_solver` are small and deliberate: the second
difference of the third-order multistep solver has half its exact weight, a singlestep solver may
weigh a first difference by half the zeroth moment ("midpoint"), and its stages lie on the points of
the grid, one point an evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from odecore.plan import Row
from odecore.schemes import exponential_multistep, exponential_singlestep
from samplers.dpm_solver import FAMILY, RULES, TAPER_BELOW, multistep_orders, with_rule
from samplers.registry import solver_named
from samplers.sde_dpm_solver import SDE_DPM_SOLVER, sde_dpm_solver
from samplers.solver import Path, Solver

WEIGHTS = ("midpoint", "heun")
"""The published second-order weights: diffusers' ``solver_type``."""

_SOURCE = "diffusers 0.42, DPMSolver{}Scheduler, after Lu et al. 2022, arXiv:2206.00927 and arXiv:2211.01095"


def published_multistep(
    variable: str, order: int, weights: str = "midpoint", *, lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Solver:
    """Build diffusers' ``DPMSolverMultistepScheduler`` of one order.

    Args:
        variable: "data" (DPM-Solver++) or "noise" (DPM-Solver).
        order: 1, 2 or 3.
        weights: "midpoint" or "heun".
        lower_order_final: whether the last two steps lower their order where fewer than 15 evaluations are spent.
        euler_at_final: whether the last step always has order one.

    Raises:
        ValueError: an argument out of its range.

    Cost: one evaluation a step.
    """
    _check(variable, order, weights)
    build = partial(_multistep, variable=variable, order=order, rule=f"multistep-{weights}",
                    taper_below=TAPER_BELOW if lower_order_final else 0, euler_at_final=euler_at_final)
    return Solver(f"published-multistep-{variable}-{order}", order, build, variable, grid="linspace",
                  end="clean" if variable == "data" else "minimum", rule=f"multistep-{weights}",
                  source=_SOURCE.format("Multistep"))


def published_singlestep(
    variable: str, order: int, weights: str = "midpoint", *, lower_order_final: bool = True
) -> Solver:
    """Build diffusers' ``DPMSolverSinglestepScheduler`` of one order: its stages are points of the grid.

    Args:
        variable: "data" (DPM-Solver++) or "noise" (DPM-Solver).
        order: 1, 2 or 3.
        weights: "midpoint" or "heun".
        lower_order_final: whether the last steps have a lower order in any case. Without it they have one, as in
            diffusers, only where the number of evaluations is no multiple of the order, or the end is clean.

    Raises:
        ValueError: an argument out of its range.

    Cost: as many evaluations a step as its order.
    """
    _check(variable, order, weights)
    build = partial(_singlestep_on_grid, variable=variable, order=order, weights=weights,
                    lower_order_final=lower_order_final)
    return Solver(f"published-singlestep-{variable}-{order}", order, build, variable, grid="linspace",
                  end="clean" if variable == "data" else "minimum", rule=_singlestep_rule(weights),
                  source=_SOURCE.format("Singlestep"))


_MAKERS: dict[str, tuple[Callable[..., Solver], str, int]] = {
    "dpm-solver-1": (published_multistep, "noise", 1), "dpm-solver-2": (published_singlestep, "noise", 2),
    "dpm-solver-3": (published_singlestep, "noise", 3), "dpm-solver-2m": (published_multistep, "noise", 2),
    "dpm-solver-3m": (published_multistep, "noise", 3), "dpm-solver++-2s": (published_singlestep, "data", 2),
    "dpm-solver++-3s": (published_singlestep, "data", 3),
    "dpm-solver++-2m": (published_multistep, "data", 2), "dpm-solver++-3m": (published_multistep, "data", 3),
    **{solver.name: (sde_dpm_solver, solver.variable, solver.order) for solver in SDE_DPM_SOLVER},
}


def solver_with_weights(name: str, weights: str | None) -> Solver:
    """Look a fixed-grid solver up by name, with the weights that are asked for.

    Args:
        name: a name out of :data:`samplers.registry.SOLVERS`.
        weights: None for the solver as it is, "exact" for exact quadrature in its place, or one of ``WEIGHTS``.

    Raises:
        ValueError: an unknown name or weights, an adaptive solver, or a solver that has no such weights.
    """
    solver = solver_named(name)
    if not isinstance(solver, Solver):
        raise ValueError(f"solver={name!r} chooses its own steps, which a scheduler cannot: choose another")
    if solver.enter is not None:
        raise ValueError(f"solver={name!r} takes its first step before the first evaluation, and a pipeline knows no "
                         "such step: leave '+afs' out")
    if weights is None:
        return solver
    if weights == "exact" and name in FAMILY:
        return with_rule(solver, "exact")
    if weights == "exact" and solver not in SDE_DPM_SOLVER:
        return solver
    if weights not in (*WEIGHTS, "exact"):
        raise ValueError(f"weights={weights!r}: choose 'exact', {' or '.join(map(repr, WEIGHTS))}")
    if name not in _MAKERS:
        raise ValueError(f"weights={weights!r} are not published for solver={name!r}: choose 'exact', or one of "
                         f"{', '.join(_MAKERS)}")
    make, variable, order = _MAKERS[name]
    return make(variable, order, weights)


def singlestep_orders_on_grid(nfe: int, order: int, *, lower_order_final: bool, zero_end: bool) -> list[int]:
    """Orders of steps that spend ``nfe`` evaluations, as ``DPMSolverSinglestepScheduler.get_order_list`` counts them.

    Raises:
        ValueError: ``nfe`` is no multiple of the order, or the end is clean, without lower orders at the end.
    """
    if not lower_order_final and order > 1:
        if zero_end or nfe % order:
            raise ValueError(f"nfe={nfe}: without lower_order_final a solver of order {order} needs a multiple of "
                             f"{order} evaluations and an end with noise (final_sigmas_type='sigma_min')")
        return [order] * (nfe // order)
    if order == 3:
        orders = [3] * (nfe // 3 - 1) + [2, 1] if nfe % 3 == 0 else [3] * (nfe // 3) + [nfe % 3]
    elif order == 2:
        orders = [2] * (nfe // 2 - 1) + [1, 1] if nfe % 2 == 0 else [2] * (nfe // 2) + [1]
    else:
        orders = [1] * nfe
    if zero_end and orders[-1] > 1:
        orders = orders[:-1] + [orders[-1] - 1, 1]
    return orders


def _check(variable: str, order: int, weights: str) -> None:
    if variable not in ("data", "noise"):
        raise ValueError(f"variable={variable!r}: choose 'data' or 'noise'")
    if order not in (1, 2, 3):
        raise ValueError(f"order={order!r}: choose 1, 2 or 3")
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r}: choose one of {', '.join(WEIGHTS)}")


def _multistep(
    path: Path, nfe: int, *, variable: str, order: int, rule: str, taper_below: int, euler_at_final: bool
) -> tuple[tuple[Row, ...], list[float]]:
    times = path.times(nfe)
    chosen = path.variable(variable)
    orders = multistep_orders([chosen.at_time(t).clock for t in times], order, taper=nfe < taper_below)
    if euler_at_final:
        orders[-1] = 1
    return exponential_multistep(chosen, times, orders, rule=RULES[rule]), times


def _singlestep_on_grid(
    path: Path, nfe: int, *, variable: str, order: int, weights: str, lower_order_final: bool
) -> tuple[tuple[Row, ...], list[float]]:
    times = path.times(nfe)
    chosen = path.variable(variable)
    nodes = [chosen.at_time(t) for t in times]
    zero_end = math.isinf(nodes[-1].clock)
    lower = lower_order_final or zero_end or nfe % order != 0
    orders = singlestep_orders_on_grid(nfe, order, lower_order_final=lower, zero_end=zero_end)
    ends = [sum(orders[: i + 1]) for i in range(len(orders))]
    steps = [nodes[end - k: end + 1] for k, end in zip(orders, ends, strict=True)]
    return exponential_singlestep(chosen, steps, rule=RULES[_singlestep_rule(weights)]), times


def _singlestep_rule(weights: str) -> str:
    """The third-order "heun" update is the exact quadrature of its three predictions."""
    return "singlestep-midpoint" if weights == "midpoint" else "exact"
