"""What multistep solvers share: steps whose order rises with the history."""

from __future__ import annotations

import math
from collections.abc import Sequence

from odecore.phi import exponential_weights
from odecore.plan import Row
from odecore.schemes import exponential_multistep
from odecore.schemes.variable import Rule
from samplers.dpm_solver import multistep_orders
from samplers.solver import Path

HIGHEST_ORDER = 4
"""Published orders end here; beyond, extrapolation amplifies the errors of the predictions."""

ALWAYS = 1 << 30
"""``taper_below`` for an order that always falls over the last steps."""


def checked_order(order: int) -> int:
    """Refuse an order that is no whole number from 1 to ``HIGHEST_ORDER``.

    Raises:
        ValueError: so it is.
    """
    if isinstance(order, bool) or not isinstance(order, int) or not 1 <= order <= HIGHEST_ORDER:
        raise ValueError(f"order={order!r}: choose a whole number between 1 and {HIGHEST_ORDER}")
    return order


def multistep(
    path: Path, nfe: int, *, variable: str, order: int, rule: Rule = exponential_weights, taper_below: int = 0
) -> tuple[tuple[Row, ...], list[float]]:
    """Build the rows of a multistep method.

    Args:
        path: the way to walk.
        nfe: number of steps.
        variable: "data", "noise" or "plain". In the last the clock ρ is finite at σ = 0, so that the
            order need not fall there.
        order: highest order.
        rule: weights of the quadrature.
        taper_below: the order falls over the last steps where fewer evaluations than this are spent.
    """
    times = path.times(nfe)
    orders = step_orders(path, variable, times, order, taper_below=taper_below)
    first = from_pure_noise(path, times) if variable == "plain" else ()
    done = len(first)
    if done == nfe:
        return first, times
    return first + exponential_multistep(path.variable(variable), times[done:], orders[done:], rule=rule), times


def step_orders(path: Path, variable: str, times: Sequence[float], order: int, *, taper_below: int = 0) -> list[int]:
    """Order of each step, see :func:`samplers.dpm_solver.multistep_orders`."""
    clocks = [path.variable(variable).at_time(t).clock for t in times]
    return multistep_orders(clocks, order, taper=len(times) - 1 < taper_below)


def starts_at_pure_noise(path: Path) -> bool:
    """Whether the path starts at ρ = ∞; known before its times are."""
    first = path.schedule.t_max if callable(path.grid) else float(path.grid[0])
    return math.isinf(path.schedule.ratio(float(first)))


def from_pure_noise(path: Path, times: Sequence[float]) -> tuple[Row, ...]:
    """Build the first step if it starts at ρ = ∞: over x0, for which it is finite and the same; else nothing."""
    if path.schedule.alpha(times[0]) > 0.0:
        return ()
    return exponential_multistep(path.variable("data"), times[:2], [1])
