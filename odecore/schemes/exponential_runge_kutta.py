"""Exponential Runge–Kutta schemes: tableaux of φ-functions as rows of a plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odecore.exponential.phi_sums import PhiSum, evaluate
from odecore.exponential.tableaus import ExponentialTableau
from odecore.plan import Row, Weight
from odecore.schemes.variable import Variable


def exponential_runge_kutta(
    variable: Variable, times: Sequence[float], tableaus: Sequence[ExponentialTableau]
) -> tuple[Row, ...]:
    """Turn a grid into the rows of exponential Runge–Kutta steps.

    With z = -rate h, stage i of a step is ``x_i = (scale_i/scale_0) x_0 + gain_i h Σ_j a_ij(z) m_j``, and
    its end likewise with weights b. A rate that is a tensor gives each mode of a state its own weights.

    Args:
        variable: the change of variables; ``ode(symbol)`` for a semilinear problem whose linear part
            is diagonal.
        times: N + 1 network times.
        tableaus: one for each of the N steps; stages that only estimate the error are left out.

    Raises:
        ValueError: lengths that do not fit, or a step that is infinitely long in the clock.

    Cost: ``tableau.without_estimate.stages`` evaluations a step. Steps of one length
        share the weights of their predictions where the gain is 1, as it is in ``ode``.

    Source: Hochbruck & Ostermann 2010, Exponential integrators, doi:10.1017/S0962492910000048.
    """
    if len(tableaus) != len(times) - 1:
        raise ValueError(f"tableaus has {len(tableaus)} entries for {len(times) - 1} steps: give one a step")
    rows, weighed = [], _Weighed({})
    for t_start, t_end, method in zip(times[:-1], times[1:], tableaus, strict=True):
        tableau = method.without_estimate
        start, end = variable.at_time(t_start), variable.at_time(t_end)
        h = end.clock - start.clock
        if not math.isfinite(h):
            raise ValueError(f"the step from t={t_start} to t={t_end} is infinitely long in the solver's clock: "
                             "choose a first-order exponential solver, or times short of that end")
        values = weighed.at(tableau, h, variable.rate, max(abs(start.clock), abs(end.clock)))
        nodes = [start if c == 0.0 else end if c == 1.0 else variable.at_clock(start.clock + c * h) for c in tableau.c]
        for i, node in enumerate(nodes):
            last = i == tableau.stages - 1
            target, sums = (end, tableau.b) if last else (nodes[i + 1], tableau.a[i + 1])
            weights = [_scaled(target.gain, values[one]) if one else 0.0 for one in sums]
            combination: tuple[Weight, ...] = (variable.decay(start, target), 0.0, *reversed(weights))
            to_prediction = variable.to_prediction(node.t)
            if last:
                rows.append(Row(node.t, end.t, to_prediction, combination))
            else:
                rows.append(Row(node.t, start.t, to_prediction, point=combination))
    return tuple(rows)


def _scaled(gain: Weight, value: Weight) -> Weight:
    """The product; a factor of 1 shares the value."""
    return value if isinstance(gain, float) and gain == 1.0 else gain * value


@dataclass(frozen=True, slots=True)
class _Weighed:
    """The functions ``h f(-rate h)`` of tableaux, kept for steps of the same length."""

    kept: dict[ExponentialTableau, dict[float, Mapping[PhiSum, Weight]]]

    def at(self, tableau: ExponentialTableau, h: float, rate: Weight, largest: float) -> Mapping[PhiSum, Weight]:
        """The functions at a step; ``largest`` is the clock to whose rounding its length is known."""
        lengths = self.kept.setdefault(tableau, {})
        for length, values in lengths.items():
            if abs(length - h) <= 4 * math.ulp(largest):
                return values
        sums = tuple(dict.fromkeys(one for row in (*tableau.a, tableau.b) for one in row if one))
        if isinstance(rate, Tensor):
            wide = rate.to(torch.complex128 if rate.is_complex() else torch.float64)
            found: list[Weight] = [(h * value).to(rate.dtype) for value in evaluate(sums, -h * wide)]
        else:
            found = [h * value.item() for value in evaluate(sums, torch.tensor(-h * rate, dtype=torch.float64))]
        lengths[h] = dict(zip(sums, found, strict=True))
        return lengths[h]
