"""Adams schemes with a start of full order, and their predictor–corrector form."""

from __future__ import annotations

from collections.abc import Sequence

from odecore.explicit.tableaus import DOP853, DORMAND_PRINCE, EULER, HEUN, KUTTA3, RK4, Tableau
from odecore.exponential.tableaus import ExponentialTableau
from odecore.phi import exponential_weights
from odecore.plan import Row, Weight
from odecore.schemes.exponential_runge_kutta import exponential_runge_kutta
from odecore.schemes.runge_kutta import runge_kutta
from odecore.schemes.variable import Node, Rule, Variable

_STARTS = (EULER, HEUN, KUTTA3, RK4, DORMAND_PRINCE, DOP853)


def adams_bashforth(
    variable: Variable, times: Sequence[float], order: int, *, start: Tableau | ExponentialTableau | None = None,
    rule: Rule = exponential_weights,
) -> tuple[Row, ...]:
    """Turn a grid into the rows of an Adams–Bashforth scheme of one order from the first step on.

    ``x_{i+1} = (scale_{i+1}/scale_i) x_i + gain_{i+1} ∫_0^h e^{-rate (h-u)} p(u) du`` with p through the
    latest ``order`` predictions at grid points. The first ``order - 1`` steps are Runge–Kutta steps.
    :func:`exponential_multistep` starts with lower orders instead.

    Args:
        variable: the change of variables; ``ode()`` gives the classical scheme.
        times: N + 1 network times, on any grid.
        order: between 1 and 8, and at most N.
        start: Runge–Kutta method of the first steps, an exponential one where the rate is stiff; None for
            a classical one (Lawson's, with a rate) of the same order or more.
        rule: weights of the quadrature; the default is exact.

    Raises:
        ValueError: an order out of range, or too few times for it.

    Cost: one evaluation a step, and ``start.stages`` for each of the first ``order - 1``.

    Source: Hairer, Nørsett & Wanner 1993, Solving ordinary differential equations I, section III.1;
        Hochbruck & Ostermann 2010, doi:10.1017/S0962492910000048.
    """
    rows, nodes, made = _started(variable, times, order, order - 1, start)
    for i in range(order - 1, len(times) - 1):
        made.append(len(rows))
        weights = _weights(variable, nodes, i, made[-order:], len(rows), rule)
        rows.append(Row(times[i], times[i + 1], variable.to_prediction(times[i]), weights))
    return tuple(rows)


def adams_bashforth_moulton(
    variable: Variable, times: Sequence[float], order: int, *, start: Tableau | ExponentialTableau | None = None,
    rule: Rule = exponential_weights,
) -> tuple[Row, ...]:
    """Turn a grid into the rows of a predictor–corrector scheme (PECE).

    The predictor is the Adams–Bashforth step of ``order - 1`` predictions; the corrector integrates
    the polynomial through these and through the one at the predicted point. The next step evaluates
    anew at the corrected state. For order 2 this is Heun's method.

    Args:
        variable: the change of variables; ``ode()`` gives the classical scheme.
        times: N + 1 network times, on any grid.
        order: between 2 and 8, and at most N + 1.
        start: Runge–Kutta method of the first ``order - 2`` steps, as in :func:`adams_bashforth`.
        rule: weights of the quadrature; the default is exact.

    Raises:
        ValueError: an order out of range, or too few times for it.

    Cost: two evaluations a step, and ``start.stages`` for each of the first ``order - 2``.

    Source: as :func:`adams_bashforth`; the corrector of an exponential scheme as in UniPC, Zhao et al.
        2023, arXiv:2302.04867, which does not evaluate anew.
    """
    if order == 1:
        raise ValueError("order=1: a predictor–corrector scheme has order 2 or more; choose adams_bashforth")
    rows, nodes, made = _started(variable, times, order, order - 2, start)
    for i in range(order - 2, len(times) - 1):
        made.append(len(rows))
        known = made[-(order - 1):]
        predictor = _weights(variable, nodes, i, known, len(rows), rule)
        rows.append(Row(times[i], times[i], variable.to_prediction(times[i]), point=predictor))
        corrector = _weights(variable, nodes, i, [*known, len(rows)], len(rows), rule, implicit=True)
        rows.append(Row(times[i + 1], times[i + 1], variable.to_prediction(times[i + 1]), corrector))
    return tuple(rows)


def _started(
    variable: Variable, times: Sequence[float], order: int, steps: int,
    start: Tableau | ExponentialTableau | None,
) -> tuple[list[Row], list[Node], list[int]]:
    """Rows of the first steps, the nodes of the grid, and in which rows the predictions at them were made."""
    if order not in range(1, _STARTS[-1].order + 1):
        raise ValueError(f"order={order!r}: choose a whole number between 1 and {_STARTS[-1].order}")
    if len(times) < steps + 2:
        raise ValueError(f"times has {len(times)} entries: order {order} needs {steps + 2} or more, for {steps} "
                         "starting steps and one of its own")
    tableau = next(t for t in _STARTS if t.order >= order) if start is None else start
    if isinstance(tableau, ExponentialTableau):
        rows = list(exponential_runge_kutta(variable, times[:steps + 1], [tableau] * steps))
    else:
        rows = list(runge_kutta(variable, times[:steps + 1], [tableau] * steps))
    stages = len(rows) // max(steps, 1)
    return rows, [variable.at_time(t) for t in times], [stages * i for i in range(steps)]


def _weights(
    variable: Variable, nodes: Sequence[Node], step: int, made: Sequence[int], row: int, rule: Rule, *,
    implicit: bool = False,
) -> tuple[Weight, ...]:
    """Weights over (state, point, predictions of this and earlier rows) of the polynomial's integral.

    ``made`` lists the rows of the predictions at successive nodes, up to the start of the step or,
    with ``implicit``, its end.
    """
    latest = step + implicit
    used = nodes[latest - len(made) + 1: latest + 1]
    decay, weights = variable.propagator(nodes[step], nodes[step + 1], [n.clock - nodes[step].clock for n in used],
                                         rule)
    combination: list[Weight] = [decay, *[0.0] * (2 + row - made[0])]
    for place, weight in zip(made, weights, strict=True):
        combination[2 + row - place] = weight
    return tuple(combination)
