"""Evaluations for equal quality."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eval.speedup import bootstrap, evaluations_for, interval


@pytest.mark.parametrize("level", [0.69, 0.3, 0.1, 0.07])
def test_a_power_law_is_inverted_exactly(level: float) -> None:
    nfes = [10, 20, 50, 100]
    assert evaluations_for(nfes, [7.0 / n for n in nfes], level) == pytest.approx(7.0 / level, rel=1e-12)


def test_a_level_above_the_whole_curve_takes_the_first_number() -> None:
    assert evaluations_for([10, 20], [2.0, 1.0], 3.0) == 10.0


def test_a_level_below_the_whole_curve_is_never_reached() -> None:
    assert evaluations_for([10, 20], [2.0, 1.0], 0.5) == math.inf


def test_a_curve_that_rises_again_counts_where_it_first_came_down() -> None:
    assert evaluations_for([10, 20, 40, 80], [4.0, 1.0, 2.0, 0.5], 2.0) == pytest.approx(10 * math.sqrt(2))


@pytest.mark.parametrize(("nfes", "values", "level"), [
    ([20, 10], [1.0, 2.0], 1.5), ([], [], 1.0), ([10], [1.0, 2.0], 1.0), ([0, 1], [2.0, 1.0], 1.0),
    ([10, 20], [1.0, 0.0], 0.5), ([10, 20], [math.nan, 1.0], 0.5), ([10, 20], [2.0, 1.0], 0.0)])
def test_what_has_no_logarithm_or_no_order_is_refused(nfes: list[int], values: list[float], level: float) -> None:
    with pytest.raises(ValueError, match="nfes=|values="):
        evaluations_for(nfes, values, level)


def test_the_bootstrap_of_a_mean_spreads_as_the_central_limit_says() -> None:
    data = np.random.default_rng(1).standard_normal(400)
    draws = bootstrap(lambda i: [data[i].mean()], len(data), draws=2000)
    assert draws.std() == pytest.approx(data.std() / 20, rel=0.1)


def test_the_bootstrap_is_the_same_for_the_same_seed() -> None:
    data = np.arange(10.0)
    first, second = (bootstrap(lambda i: [data[i].mean()], 10, seed=3) for _ in range(2))
    assert np.array_equal(first, second)


def test_quantities_of_one_call_share_their_samples() -> None:
    data = np.random.default_rng(1).standard_normal(50)
    draws = bootstrap(lambda i: [data[i].mean(), data[i].mean() + 1.0], len(data))
    np.testing.assert_allclose(draws[:, 1] - draws[:, 0], 1.0, rtol=1e-12)


def test_an_interval_leaves_as_much_below_as_above() -> None:
    assert interval(np.arange(101.0), 0.9) == (5.0, 95.0)


def test_an_interval_bears_infinity() -> None:
    assert interval(np.array([1.0, math.inf, 1.0, math.inf])) == (1.0, math.inf)
