"""Adams–Bashforth methods: on ε over ρ = σ/α, k-diffusion's linear multistep solver, and on velocity over flow time.

Three names of the field are one method: LMS (polynomials in σ, where α = 1), ρAB-DEIS (polynomials in
ρ) and iPNDM_v (iPNDM with the weights of its actual nodes).
"""

from __future__ import annotations

from functools import partial

from samplers.multistep import checked_order, multistep
from samplers.solver import Solver


def lms(order: int, *, taper_below: int = 0) -> Solver:
    """Build the linear multistep solver of one order.

    ``x_{i+1}/α_{i+1} = x_i/α_i + ∫ p(ρ) dρ`` from ρ_i to ρ_{i+1}, with p the polynomial in ρ through
    the ``order`` newest predictions of ε; the order rises with the history.

    Args:
        order: 1 to 4; 1 is Euler's method, which is DDIM.
        taper_below: the order falls over the last steps where fewer evaluations than this are spent.

    Raises:
        ValueError: an order out of range.

    Cost: one evaluation a step.

    Source: k-diffusion's ``sample_lms``; ρAB-DEIS, Zhang & Chen 2022, arXiv:2204.13902, section 3.3.
    """
    build = partial(multistep, variable="plain", order=checked_order(order), taper_below=taper_below)
    return Solver(f"lms-{order}", order, build, "plain", grid="karras", source="Zhang & Chen 2022, arXiv:2204.13902")


def flow_ab(order: int) -> Solver:
    """Build the linear multistep solver of one order on the velocity of a rectified flow.

    ``x_{i+1}/(α+σ)_{i+1} = x_i/(α+σ)_i + ∫ p(τ) dτ`` from τ_i to τ_{i+1}, with τ = σ/(α+σ) and p the polynomial in
    τ through the ``order`` newest predictions of ``ε - x0``. Both ends are finite: no order falls there.

    Args:
        order: 2 to 4; order 1 is DDIM.

    Raises:
        ValueError: an order out of range.

    Cost: one evaluation a step.

    Source: azula's ``vABSampler``.
    """
    build = partial(multistep, variable="flow", order=checked_order(order))
    return Solver(f"flow-ab-{order}", order, build, "flow", "time", source="azula, vABSampler")


FLOW_AB = tuple(flow_ab(k) for k in (2, 3, 4))
LMS = tuple(lms(k) for k in (2, 3, 4))
