"""STORK-2: a stabilised Runge–Kutta step whose inner evaluations are read off a polynomial through past predictions.

In its flow form no inner state is ever evaluated, so that the many stages of a step are a quadrature of that
polynomial: a plan of one row a step, and a linear multistep method with a damped second difference.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from odecore.plan import Weight
from samplers.multistep import multistep
from samplers.solver import Solver

_PREDICTIONS = 3


def gegenbauer_moments(stages: int, count: int) -> list[float]:
    """Integrate ``θ^k`` over [0, 1], k = 0, 1, …, by a step of the second-order Runge–Kutta–Gegenbauer method.

    With ``b_0 = 1, b_1 = 1/3, b_j = 4 (j-1)(j+4)/(3 j (j+1)(j+2)(j+3))`` and ``w = 6/((s+4)(s-1))`` it is::

        Y_1 = w f_0,   Y_j = μ Y_{j-1} + ν Y_{j-2} + μ w (f_{j-1} - (1 - j (j+1) b_{j-1}/2) f_0)
        μ = (2j+1) b_j/(j b_{j-1}),   ν = -(j+1) b_j/(j b_{j-2})

    where f_j belongs to the stage's own place c_j, which the recurrence gives for f = 1. The zeroth and the first
    moment are exact; the second one tends to 1/4 with many stages, where the integral is 1/3.

    Source: Skaras et al. 2021, doi:10.1016/j.jcp.2020.109879.
    """
    def b(j: int) -> float:
        return (1.0, 1.0 / 3.0)[j] if j < 2 else 4.0 * (j - 1) * (j + 4) / (3.0 * j * (j + 1) * (j + 2) * (j + 3))

    def step(values: Sequence[float]) -> list[float]:
        reached = [0.0, width * values[0]]
        for j in range(2, stages + 1):
            mu, nu = (2 * j + 1) * b(j) / (j * b(j - 1)), -(j + 1) * b(j) / (j * b(j - 2))
            slope = values[j - 1] - (1.0 - j * (j + 1) * b(j - 1) / 2.0) * values[0]
            reached.append(mu * reached[-1] + nu * reached[-2] + mu * width * slope)
        return reached

    width = 6.0 / ((stages + 4) * (stages - 1))
    places = step([1.0] * stages)
    return [step([c**k for c in places[:-1]])[-1] for k in range(count)]


def gegenbauer(offsets: Sequence[float], h: float, rate: Weight, *, moments: Sequence[float]) -> tuple[Weight, ...]:
    """Weigh predictions by those moments of their Lagrange polynomials over a step, in place of exact ones."""
    weights = []
    for i, node in enumerate(offsets):
        coefficients = [1.0]  # of ∏ (h θ - v)/(u - v) in θ, lowest first
        for other in (*offsets[:i], *offsets[i + 1:]):
            shifted, scaled = [-other * c for c in coefficients], [h * c for c in coefficients]
            coefficients = [(low + high) / (node - other)
                            for low, high in zip([*shifted, 0.0], [0.0, *scaled], strict=True)]
        weights.append(h * math.fsum(c * m for c, m in zip(coefficients, moments, strict=False)))
    return tuple(weights)


def stork(stages: int = 50) -> Solver:
    """Build STORK-2 on the velocity of a rectified flow, to whose time any other schedule is translated.

    The velocity along a step is the polynomial through the three newest predictions, as Taylor's with differences
    for derivatives is, on any grid; the first steps take two and one. The published code starts with half a step
    instead, and evaluates the polynomial elsewhere than at the stages' own places, which costs it the second order.

    Args:
        stages: s of the Runge–Kutta–Gegenbauer method, at least 3.

    Raises:
        ValueError: an argument out of its range.

    Cost: one evaluation a step.

    Source: Tan et al. 2025, arXiv:2505.24210.
    """
    if isinstance(stages, bool) or not isinstance(stages, int) or stages < 3:
        raise ValueError(f"stages={stages!r}: give a whole number of at least 3")
    rule = partial(gegenbauer, moments=tuple(gegenbauer_moments(stages, _PREDICTIONS)))
    build = partial(multistep, variable="flow", order=_PREDICTIONS, rule=rule)
    return Solver("stork-2", 2, build, "flow", "time", rule=None, source="Tan et al. 2025, arXiv:2505.24210")


STORK = (stork(),)
