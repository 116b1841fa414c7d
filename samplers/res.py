"""RES, the refined exponential solver: exponential methods on x0 over log-SNR, of proven stiff order.

Of the four names of the field two are other methods of this library: res-2s is DPM-Solver++ 2S with exact
quadrature, as ``dpm-solver++-2s`` has it, and res-2m is DPM-Solver++ 2M with exact quadrature in place of
the published weights. The third-order ones meet the order conditions in φ_2 alone, and are their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

from odecore.exponential.phi_sums import varphi
from odecore.exponential.tableaus import ExponentialTableau
from odecore.phi import exponential_weights
from odecore.plan import Row, Weight
from odecore.schemes import exponential_multistep, exponential_runge_kutta
from samplers.dpm_solver import PLUS_PLUS, TAPER_BELOW, orders_on_path, with_rule
from samplers.multistep import multistep
from samplers.solver import Path, Solver

_SOURCE = "Zhang et al. 2023, arXiv:2308.02157"

_P1, _P2, _H1, _H2 = varphi(1), varphi(2), varphi(1, 0.5), varphi(2, 0.5)
_LAST = 2 * _H2 + 2 * _P2
RES_2S = ExponentialTableau(((), (0.5 * _H1,)), (_P1 - 2 * _P2, 2 * _P2), 2, 2,
                            source="Hochbruck & Ostermann 2005, doi:10.1137/040611434, with c = (0, 1/2)")
RES_3S = ExponentialTableau(((), (0.5 * _H1,), (_P1 - _LAST, _LAST)),
                            (_P1 - 5 / 3 * _P2, 4 / 3 * _P2, 1 / 3 * _P2), 3, 3,
                            source="Hochbruck & Ostermann 2005, doi:10.1137/040611434, with c = (0, 1/2, 1)")
_TABLEAUS = {2: RES_2S, 3: RES_3S}


def slopes_in_phi_2(offsets: Sequence[float], h: float, rate: Weight) -> tuple[Weight, ...]:
    """Weigh three predictions so that the condition of order three holds without φ_3; fewer, by exact quadrature.

    With z = -rate h and c_i the offsets over h, ``b_2 = φ_2(z) (2 - 3 c_3)/(3 c_2 (c_2 - c_3))``, b_3 likewise
    with the two exchanged, and ``b_1 = φ_1(z) - b_2 - b_3``: the sum is exact, so is the first moment, and the
    second moment is exact for z = 0 (Hochbruck & Ostermann's weakened condition, ψ_3(0) = 0). ComfyUI's res_3m has
    c_3³ for c_3² in that condition, which holds for c_3 = 1 alone, and is of order two.
    """
    if len(offsets) != 3:
        return exponential_weights(offsets, h, rate)
    _, c2, c3 = (u / h for u in offsets)
    (total,), (_, first) = exponential_weights((0.0,), h, rate), exponential_weights((0.0, h), h, rate)
    b2 = first * (2.0 - 3.0 * c3) / (3.0 * c2 * (c2 - c3))
    b3 = first * (2.0 - 3.0 * c2) / (3.0 * c3 * (c3 - c2))
    return total - b2 - b3, b2, b3


def _singlestep(path: Path, nfe: int) -> tuple[tuple[Row, ...], list[float]]:
    """Steps of three stages, lower orders for what is left over, and order one where a step is infinitely long."""
    orders, data = orders_on_path(path, nfe, 3), path.variable("data")
    times = path.times(len(orders))
    rows: list[Row] = []
    for order, step in zip(orders, pairwise(times), strict=True):
        rows += (exponential_runge_kutta(data, step, [_TABLEAUS[order]]) if order > 1 else
                 exponential_multistep(data, step, [1]))
    return tuple(rows), times


RES_3S_SOLVER = Solver("res-3s", 3, _singlestep, "data", source=_SOURCE)
RES_2M = replace(with_rule(next(s for s in PLUS_PLUS if s.name == "dpm-solver++-2m"), "exact"), name="res-2m",
                 source=_SOURCE)
RES_3M = Solver(
    "res-3m", 3, partial(multistep, variable="data", order=3, rule=slopes_in_phi_2, taper_below=TAPER_BELOW), "data",
    sigma_grid="log-snr", rule=None, source=_SOURCE)
RES = (RES_3S_SOLVER, RES_2M, RES_3M)
