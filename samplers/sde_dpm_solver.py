"""SDE-DPM-Solver and SDE-DPM-Solver++: the exponential schemes of DPM-Solver on the reverse SDE.

Multistep solvers of orders one to three, and the solver of two stages a step. Other code calls them
dpmpp_2m_sde, dpmpp_3m_sde and dpmpp_sde (k-diffusion), or algorithm types "sde-dpmsolver" and
"sde-dpmsolver++" (diffusers). diffusers has no third order of the first; in that of the second one half of
the weight of the second difference has the wrong sign, so that its order is one.

An ``order`` here is that of the drift. A step does not see what its own noise does to the prediction: a path
is met with order one. The mean and the variance of normally distributed data are of order two.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from odecore.plan import Row
from odecore.schemes.exponential import inner_nodes
from samplers.dpm_solver import RULES, TAPER_BELOW, orders_on_path
from samplers.multistep import step_orders
from samplers.reverse_sde import ancestral_strength, reverse_multistep, reverse_singlestep
from samplers.solver import Path, Solver

WEIGHTS = ("midpoint", "heun", "exact")
"""Published quadratures (diffusers' and k-diffusion's ``solver_type``), and the exact one."""

_LU_PLUS = "Lu et al. 2022, arXiv:2211.01095"
_K_DIFFUSION = "k-diffusion, after Lu et al. 2022, arXiv:2211.01095"


def sde_dpm_solver(
    variable: str, order: int, weights: str = "midpoint", *, eta: float = 1.0, s_noise: float = 1.0,
    lower_order_final: bool = True,
) -> Solver:
    """Build the multistep solver of one order.

    Args:
        variable: "data" (SDE-DPM-Solver++) or "noise" (SDE-DPM-Solver).
        order: 1, 2 or 3.
        weights: of the differences of predictions: "midpoint" takes half the zeroth moment for the first moment where
            there are two predictions, "heun" the exact one; both take half the exact weight of a second difference.
            "exact" is the quadrature of the polynomial. With half the weight the order is two, also for three
            predictions; yet with few evaluations it errs less (10 on the embedded EDM model: Fréchet distance 17
            in place of 27, and 6 for two predictions with "midpoint").
        eta: strength η of the noise, k-diffusion's ``eta``: 1 reverses the forward process, 0 is the ODE solver.
        s_noise: factor of the noise; only 1 keeps the marginals.
        lower_order_final: whether the last two steps lower their order where fewer than 15 evaluations are spent. A
            step to σ = 0 has order one in any case.

    Raises:
        ValueError: an argument out of its range.

    Cost: one evaluation and one normal draw a step.

    Source: Lu et al. 2022, arXiv:2211.01095, section 5; for "noise" and the third order the same derivation.
    """
    if variable not in ("data", "noise"):
        raise ValueError(f"variable={variable!r}: choose 'data' or 'noise'")
    if isinstance(order, bool) or order not in (1, 2, 3):
        raise ValueError(f"order={order!r}: choose 1, 2 or 3")
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r}: choose one of {', '.join(WEIGHTS)}")
    build = partial(_multistep, variable=variable, order=order, rule=_rule(weights), eta=_scale("eta", eta),
                    s_noise=_scale("s_noise", s_noise), taper_below=TAPER_BELOW if lower_order_final else 0)
    name = f"sde-dpm-solver{'++' if variable == 'data' else ''}-{order}{'m' if order > 1 else ''}"
    converges = order if weights == "exact" else min(order, 2)
    return Solver(name, converges, build, variable, end="clean" if variable == "data" else "minimum",
                  sigma_grid="log-snr" if variable == "data" and order == 3 else "karras", rule=None,
                  stochastic=eta > 0.0, source=_LU_PLUS)


def dpmpp_sde(*, eta: float = 1.0, s_noise: float = 1.0) -> Solver:
    """Build the solver of two stages a step, the inner one at half the step.

    k-diffusion draws the noise of the stage and of the end from one Brownian path in σ. Here the end goes on
    from the noise of its stage, and adds a draw of its own: that is the joint law of the reverse SDE itself,
    whose Brownian path runs in (α/σ)². Each of the two has the variance that k-diffusion gives it.

    Args:
        eta: from 0, the ODE solver, to 1; a step adds ``η σ_t sqrt(1 - e^{-2h})`` of noise, as in k-diffusion.
        s_noise: factor of the noise; only 1 keeps the marginals.

    Raises:
        ValueError: an argument out of its range.

    Cost: two evaluations and normal draws a step; one for a step to σ = 0, from pure noise, or for what is left over.

    Source: DPM-Solver++ (2S) of Lu et al. 2022, arXiv:2211.01095, on the SDE; k-diffusion's ``sample_dpmpp_sde``,
        diffusers' ``DPMSolverSDEScheduler``.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta={eta!r}: choose a number from 0 to 1; beyond, a step has no noise left to replace")
    build = partial(_two_stages, eta=float(eta), s_noise=_scale("s_noise", s_noise))
    return Solver("dpmpp-sde", 2, build, "data", stochastic=eta > 0.0, source=_K_DIFFUSION)


def _multistep(
    path: Path, nfe: int, *, variable: str, order: int, rule: str, eta: float, s_noise: float, taper_below: int
) -> tuple[tuple[Row, ...], list[float]]:
    times = path.times(nfe)
    orders = step_orders(path, variable, times, order, taper_below=taper_below)
    return reverse_multistep(path.variable(variable), times, orders, [eta] * nfe, rule=RULES[rule],
                             s_noise=s_noise), times


def _two_stages(path: Path, nfe: int, *, eta: float, s_noise: float) -> tuple[tuple[Row, ...], list[float]]:
    variable, orders = path.variable("data"), orders_on_path(path, nfe, 2)
    times = path.times(len(orders))
    rows: list[Row] = []
    for t, s, order in zip(times[:-1], times[1:], orders, strict=True):
        nodes = inner_nodes(variable, t, s, (0.5,) if order == 2 else ())
        rows += reverse_singlestep(variable, nodes, ancestral_strength(eta), rule=RULES["singlestep-midpoint"],
                                   s_noise=s_noise)
    return tuple(rows), times


def _rule(weights: str) -> str:
    return "exact" if weights == "exact" else f"multistep-{weights}"


def _scale(name: str, value: float) -> float:
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name}={value!r}: give a finite number, at least 0")
    return float(value)


SDE_DPM_SOLVER = tuple(
    sde_dpm_solver(variable, k, "midpoint" if k == 2 else "exact") for variable in ("noise", "data") for k in (1, 2, 3))
DPMPP_SDE = (
    dpmpp_sde(),
    *(replace(sde_dpm_solver("data", k, "heun", lower_order_final=False), name=name, source=_K_DIFFUSION)
      for k, name in ((2, "dpmpp-2m-sde-heun"), (3, "dpmpp-3m-sde"))),
)
"""k-diffusion's; its dpmpp_2m_sde with the midpoint rule is "sde-dpm-solver++-2m"."""
