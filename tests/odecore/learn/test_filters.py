"""Filters of observers: closed forms for linear plants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm, solve_sylvester
from torch import Tensor

from odecore.learn.filters import Filter, Plant, rewound, settled

A = torch.tensor([[0.0, 1.0], [-1.3, -0.1]], dtype=torch.float64)
C = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
LINEAR = Plant(lambda x, t: x @ A.T, lambda x: x @ C.T)
POINTS = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def sylvester(filter: Filter) -> Tensor:
    """The matrix T with T A = D T + F C."""
    return torch.from_numpy(solve_sylvester(-filter.D.numpy(), A.numpy(), (filter.F @ C).numpy()))


def test_the_poles_are_those_of_bessels_filter_at_the_cutoff() -> None:
    reference = Filter.bessel(2, cutoff=1 / (2 * math.pi)).D
    found = np.sort_complex(torch.linalg.eigvals(reference).numpy())
    # Zeros of the reverse Bessel polynomial s³ + 6 s² + 15 s + 15, scaled so that the phase is halfway at 1.
    expected = np.sort_complex(np.roots([1, 6, 15, 15]) / 15 ** (1 / 3))
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    torch.testing.assert_close(Filter.bessel(2, cutoff=3 / (2 * math.pi)).D, 3 * reference)


def test_every_output_reaches_modes_of_its_own() -> None:
    filter = Filter.bessel(3, 2, cutoff=1.0)
    assert filter.D.shape == (8, 8) and filter.F.shape == (8, 2)
    reached = torch.cat([torch.linalg.matrix_power(filter.D / 6, k) @ filter.F for k in range(4)], 1)
    assert int(torch.linalg.matrix_rank(reached)) == 8


def test_outputs_that_are_linear_between_their_times_are_filtered_exactly() -> None:
    filter = Filter.bessel(2, cutoff=0.4)
    t = torch.tensor([0.0, 0.5, 1.0, 1.5], dtype=torch.float64)
    z = filter.states((1 - 2 * t).reshape(1, -1, 1), 0.5)[0]
    inverse = torch.linalg.inv(filter.D)
    constant = -inverse @ (inverse @ (-2 * filter.F) + filter.F)  # of the particular solution a + b t
    slope = 2 * inverse @ filter.F
    for k, time in enumerate(t.tolist()):
        decayed = torch.from_numpy(expm(time * filter.D.numpy())) @ -constant
        torch.testing.assert_close(z[k], (constant + slope * time + decayed)[:, 0], rtol=1e-10, atol=1e-12)


def test_the_filter_tends_to_the_solution_of_sylvesters_equation_times_the_state() -> None:
    filter = Filter.bessel(2, cutoff=0.5)
    starts = rewound(LINEAR, POINTS, 3 * filter.memory)
    x, z = settled(LINEAR, filter, starts, duration=3 * filter.memory)
    torch.testing.assert_close(x, POINTS, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(z, x @ sylvester(filter).T, rtol=1e-6, atol=1e-7)


def test_what_came_before_the_memory_counts_for_less_than_a_thousandth() -> None:
    filter = Filter.bessel(2, cutoff=0.5)
    x, z = settled(LINEAR, filter, POINTS)
    assert float((z - x @ sylvester(filter).T).abs().max()) < 1e-3


def test_the_covariance_of_filtered_noise_is_that_of_a_long_run() -> None:
    filter = Filter.bessel(1, cutoff=0.5)
    noise = torch.randn(2000, 60, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = filter.states(noise, 0.2)[:, 40:].flatten(0, 1)
    torch.testing.assert_close(torch.cov(z.T), filter.noise(0.2), rtol=0.05, atol=2e-4)


def test_points_without_a_past_are_left_out() -> None:
    runaway = Plant(lambda x, t: -x**3, lambda x: x)  # back in time x³ leaves in finite time: 1 / (2 x²)
    points = torch.tensor([[0.1], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(rewound(runaway, points, 5.0), torch.tensor([[0.1 / math.sqrt(0.9)]]).double(),
                               rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="none has a past"):
        rewound(runaway, points[1:], 5.0)


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="all must be negative"):
        Filter(torch.eye(2), torch.ones(2, 1))
    with pytest.raises(ValueError, match="give \\(m, m\\)"):
        Filter(-torch.eye(2), torch.ones(3, 1))
    with pytest.raises(ValueError, match="positive cutoff"):
        Filter.bessel(2, cutoff=0.0)
    with pytest.raises(ValueError, match="give \\(runs, times, 1\\)"):
        Filter.bessel(2, cutoff=1.0).states(torch.zeros(3, 4, 2), 0.1)
