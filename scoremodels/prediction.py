"""What a network predicts, and the affine maps between the kinds of prediction.

With ``x = α x0 + σ ε`` each kind is a linear combination of x0 and ε, so that any kind follows from
the state and any other kind:

=================  ==========================================================================
``epsilon``        ε                                  (DDPM, Ho et al. 2020, arXiv:2006.11239)
``sample``         x0
``v_prediction``   α ε - σ x0                   (Salimans & Ho 2022, arXiv:2202.00512)
``flow``           ε - x0                       (rectified flow, Liu et al. 2022, arXiv:2209.03003)
``score``          -ε / σ                       (Song et al. 2021, arXiv:2011.13456)
``edm``            F of ``x0 = c_skip x + c_out F``   (EDM, Karras et al. 2022, arXiv:2206.00364, eq. 7)
``edm_v``          -F, as networks trained in EDM's σ with v-prediction give it
=================  ==========================================================================
"""

from __future__ import annotations

import math

PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow", "score", "edm", "edm_v")


def conversion(
    source: str, target: str, alpha: float, sigma: float, *, sigma_data: float = 1.0
) -> tuple[float, float]:
    """Give (a, b) of ``target = a x + b raw``, where the network's raw output is of kind ``source``.

    Args:
        source: what the network predicts, one of ``PREDICTIONS``.
        target: what is wanted, one of ``PREDICTIONS``.
        alpha: signal scale α ≥ 0 of the state x = α x0 + σ ε.
        sigma: noise scale σ ≥ 0, not zero together with α.
        sigma_data: standard deviation of the data that the kinds "edm" and "edm_v" assume.

    Returns:
        a and b, finite.

    Raises:
        ValueError: an unknown kind, α or σ out of range, or ``target`` is not determined by x and
            raw: x0 from ε where α = 0, ε from x0 where σ = 0, any other kind's score where σ = 0.
    """
    for argument, kind in (("source", source), ("target", target)):
        if kind not in PREDICTIONS:
            raise ValueError(f"{argument}={kind!r} is unknown: choose one of {', '.join(PREDICTIONS)}")
    if not (0.0 <= alpha < math.inf and 0.0 <= sigma < math.inf and alpha + sigma > 0.0):
        raise ValueError(f"alpha={alpha}, sigma={sigma}: both must be finite and at least 0, and not both 0")
    if not 0.0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data={sigma_data}: give a positive standard deviation")
    if source == target:
        return 0.0, 1.0
    p, q, unit = _combination(source, alpha, sigma, sigma_data)
    p_target, q_target, unit_target = _combination(target, alpha, sigma, sigma_data)
    mismatch = p_target * q - q_target * p
    determinant = alpha * q - sigma * p
    if unit_target > 0.0 and mismatch == 0.0:
        return 0.0, (q_target / q if q else p_target / p) * unit / unit_target
    if unit_target == 0.0 or determinant == 0.0:
        raise ValueError(f"source={source!r} does not determine target={target!r} at alpha={alpha}, sigma={sigma}: "
                         "keep away from that end of the schedule, or choose a solver in another variable")
    a = mismatch / determinant
    b = (alpha * q_target - sigma * p_target) / determinant
    return a / unit_target, b * unit / unit_target


def _combination(kind: str, alpha: float, sigma: float, sigma_data: float) -> tuple[float, float, float]:
    """(p, q, m) of ``m raw = p x0 + q ε``; m is there so that no entry is infinite at an end."""
    match kind:
        case "epsilon":
            return 0.0, 1.0, 1.0
        case "sample":
            return 1.0, 0.0, 1.0
        case "v_prediction":
            return -sigma, alpha, 1.0
        case "flow":
            return -1.0, 1.0, 1.0
        case "score":
            return 0.0, -1.0, sigma
        case _:
            # F = ((ρ/σ_d) x0 - σ_d ε) / sqrt(ρ² + σ_d²) with ρ = σ/α, here multiplied through by α.
            sign = 1.0 if kind == "edm" else -1.0
            return sign * sigma / sigma_data, -sign * alpha * sigma_data, math.hypot(sigma, alpha * sigma_data)
