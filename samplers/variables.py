"""The variables in which the probability-flow ODE is a plain weighted integral of one prediction.

With x_t = α x0 + σ ε, λ = log(α/σ) and ρ = σ/α, the ODE of Song et al. 2021 (arXiv:2011.13456) is

* data:  ``d(x/σ)/dλ =  e^λ x0``       (DPM-Solver++, arXiv:2211.01095)
* noise: ``d(x/α)/dλ = -e^{-λ} ε``     (DPM-Solver, arXiv:2206.00927)
* plain: ``d(x/α)/dρ = ε``             (DDIM, arXiv:2010.02502; EDM, arXiv:2206.00364)
* flow:  ``d(x/(α+σ))/dτ = ε - x0``    with τ = σ/(α+σ)  (rectified flow, arXiv:2209.03003)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from odecore.schemes import Node, Variable
from scoremodels.schedule import NoiseSchedule


def _variable(
    schedule: NoiseSchedule, prediction: str, target: str, rate: float, constant: float,
    clock: Callable[[float], float], time: Callable[[float], float], factors: Callable[[float], tuple[float, float]],
) -> Variable:
    @cache  # a scheme asks for the same few nodes again and again
    def at_time(t: float) -> Node:
        return Node(float(t), float(clock(t)), *map(float, factors(t)))

    @cache
    def to_prediction(t: float) -> tuple[float, float]:
        return schedule.conversion(prediction, target, t)

    return Variable(rate, constant, at_time, lambda value: at_time(float(time(value))), to_prediction)


def data_variable(schedule: NoiseSchedule, prediction: str) -> Variable:
    """x0-prediction over log-SNR: the kernel is e^{λ}."""
    return _variable(schedule, prediction, "sample", 1.0, 1.0, schedule.log_snr, schedule.time_of_log_snr,
                     lambda t: (schedule.sigma(t), schedule.alpha(t)))


def noise_variable(schedule: NoiseSchedule, prediction: str) -> Variable:
    """ε-prediction over log-SNR: the kernel is e^{-λ}."""
    return _variable(schedule, prediction, "epsilon", -1.0, -1.0, schedule.log_snr, schedule.time_of_log_snr,
                     lambda t: (schedule.alpha(t), -schedule.sigma(t)))


def plain_variable(schedule: NoiseSchedule, prediction: str) -> Variable:
    """ε-prediction over the noise-to-signal ratio ρ: no kernel, so classical methods apply."""
    return _variable(schedule, prediction, "epsilon", 0.0, 1.0, schedule.ratio, schedule.time_of_ratio,
                     lambda t: (schedule.alpha(t), schedule.alpha(t)))


def flow_variable(schedule: NoiseSchedule, prediction: str) -> Variable:
    """Velocity over the time of a rectified flow at the same σ/α: no kernel, and finite at both ends."""
    def clock(t: float) -> float:
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        return sigma / (alpha + sigma)

    def total(t: float) -> tuple[float, float]:
        scale = float(schedule.alpha(t)) + float(schedule.sigma(t))
        return scale, scale

    return _variable(schedule, prediction, "flow", 0.0, 1.0, clock,
                     lambda value: float(schedule.time_of_ratio(value / (1.0 - value))), total)


VARIABLES = {"data": data_variable, "noise": noise_variable, "plain": plain_variable, "flow": flow_variable}
