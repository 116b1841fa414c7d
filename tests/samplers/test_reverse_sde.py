"""Steps of the reverse SDE: against the closed form of the process, for every strength of its noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import quad

from odecore.schemes.exponential import inner_nodes
from samplers.reverse_sde import ancestral_strength, reverse_multistep, reverse_singlestep, reverse_step
from samplers.variables import VARIABLES
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

SCHEDULES = [ContinuousVP(), DiscreteVP.linear(), EDM(), VE(0.01, 50.0), RectifiedFlow()]


def pair(schedule: NoiseSchedule, low: float = -0.4, high: float = 0.9) -> tuple[float, float]:
    return float(schedule.time_of_log_snr(low)), float(schedule.time_of_log_snr(high))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_data_steps_integrate_the_kernel_of_the_sde(schedule: NoiseSchedule, strength: float) -> None:
    t, s = pair(schedule)
    variable = VARIABLES["data"](schedule, "epsilon")
    h, offsets = 1.3, (0.0, -0.5, -1.1)
    step = reverse_step(variable, variable.at_time(t), variable.at_time(s), offsets, strength=strength)
    alpha, sigma, sigma_start = schedule.alpha(s), schedule.sigma(s), schedule.sigma(t)
    assert step.decay == pytest.approx(sigma / sigma_start * math.exp(-strength * h), rel=1e-11)
    assert step.noise == pytest.approx(sigma * math.sqrt(1 - math.exp(-2 * strength * h)), rel=1e-11, abs=1e-15)
    for power in range(3):
        exact, _ = quad(lambda u: (1 + strength) * alpha * math.exp((1 + strength) * (u - h)) * u**power,  # noqa: B023
                        0, h, epsabs=1e-14)
        assert np.dot(step.weights, np.power(offsets, power)) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_noise_steps_integrate_the_kernel_of_the_sde(schedule: NoiseSchedule, strength: float) -> None:
    t, s = pair(schedule)
    variable = VARIABLES["noise"](schedule, "epsilon")
    h, offsets = 1.3, (0.0, -0.5)
    step = reverse_step(variable, variable.at_time(t), variable.at_time(s), offsets, strength=strength)
    sigma = schedule.sigma(s)
    assert step.decay == pytest.approx(schedule.alpha(s) / schedule.alpha(t), rel=1e-11)
    assert step.noise == pytest.approx(sigma * math.sqrt(strength * (math.exp(2 * h) - 1)), rel=1e-11, abs=1e-15)
    for power in range(2):
        exact, _ = quad(lambda u: -(1 + strength) * sigma * math.exp(h - u) * u**power, 0, h)  # noqa: B023
        assert np.dot(step.weights, np.power(offsets, power)) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("strength", [0.0, 0.2, 1.0, 40.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_first_order_step_has_the_marginals_of_a_point_mass(schedule: NoiseSchedule, strength: float) -> None:
    """Where x0 = c is known, x_t must go from N(α_s c, σ_s²) to N(α_t c, σ_t²)."""
    t, s = pair(schedule)
    variable = VARIABLES["data"](schedule, "epsilon")
    step = reverse_step(variable, variable.at_time(t), variable.at_time(s), strength=strength)
    assert step.decay * schedule.alpha(t) + step.weights[0] == pytest.approx(schedule.alpha(s), rel=1e-12)
    variance = (step.decay * schedule.sigma(t)) ** 2 + step.noise**2
    assert variance == pytest.approx(schedule.sigma(s) ** 2, rel=1e-12)


@pytest.mark.parametrize("variable", ["data", "noise"])
def test_a_step_to_the_data_is_the_prediction_without_noise(variable: str) -> None:
    schedule = ContinuousVP()
    chosen = VARIABLES[variable](schedule, "epsilon")
    start, end = chosen.at_time(0.3), chosen.at_time(0.0)
    assert reverse_step(chosen, start, end, strength=1.0) == reverse_step(chosen, start, end, strength=0.0)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_step_from_pure_noise_forgets_its_start(strength: float) -> None:
    schedule = RectifiedFlow()
    variable = VARIABLES["data"](schedule, "flow")
    step = reverse_step(variable, variable.at_time(1.0), variable.at_time(0.7), strength=strength)
    assert step == (0.0, pytest.approx((0.3,)), pytest.approx(0.7))


def test_without_noise_a_step_from_pure_noise_is_that_of_the_ode() -> None:
    variable = VARIABLES["data"](RectifiedFlow(), "flow")
    step = reverse_step(variable, variable.at_time(1.0), variable.at_time(0.7), strength=0.0)
    assert step == (pytest.approx(0.7), pytest.approx((0.3,)), 0.0)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ancestral_strengths_add_the_published_noise(eta: float) -> None:
    schedule = EDM()
    variable = VARIABLES["data"](schedule, "sample")
    start, end = variable.at_time(5.0), variable.at_time(2.0)
    strength = ancestral_strength(eta)(end.clock - start.clock)
    step = reverse_step(variable, start, end, strength=strength)
    up = eta * math.sqrt(2.0**2 * (5.0**2 - 2.0**2) / 5.0**2)
    assert step.noise == pytest.approx(up, rel=1e-12)
    assert step.decay == pytest.approx(math.sqrt(2.0**2 - up**2) / 5.0, rel=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_stages_and_end_have_the_noise_of_single_steps_and_the_law_of_one_path(
    schedule: NoiseSchedule, eta: float
) -> None:
    variable = VARIABLES["data"](schedule, "epsilon")
    nodes = inner_nodes(variable, *pair(schedule), (0.5,))
    stage, end = reverse_singlestep(variable, nodes, ancestral_strength(eta))
    lengths = [node.clock - nodes[0].clock for node in nodes[1:]]
    direct = [reverse_step(variable, nodes[0], node, strength=ancestral_strength(eta)(h))
              for node, h in zip(nodes[1:], lengths, strict=True)]
    decay, noise = float(end.anchor[0]), float(stage.noise)
    assert noise == pytest.approx(direct[0].noise, rel=1e-12, abs=1e-15)
    assert math.hypot(decay * noise, float(end.noise)) == pytest.approx(direct[1].noise, rel=1e-12, abs=1e-15)
    assert float(stage.anchor[0]) * decay == pytest.approx(direct[1].decay, rel=1e-12)
    if eta == 1.0:
        snr = [math.exp(2 * node.clock) for node in nodes]
        correlation = math.sqrt((snr[1] - snr[0]) / (snr[2] - snr[0]))
        assert decay * noise / direct[1].noise == pytest.approx(correlation, rel=1e-10)


def test_the_factor_of_the_noise_scales_nothing_else() -> None:
    variable = VARIABLES["data"](EDM(), "sample")
    one, half = (reverse_multistep(variable, [5.0, 2.0, 1.0], [1, 2], [1.0, 1.0], s_noise=f) for f in (1.0, 0.5))
    for full, scaled in zip(one, half, strict=True):
        assert scaled.noise == 0.5 * full.noise and scaled.anchor == full.anchor
