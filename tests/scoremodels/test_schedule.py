"""Noise schedules against closed forms, mpmath, diffusers and score_sde."""

from __future__ import annotations

import json
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoremodels.prediction import conversion
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow, schedule_from_config

SCHEDULES: dict[str, NoiseSchedule] = {
    "linear": DiscreteVP.linear(), "scaled-linear": DiscreteVP.scaled_linear(), "cosine": DiscreteVP.cosine(),
    "cosine-50": DiscreteVP.cosine(50), "trained": DiscreteVP.from_betas([0.01, 0.3, 0.2, 0.5]),
    "zero-snr": DiscreteVP.scaled_linear().zero_terminal_snr(), "vp": ContinuousVP(), "vp-constant": ContinuousVP(2, 2),
    "ve": VE(0.01, 1348.0), "edm": EDM(), "flow": RectifiedFlow(), "flow-1000": RectifiedFlow(3.0, 1000.0),
}
PRESERVING = [name for name in SCHEDULES if name.startswith(("linear", "scaled", "cosine", "trained", "zero", "vp"))]
ANY = pytest.mark.parametrize("name", SCHEDULES)


def times(schedule: NoiseSchedule, low: float | None = None) -> np.ndarray:
    return np.linspace(schedule.t_min if low is None else low, schedule.t_max, 2001)


@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0.0, 1.0))
def test_time_comes_back_from_log_snr_and_from_ratio(name: str, fraction: float) -> None:
    schedule = SCHEDULES[name]
    t = schedule.t_min + fraction * (schedule.t_max - schedule.t_min)
    tolerance = 1e-12 * schedule.t_max
    assert schedule.time_of_log_snr(schedule.log_snr(t)) == pytest.approx(t, rel=1e-12, abs=tolerance)
    assert schedule.time_of_ratio(schedule.ratio(t)) == pytest.approx(t, rel=1e-12, abs=tolerance)


@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0.0, 1.0))
def test_log_snr_and_ratio_come_back_from_time(name: str, fraction: float) -> None:
    """Over the times that a network sees; below them t = -1 + u cannot hold the digits of a tiny u."""
    schedule = SCHEDULES[name]
    low, high = max(schedule.log_snr(schedule.t_max), -7.0), schedule.log_snr(schedule.t_min)
    log_snr = low + fraction * (high - low)
    assert schedule.log_snr(schedule.time_of_log_snr(log_snr)) == pytest.approx(log_snr, rel=1e-11, abs=1e-11)
    ratio = math.exp(-log_snr)
    assert schedule.ratio(schedule.time_of_ratio(ratio * (1 - 1e-12))) == pytest.approx(ratio, rel=1e-10)


@ANY
def test_log_snr_falls_strictly_with_time(name: str) -> None:
    schedule = SCHEDULES[name]
    assert np.all(np.diff(schedule.log_snr(times(schedule, schedule.t_clean))) < 0)


@ANY
def test_log_snr_and_ratio_agree_with_alpha_and_sigma(name: str) -> None:
    schedule = SCHEDULES[name]
    t = times(schedule)[:-1]
    np.testing.assert_allclose(schedule.ratio(t), schedule.sigma(t) / schedule.alpha(t), rtol=1e-13)
    np.testing.assert_allclose(schedule.log_snr(t), -np.log(schedule.ratio(t)), rtol=1e-12, atol=1e-14)


@ANY
def test_the_clean_end_is_exact(name: str) -> None:
    schedule = SCHEDULES[name]
    clean = schedule.t_clean
    assert (schedule.alpha(clean), schedule.sigma(clean), schedule.ratio(clean)) == (1.0, 0.0, 0.0)
    assert schedule.log_snr(clean) == math.inf
    assert schedule.time_of_log_snr(math.inf) == clean and schedule.time_of_ratio(0.0) == clean


@pytest.mark.parametrize("name", ["zero-snr", "flow", "flow-1000"])
def test_the_end_at_pure_noise_is_exact(name: str) -> None:
    schedule = SCHEDULES[name]
    last = schedule.t_max
    assert (schedule.alpha(last), schedule.sigma(last), schedule.ratio(last)) == (0.0, 1.0, math.inf)
    assert schedule.log_snr(last) == -math.inf
    assert schedule.time_of_log_snr(-math.inf) == last and schedule.time_of_ratio(math.inf) == last


@pytest.mark.parametrize("name", PRESERVING)
def test_variance_is_preserved(name: str) -> None:
    schedule = SCHEDULES[name]
    t = times(schedule, schedule.t_clean)
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1.0, rtol=1e-14)


@ANY
def test_arrays_and_floats_give_the_same_numbers(name: str) -> None:
    schedule = SCHEDULES[name]
    t = times(schedule)[::200]
    for method in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.ratio):
        single = [method(float(u)) for u in t]
        assert all(type(v) is float for v in single)
        assert method(t).dtype == np.float64 and method(t).tolist() == single


@ANY
def test_the_config_goes_through_json_to_an_equal_schedule(name: str) -> None:
    schedule = SCHEDULES[name]
    again = schedule_from_config(json.loads(json.dumps(schedule.to_config(), allow_nan=False)))
    assert again == schedule and hash(again) == hash(schedule) and again.to_config() == schedule.to_config()


def test_schedules_are_equal_by_value_only() -> None:
    assert DiscreteVP.from_betas(DiscreteVP.linear().betas) == DiscreteVP.linear()
    assert len(set(SCHEDULES.values())) == len(SCHEDULES)


def test_continuous_sigma_keeps_its_digits_near_the_data() -> None:
    schedule = ContinuousVP()
    with mpmath.workdps(60):
        for t in (1e-15, 1e-9, 1e-5, 1e-3, 0.5, 1.0):
            attenuation = mpmath.mpf(t) ** 2 / 2 * (20 - mpmath.mpf(0.1)) + mpmath.mpf(t) * mpmath.mpf(0.1)
            assert schedule.sigma(t) == pytest.approx(float(mpmath.sqrt(1 - mpmath.exp(-attenuation))), rel=1e-13)
            assert schedule.ratio(t) == pytest.approx(float(mpmath.sqrt(mpmath.exp(attenuation) - 1)), rel=1e-13)


def test_discrete_sigma_keeps_its_digits_near_the_data() -> None:
    schedule = DiscreteVP.from_betas(np.geomspace(1e-12, 0.5, 40))
    with mpmath.workdps(60):
        product = mpmath.mpf(1)
        for t, beta in enumerate(schedule.betas):
            product *= 1 - mpmath.mpf(beta)
            assert schedule.sigma(float(t)) == pytest.approx(float(mpmath.sqrt(1 - product)), rel=1e-13)


def test_the_cosine_schedule_keeps_its_digits_near_the_data() -> None:
    schedule = DiscreteVP.cosine(1000)
    with mpmath.workdps(60):
        def squared(i: int) -> mpmath.mpf:
            return mpmath.cos((mpmath.mpf(i) / 1000 + mpmath.mpf(0.008)) / mpmath.mpf(1.008) * mpmath.pi / 2) ** 2
        for t in (0, 1, 10, 500, 990):
            exact = mpmath.sqrt(1 - squared(t + 1) / squared(0))
            assert schedule.sigma(float(t)) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize(("ours", "config"), [
    (DiscreteVP.linear(), dict(beta_schedule="linear")),
    (DiscreteVP.linear(0.001, 0.01, 500), dict(beta_start=0.001, beta_end=0.01, num_train_timesteps=500)),
    (DiscreteVP.scaled_linear(), dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)),
    (DiscreteVP.cosine(), dict(beta_schedule="squaredcos_cap_v2")),
    (DiscreteVP.from_betas([0.01, 0.3, 0.2]), dict(trained_betas=[0.01, 0.3, 0.2], num_train_timesteps=3)),
    (DiscreteVP.linear().zero_terminal_snr(), dict(rescale_betas_zero_snr=True)),
    (DiscreteVP.scaled_linear().zero_terminal_snr(),
     dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True)),
])
def test_discrete_schedules_agree_with_diffusers(ours: DiscreteVP, config: dict) -> None:
    from diffusers import DDIMScheduler
    theirs = DDIMScheduler(**config).alphas_cumprod.double().numpy()
    t = np.arange(len(theirs), dtype=np.float64)
    np.testing.assert_allclose(ours.alpha(t) ** 2, theirs, rtol=2e-4, atol=1e-9)
    np.testing.assert_allclose(ours.alpha(t), np.sqrt(theirs), rtol=1e-4, atol=1e-6)


def test_discrete_schedules_agree_with_diffusers_formula_in_float64() -> None:
    betas = np.linspace(1e-4, 0.02, 1000)
    t = np.arange(1000.0)
    np.testing.assert_allclose(DiscreteVP.linear().alpha(t) ** 2, np.cumprod(1 - betas), rtol=1e-12)


def test_zero_terminal_snr_keeps_the_first_alpha_and_is_linear_in_the_old_ones() -> None:
    old = DiscreteVP.linear()
    new = old.zero_terminal_snr()
    t = np.arange(1000.0)
    first, last = old.alpha(0.0), old.alpha(999.0)
    np.testing.assert_allclose(new.alpha(t), (old.alpha(t) - last) * first / (first - last), rtol=1e-12, atol=1e-300)


def test_rescaling_twice_changes_nothing() -> None:
    once = DiscreteVP.linear().zero_terminal_snr()
    np.testing.assert_allclose(once.zero_terminal_snr().betas, once.betas, rtol=1e-12)


def test_alphas_cumprod_give_the_schedule_they_came_from() -> None:
    schedule = DiscreteVP.linear()
    t = np.arange(1000.0)
    again = DiscreteVP.from_alphas_cumprod(schedule.alpha(t) ** 2)
    np.testing.assert_allclose(again.log_snr(t), schedule.log_snr(t), rtol=1e-11)


def test_log_alpha_is_linear_between_timesteps() -> None:
    schedule = DiscreteVP.scaled_linear()
    for t in (-0.7, 0.25, 517.5, 998.9):
        left = math.floor(t)
        a, b = (math.log(schedule.alpha(float(i))) for i in (left, left + 1))
        assert math.log(schedule.alpha(t)) == pytest.approx(a + (t - left) * (b - a), rel=1e-12)


def test_alpha_is_linear_over_the_last_interval_of_a_zero_snr_schedule() -> None:
    schedule = DiscreteVP.linear().zero_terminal_snr()
    assert schedule.alpha(998.25) == pytest.approx(0.75 * schedule.alpha(998.0), rel=1e-12)


def test_continuous_vp_has_the_marginals_of_score_sde() -> None:
    schedule, t = ContinuousVP(), times(ContinuousVP())
    log_mean_coeff = -0.25 * t**2 * (20.0 - 0.1) - 0.5 * t * 0.1
    np.testing.assert_allclose(schedule.alpha(t), np.exp(log_mean_coeff), rtol=1e-14)
    np.testing.assert_allclose(schedule.sigma(t), np.sqrt(1.0 - np.exp(2.0 * log_mean_coeff)), rtol=1e-9)


def test_ve_has_the_marginals_of_score_sde() -> None:
    schedule, t = VE(0.01, 50.0), times(VE(0.01, 50.0))
    np.testing.assert_allclose(schedule.sigma(t), 0.01 * (50.0 / 0.01) ** t, rtol=1e-13)
    assert np.all(schedule.alpha(t) == 1.0)


def test_a_dense_linear_schedule_tends_to_the_continuous_one() -> None:
    """β_i = β(i/T)/T: the discretisation of score_sde, whose error is O(1/T)."""
    continuous, errors = ContinuousVP(), []
    for steps in (1000, 10_000):
        discrete = DiscreteVP.linear(0.1 / steps, 20.0 / steps, steps)
        t = np.array([0.1, 0.5, 0.9])
        errors.append(np.abs(discrete.log_snr(t * steps - 1.0) - continuous.log_snr(t)).max())
    assert errors[1] < errors[0] / 8 and errors[0] < 0.05


def test_flow_times_shift_as_published() -> None:
    schedule = RectifiedFlow(shift=3.0, scale=1000.0)
    assert schedule.shifted(0.5) == pytest.approx(1000.0 * 3 * 0.5 / (1 + 2 * 0.5))
    assert schedule.shifted(np.array([0.0, 1.0])).tolist() == [0.0, 1000.0]


@pytest.mark.parametrize(("name", "t", "expected"), [
    ("linear", 999.0, 1.0), ("vp", 0.5, 1.0), ("ve", 1.0, 1348.0), ("edm", 80.0, 80.0), ("edm", 3.0, 3.0),
    ("flow", 1.0, 1.0), ("flow-1000", 250.0, 0.25),
])
def test_start_noise_has_the_scale_of_the_process(name: str, t: float, expected: float) -> None:
    assert SCHEDULES[name].prior_scale(t) == pytest.approx(expected, rel=1e-13)


def test_a_schedule_converts_at_a_time() -> None:
    schedule = EDM(sigma_data=0.25)
    assert schedule.conversion("edm", "sample", 2.0) == conversion("edm", "sample", 1.0, 2.0, sigma_data=0.25)


@pytest.mark.parametrize(("name", "t"), [
    ("linear", 999.5), ("linear", -1.5), ("vp", -0.1), ("edm", -1.0), ("flow", 1.1), ("ve", -1.1), ("edm", math.nan),
])
def test_times_outside_the_schedule_are_refused(name: str, t: float) -> None:
    with pytest.raises(ValueError, match="lie between"):
        SCHEDULES[name].log_snr(t)


@pytest.mark.parametrize(("name", "log_snr"), [("linear", -6.0), ("cosine", -math.inf), ("edm", math.nan),
                                               ("vp", -math.inf), ("ve", -math.inf)])
def test_log_snrs_outside_the_schedule_are_refused(name: str, log_snr: float) -> None:
    with pytest.raises(ValueError, match="log_snr="):
        SCHEDULES[name].time_of_log_snr(log_snr)


@pytest.mark.parametrize(("name", "ratio"), [("linear", 1e6), ("flow", -1.0), ("vp", math.nan), ("edm", math.inf)])
def test_ratios_outside_the_schedule_are_refused(name: str, ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio="):
        SCHEDULES[name].time_of_ratio(ratio)


@pytest.mark.parametrize(("make", "match"), [
    (lambda: DiscreteVP.from_betas([0.1, 1.2]), "betas"), (lambda: DiscreteVP.from_betas([1.0, 0.2]), "betas"),
    (lambda: DiscreteVP.from_betas([[0.1, 0.2]]), "shape"), (lambda: DiscreteVP.from_betas([0.1, math.nan]), "betas"),
    (lambda: DiscreteVP.linear(steps=1), "steps=1"), (lambda: DiscreteVP.scaled_linear(-1.0), "beta_start"),
    (lambda: DiscreteVP.from_alphas_cumprod([0.9, 0.95]), "decrease"), (lambda: ContinuousVP(5.0, 1.0), "exchange"),
    (lambda: ContinuousVP(t_min=2.0), "t_min"), (lambda: VE(5.0, 1.0), "sigma_min"),
    (lambda: EDM(sigma_data=0), "sigma_data"),
    (lambda: RectifiedFlow(shift=0.0), "shift"), (lambda: schedule_from_config({"kind": "cubic"}), "kind='cubic'"),
    (lambda: schedule_from_config({"kind": "edm", "rho": 7}), "rho"),
    (lambda: schedule_from_config({"kind": "discrete-vp"}), "betas"),
])
def test_impossible_schedules_are_refused(make, match: str) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match=match):
        make()
