"""Derivatives for a multistep sampler from the history of network outputs, for ndo.py.

A step of DPM-Solver++(2M) in log-SNR λ extrapolates the prediction of the sample by ``m_i + d u``, with d from the two
newest predictions. Here d comes from two, from the parabola through three, or from an operator that was trained on
smooth functions at four times with random intervals; everything else is the same.
"""

from __future__ import annotations

import math

import torch
from claims import Claim
from torch import Tensor

from eval.trajectory import reference_solution, rms
from odecore.learn.fit import adam, fit
from odecore.learn.function_library import Library
from odecore.learn.operators import DerivativeOperator, slope_loss
from samplers import sample
from samplers.grids import karras
from samplers.noise import SampleNoise
from scoremodels.loaders import load
from scoremodels.model import ScoreModel

MODEL = "fashion-mnist-edm"
HISTORY = 4


def trained(steps: int, seed: int) -> DerivativeOperator:
    """An operator of four times, on smooth functions without noise."""
    library, operator = Library(HISTORY, waves=0.7, clean=1.0), DerivativeOperator(HISTORY, (64, 64), seed=seed)
    fit(operator, slope_loss, lambda step: library.sample(500, 10 * step + seed), steps=steps, optimizer=adam(3e-3))
    return operator.requires_grad_(False)


def slope(history: list[Tensor], clock: list[float], how: str, operator: DerivativeOperator) -> Tensor | None:
    """The derivative at the newest prediction; None where there is only one."""
    known = min(len(history), {"two": 2, "parabola": 3, "operator": HISTORY}[how])
    times = torch.tensor(clock[-known:], dtype=torch.float64)
    values = torch.stack(history[-known:], -1).double()
    if known == 1:
        return None
    if known == HISTORY:
        return operator.in_window(values, times)[..., -1].to(history[-1])
    u = times - times[-1]
    weights = torch.linalg.inv(torch.stack([u**k for k in range(known)], 0))[:, 1]  # of d/du at u = 0
    return (values @ weights).to(history[-1])


@torch.no_grad()
def run(model: ScoreModel, x: Tensor, nfe: int, how: str, operator: DerivativeOperator) -> Tensor:
    """Sample; the last step goes to the end of the grid with the same formula."""
    schedule = model.schedule
    times = karras(schedule, nfe, schedule.t_min).tolist()
    clock = [float(schedule.log_snr(t)) for t in times]
    history: list[Tensor] = []
    for i in range(nfe):
        history.append(model.denoise(x, times[i]))
        sigma, after = float(schedule.sigma(times[i])), float(schedule.sigma(times[i + 1]))
        d, h = slope(history, clock[:i + 1], how, operator), clock[i + 1] - clock[i]
        # x⁺/σ⁺ = x/σ + e^{λ_i} ∫_0^h e^u (m + d u) du, with α = 1
        mean = math.expm1(h)
        push = mean * history[-1] if d is None else mean * history[-1] + (h * math.exp(h) - mean) * d
        x = after * (x / sigma + push * math.exp(clock[i]))
    return x


def sampler_claims(quick: bool, seed: int) -> list[Claim]:
    """Errors of trajectories at equal evaluations."""
    count, reference_nfe = (2, 16) if quick else (8, 48)
    model, operator = load(MODEL), trained(20 if quick else 800, seed)
    schedule = model.schedule
    exact = reference_solution(model, num=count, nfe=reference_nfe).end_points[float(schedule.t_min)]
    start = SampleNoise(range(count), model.shape)() * schedule.prior_scale(schedule.t_max)
    claims = []
    for nfe in (6,) if quick else (6, 8, 10, 15):
        errors = {how: rms(run(model, start, nfe, how, operator) - exact) for how in ("two", "parabola", "operator")}
        ours = errors.pop("operator")
        errors["dpm-solver++-3m"] = rms(sample(model, num=count, solver="dpm-solver++-3m", nfe=nfe).samples - exact)
        best = min(errors, key=lambda how: errors[how])
        claims.append(Claim(f"{MODEL}, {nfe} evaluations: error of a trajectory, derivative by an operator", ours,
                            "; ".join(f"{how} {error:.3g}" for how, error in errors.items()), "in this run",
                            errors[best]))
    return claims
