"""Explicit Runge–Kutta schemes in any variable (Lawson's integrating factor where the rate is not zero)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from odecore.explicit.tableaus import Tableau
from odecore.plan import Row, Weight
from odecore.schemes.variable import Node, Variable


def runge_kutta(variable: Variable, times: Sequence[float], tableaus: Sequence[Tableau]) -> tuple[Row, ...]:
    """Turn a grid into the rows of explicit Runge–Kutta steps.

    With ``dy/dτ = c e^{rate τ} m`` and ``x = s y``, stage i of a step is
    ``x_i = (scale_i/scale_0) x_0 + gain_i h Σ_j a_ij e^{-rate (τ_i-τ_j)} m_j``.

    Args:
        variable: the change of variables; rate 0 gives the classical methods, else Lawson's.
        times: N + 1 network times.
        tableaus: one for each of the N steps.

    Raises:
        ValueError: lengths that do not fit.

    Cost: ``tableau.stages`` evaluations a step.

    Source: Lawson 1967, doi:10.1137/0704033.
    """
    if len(tableaus) != len(times) - 1:
        raise ValueError(f"tableaus has {len(tableaus)} entries for {len(times) - 1} steps: give one a step")
    rows = []
    for t_start, t_end, tableau in zip(times[:-1], times[1:], tableaus, strict=True):
        start, end = variable.at_time(t_start), variable.at_time(t_end)
        h = end.clock - start.clock
        if not math.isfinite(h):
            raise ValueError(f"the step from t={t_start} to t={t_end} is infinitely long in the solver's clock: "
                             "choose an exponential solver, or times short of that end")
        stages = [start if c == 0.0 else end if c == 1.0 else variable.at_clock(start.clock + c * h) for c in tableau.c]
        for i, stage in enumerate(stages):
            last = i == len(stages) - 1
            target, coefficients = (end, tableau.b) if last else (stages[i + 1], tableau.a[i + 1])
            weights = [_stage_weight(variable, stages[j], target, h * coefficients[j]) for j in range(i + 1)]
            combination: tuple[Weight, ...] = (variable.decay(start, target), 0.0, *reversed(weights))
            to_prediction = variable.to_prediction(stage.t)
            if last:
                rows.append(Row(stage.t, end.t, to_prediction, combination))
            else:
                rows.append(Row(stage.t, start.t, to_prediction, point=combination))
    return tuple(rows)


def _stage_weight(variable: Variable, source: Node, target: Node, weight: float) -> Weight:
    """``gain_target e^{-rate (τ_target - τ_source)} weight``."""
    exponent = -variable.rate * (target.clock - source.clock)
    return target.gain * weight * (math.exp(exponent) if isinstance(exponent, float) else exponent.exp())
