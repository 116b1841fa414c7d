"""iPNDM: Adams–Bashforth on ε over ρ = σ/α, with the weights of equal steps on whatever grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from odecore.phi import exponential_weights
from odecore.plan import Weight
from samplers.multistep import checked_order, multistep
from samplers.solver import Solver


def equal_steps(offsets: Sequence[float], h: float, rate: Weight) -> tuple[Weight, ...]:
    """Weigh predictions as if they had been made one step length apart, wherever they were made.

    For rate 0 these are h times the Adams–Bashforth weights: 1; 3/2, -1/2; 23/12, -16/12, 5/12; …
    """
    weights: tuple[Weight, ...] = exponential_weights([-h * j for j in range(len(offsets))], h, rate)
    return weights


def ipndm(order: int, *, taper_below: int = 0) -> Solver:
    """Build iPNDM with as many predictions as ``order``.

    ``x_{i+1}/α_{i+1} = x_i/α_i + (ρ_{i+1} - ρ_i) Σ_j b_j ε_{i-j}`` with the Adams–Bashforth weights b.
    On a grid even in ρ it is of that order. On any other smooth grid the mean of ε over a step is
    taken with respect to the step's number, not to ρ, and the order of convergence is two at most;
    with few evaluations that is no handicap: the weights are smaller than those of the actual nodes
    where steps shrink, and amplify less.

    Args:
        order: 1 to 4; 1 is Euler's method, which is DDIM.
        taper_below: the order falls over the last steps where fewer evaluations than this are spent.

    Raises:
        ValueError: an order out of range.

    Cost: one evaluation a step.

    Source: Zhang & Chen 2022, arXiv:2204.13902, equation 18 ff.; after PNDM, Liu et al. 2022,
        arXiv:2202.09778, whose Runge–Kutta start it leaves out.
    """
    build = partial(multistep, variable="plain", order=checked_order(order), rule=equal_steps, taper_below=taper_below)
    grid = "log-snr" if order == 4 else "karras"  # as measured on the embedded DDPM and flow models
    return Solver(f"ipndm-{order}", min(order, 2), build, "plain", grid, rule=None,
                  source="Zhang & Chen 2022, arXiv:2204.13902")


IPNDM = tuple(ipndm(k) for k in (2, 3, 4))
