"""Exponential multistep and singlestep schemes: interpolate the prediction, integrate the kernel exactly."""

from __future__ import annotations

from collections.abc import Sequence

from odecore.phi import exponential_weights
from odecore.plan import Row, Weight
from odecore.schemes.variable import Node, Rule, Variable


def exponential_multistep(
    variable: Variable, times: Sequence[float], orders: Sequence[int], *, rule: Rule = exponential_weights
) -> tuple[Row, ...]:
    """Turn a grid into the rows of an exponential Adams–Bashforth scheme.

    Step i interpolates the ``orders[i]`` newest predictions by a polynomial p in the clock and takes
    ``x_{i+1} = (scale_{i+1}/scale_i) x_i + gain_{i+1} ∫_0^h e^{-rate (h-u)} p(u) du``. For rate 0
    this is variable-step Adams–Bashforth.

    Args:
        variable: the change of variables.
        times: N + 1 network times.
        orders: N orders, ``orders[i]`` between 1 and i + 1.
        rule: weights of the quadrature; the default is exact.

    Raises:
        ValueError: lengths that do not fit, or an order above the number of predictions made.

    Cost: one evaluation a step.

    Source: Hochbruck & Ostermann 2010, Exponential integrators, doi:10.1017/S0962492910000048.
    """
    if len(orders) != len(times) - 1:
        raise ValueError(f"orders has {len(orders)} entries for {len(times) - 1} steps: give one a step")
    nodes = [variable.at_time(t) for t in times]
    rows = []
    for i, order in enumerate(orders):
        if not 1 <= order <= i + 1:
            raise ValueError(f"orders[{i}]={order}: step {i} can use between 1 and {i + 1} predictions")
        start, end = nodes[i], nodes[i + 1]
        offsets = [nodes[i - j].clock - start.clock for j in range(1, order)]
        decay, weights = variable.propagator(start, end, (0.0, *offsets), rule)
        rows.append(Row(start.t, end.t, variable.to_prediction(start.t), (decay, 0.0, *weights)))
    return tuple(rows)


def exponential_singlestep(
    variable: Variable, steps: Sequence[Sequence[Node]], *, rule: Rule = exponential_weights
) -> tuple[Row, ...]:
    """Turn steps with inner stages into the rows of an exponential Runge–Kutta scheme.

    A step is given by its nodes: start, stages in the order of evaluation, end. The point at
    each node is reached from the step's start with the polynomial through all predictions that
    the step has made so far, so a step of k + 1 nodes has order k (with stages in clock order).

    Args:
        variable: the change of variables.
        steps: the nodes of each step; a step starts where the one before ended.
        rule: weights of the quadrature; the default is exact.

    Cost: ``len(step) - 1`` evaluations a step.

    Source: the stage structure of DPM-Solver, Lu et al. 2022, arXiv:2206.00927.
    """
    rows = []
    for nodes in steps:
        if len(nodes) < 2:
            raise ValueError(f"a step needs a start and an end, but one has {len(nodes)} node(s)")
        start = nodes[0]
        for j in range(len(nodes) - 1):
            current, target = nodes[j], nodes[j + 1]
            offsets = [node.clock - start.clock for node in nodes[: j + 1]]
            decay, weights = variable.propagator(start, target, offsets, rule)
            combination: tuple[Weight, ...] = (decay, 0.0, *reversed(weights))
            to_prediction = variable.to_prediction(current.t)
            if j == len(nodes) - 2:
                rows.append(Row(current.t, target.t, to_prediction, combination))
            else:
                rows.append(Row(current.t, start.t, to_prediction, point=combination))
    return tuple(rows)


def inner_nodes(variable: Variable, t_start: float, t_end: float, fractions: Sequence[float]) -> tuple[Node, ...]:
    """The nodes of one step whose stages lie at fractions of it in the clock."""
    start, end = variable.at_time(t_start), variable.at_time(t_end)
    h = end.clock - start.clock
    return (start, *(variable.at_clock(start.clock + r * h) for r in fractions), end)
