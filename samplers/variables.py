"""The three variables in which the probability-flow ODE is a plain weighted integral of one prediction.

With x_t = α x0 + σ ε, λ = log(α/σ) and ρ = σ/α, the ODE of Song et al. 2021 (arXiv:2011.13456) is

* data:  ``d(x/σ)/dλ =  e^λ x0``       (DPM-Solver++, arXiv:2211.01095)
* noise: ``d(x/α)/dλ = -e^{-λ} ε``     (DPM-Solver, arXiv:2206.00927)
* plain: ``d(x/α)/dρ = ε``             (DDIM, arXiv:2010.02502; EDM, arXiv:2206.00364)
"""

from __future__ import annotations

from collections.abc import Callable

from odecore.schemes import Node, Variable
from scoremodels.schedule import NoiseSchedule


def _variable(
    schedule: NoiseSchedule, prediction: str, target: str, rate: float, constant: float,
    clock: Callable[[float], float], time: Callable[[float], float], factors: Callable[[float], tuple[float, float]],
) -> Variable:
    def at_time(t: float) -> Node:
        return Node(float(t), float(clock(t)), *map(float, factors(t)))

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


VARIABLES = {"data": data_variable, "noise": noise_variable, "plain": plain_variable}
