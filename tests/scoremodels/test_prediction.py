"""Conversions between kinds of prediction: affine, inverse to each other, finite where they exist."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoremodels.prediction import PREDICTIONS, conversion

SCALES = st.floats(1e-3, 1e3)
KINDS = st.sampled_from(PREDICTIONS)


def value(kind: str, x0: float, noise: float, alpha: float, sigma: float, sigma_data: float) -> float:
    """Each kind from its own definition."""
    skip = sigma_data**2 / ((sigma / alpha) ** 2 + sigma_data**2)
    out = sigma / alpha * sigma_data / math.sqrt((sigma / alpha) ** 2 + sigma_data**2)
    raw = (x0 - skip * (x0 + sigma / alpha * noise)) / out
    return {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0, "flow": noise - x0,
            "score": -noise / sigma, "edm": raw, "edm_v": -raw}[kind]


@given(KINDS, KINDS, st.floats(0.01, 10.0), st.floats(0.01, 10.0), st.floats(0.1, 3.0), st.floats(-2.0, 2.0),
       st.floats(-2.0, 2.0))
def test_every_kind_follows_from_the_state_and_every_other(
    source: str, target: str, alpha: float, sigma: float, sigma_data: float, x0: float, noise: float
) -> None:
    a, b = conversion(source, target, alpha, sigma, sigma_data=sigma_data)
    x = alpha * x0 + sigma * noise
    raw = value(source, x0, noise, alpha, sigma, sigma_data)
    scale = abs(a * x) + abs(b * raw) + 1.0
    assert a * x + b * raw == pytest.approx(value(target, x0, noise, alpha, sigma, sigma_data), abs=1e-9 * scale)


@given(KINDS, KINDS, SCALES, SCALES)
def test_there_and_back_is_the_identity(source: str, target: str, alpha: float, sigma: float) -> None:
    a, b = conversion(source, target, alpha, sigma)
    c, d = conversion(target, source, alpha, sigma)
    assert b * d == pytest.approx(1.0, rel=1e-12)
    assert c + d * a == pytest.approx(0.0, abs=1e-12 * (abs(c) + abs(d * a)))


@pytest.mark.parametrize(("source", "expected"), [
    ("sample", (0.0, 1.0)), ("v_prediction", (0.0, -1.0)), ("flow", (1.0, -1.0)), ("edm", (0.0, 0.5)),
])
def test_x0_is_finite_at_pure_noise(source: str, expected: tuple[float, float]) -> None:
    assert conversion(source, "sample", 0.0, 1.0, sigma_data=0.5) == expected


@pytest.mark.parametrize("source", PREDICTIONS)
def test_x0_is_the_state_where_there_is_no_noise(source: str) -> None:
    a, b = conversion(source, "sample", 1.0, 0.0)
    assert (a, b) == ((0.0, 1.0) if source == "sample" else (1.0, 0.0))


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("scales", [(0.0, 1.0), (1.0, 0.0), (0.6, 0.8)])
def test_a_kind_is_itself_everywhere(kind: str, scales: tuple[float, float]) -> None:
    assert conversion(kind, kind, *scales) == (0.0, 1.0)


def test_the_score_follows_from_noise_at_pure_noise() -> None:
    assert conversion("epsilon", "score", 0.0, 2.0) == (0.0, -0.5)


@pytest.mark.parametrize(("source", "target", "alpha", "sigma"), [
    ("epsilon", "sample", 0.0, 1.0), ("score", "sample", 0.0, 1.0), ("sample", "epsilon", 1.0, 0.0),
    ("epsilon", "score", 1.0, 0.0), ("sample", "flow", 1.0, 0.0), ("score", "epsilon", 0.0, 0.0),
])
def test_what_is_not_determined_is_refused(source: str, target: str, alpha: float, sigma: float) -> None:
    with pytest.raises(ValueError, match="determine|not both 0"):
        conversion(source, target, alpha, sigma)


@pytest.mark.parametrize(("source", "target"), [("eps", "sample"), ("sample", "x0")])
def test_unknown_kinds_are_refused(source: str, target: str) -> None:
    with pytest.raises(ValueError, match="choose one of epsilon"):
        conversion(source, target, 1.0, 1.0)


@pytest.mark.parametrize(("alpha", "sigma"), list(product([-1.0, math.nan, math.inf], [1.0])))
def test_scales_out_of_range_are_refused(alpha: float, sigma: float) -> None:
    with pytest.raises(ValueError, match="alpha="):
        conversion("epsilon", "sample", alpha, sigma)
