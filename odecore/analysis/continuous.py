"""Continuous extensions of Runge–Kutta methods: weights of stages at any time within a step, by order conditions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from odecore.analysis.trees import Rows, conditions, square

_ROUNDING = 1e-10


def continuous_weights(
    a: Sequence[Rows], b: Sequence[float], order: int, *, response: Sequence[float] = ()
) -> tuple[tuple[float, ...], ...]:
    """Find the smoothest polynomials ``b_i(θ) = Σ_j B_ji θ^j`` of degree p with an order of p at any time.

    Of all that satisfy these linear equations, they have the least ``Σ B_ji²``::

        Σ_i b_i(θ) Φ_i(τ) = θ^{|τ|} / γ(τ)    for the trees τ of up to p nodes
        b_i(1) = b_i      b_i'(0) = [i = 1]      b_i'(1) = [i = s]

    so that the pieces of a solution meet, and with equal slopes where the first stage is the slope
    at the start and the last one that at the end. Slopes of implicit stages stay bounded where a problem
    is stiff, and so does the polynomial. Where the first slope is not, because it is evaluated at a state
    that is off the slow solution, it must not enter: with the response of :func:`stiff_response`
    ``Σ_i b_i(θ) response_i = 0`` takes the place of ``b_i'(0)``.

    Args:
        a: rows of the tableau; one tableau for each part of an additive method, whose parts share the weights.
        b: weights of the result.
        order: p.
        response: of the stages' slopes to the first one; none if that is bounded.

    Returns:
        B: one row for each power of θ, one entry a stage.

    Raises:
        ValueError: the stages admit no such weights.

    Source: Owren & Zennaro 1992, Derivation of efficient, continuous, explicit Runge–Kutta methods,
        doi:10.1137/0913084.
    """
    stages, powers = len(b), np.arange(1, order + 1)
    rows: list[NDArray[np.float64]] = []
    values: list[float] = []
    for nodes in range(1, order + 1):
        for condition in conditions(a, nodes):
            for power in powers:
                rows.append(np.outer(powers == power, condition.weights).ravel())
                values.append(condition.value if power == nodes else 0.0)
    if response:
        rows += [np.outer(powers == power, response).ravel() for power in powers]
        values += [0.0] * order
    for i in range(stages):
        unit = np.arange(stages) == i
        ends = [(powers**0, b[i]), (powers, float(i == stages - 1))] + [(powers == 1, float(i == 0))] * (not response)
        rows += [np.outer(of_powers, unit).ravel() for of_powers, _ in ends]
        values += [value for _, value in ends]
    found = _least(np.stack(rows).astype(np.float64), np.array(values), order)
    return tuple(map(tuple, found.reshape(order, stages).tolist()))


def stiff_response(a: Rows) -> tuple[float, ...]:
    """How much the slopes of implicit stages change with the first, explicit one where a problem is stiff.

    Stages on the slow solution, ``Y_i = y + h Σ_j a_ij k_j``, undo a change of k_1 by changes of the others::

        response_1 = 1        Σ_j a_ij response_j = 0    for i > 1

    Args:
        a: rows of the implicit part.
    """
    matrix = square(a)
    return (1.0, *np.linalg.solve(matrix[1:, 1:], -matrix[1:, 0]).tolist())


def closing_row(a: Sequence[Rows], order: int, diagonal: float) -> tuple[float, ...]:
    """Find the row of one more stage, at the end of the step, that is implicit in one part of a method.

    Its state is that of the solution up to O(h^{p+1}); of all such rows it has the least ``Σ w_i²``::

        Σ_i w_i Φ_i(τ) + γ |τ| / γ(τ) = 1 / γ(τ)    for the trees τ of up to p nodes

    where ``|τ| / γ(τ)`` is Φ(τ) of the stage itself, whose slope has no :func:`stiff_response`.

    Args:
        a: rows of the tableau of each part, the one that is implicit last.
        order: p.
        diagonal: γ.

    Returns:
        w, one entry for each stage before it.

    Raises:
        ValueError: the stages admit no such row.
    """
    wanted = [(condition.weights, condition.value * (1 - nodes * diagonal))
              for nodes in range(1, order + 1) for condition in conditions(a, nodes)]
    wanted.append((np.array(stiff_response(a[-1])), 0.0))
    return tuple(_least(np.stack([w for w, _ in wanted]), np.array([v for _, v in wanted]), order).tolist())


def _least(system: NDArray[np.float64], right: NDArray[np.float64], order: int) -> NDArray[np.float64]:
    """The least solution of linear equations that have one."""
    found: NDArray[np.float64] = np.linalg.lstsq(system, right, rcond=1e-12)[0].astype(np.float64)
    if np.abs(system @ found - right).max() > _ROUNDING:
        raise ValueError(f"order={order}: the stages admit no weights of this order; ask for a lower one, or add a "
                         "stage")
    return found
