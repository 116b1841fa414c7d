from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from odecore.caps import cap_arc, cap_fraction, lipschitz_bound, sphere_points
from odecore.driver.solve import solve
from odecore.explicit.embedded import DOP853
from odecore.tube import Flowed, Tube, balls, cover, ellipsoids, reach_tube, with_columns

MATRIX = torch.tensor([[-0.3, 1.0], [-1.0, -0.1]], dtype=torch.float64)
CENTRE = torch.tensor([1.0, 0.5], dtype=torch.float64)
TIMES = [0.0, 0.5, 1.5]


def linear(y: Tensor, t: Tensor) -> Tensor:
    return y @ MATRIX.T


def van_der_pol(y: Tensor, t: Tensor) -> Tensor:
    return torch.stack((y[:, 1], (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]), 1)


def reached(field: object, radius: float, count: int, seed: int) -> Tensor:
    """Where fresh points of the surface go, of shape (points, times, size)."""
    points = CENTRE + radius * sphere_points(count, 2, torch.Generator().manual_seed(seed))
    found = solve(DOP853, field, points, 0.0, TIMES[-1], rtol=1e-10, atol=1e-12, ts=torch.tensor(TIMES)).ys
    assert found is not None
    return found


def test_the_tube_of_a_linear_system_is_its_ellipsoid() -> None:
    tube = reach_tube(linear, CENTRE, 0.1, TIMES, mu=1.05)
    flows = torch.linalg.matrix_exp(torch.tensor(TIMES).reshape(-1, 1, 1) * MATRIX)
    exact = math.pi * 0.01 * torch.linalg.det(flows)
    assert torch.allclose(tube.centres, flows @ CENTRE, rtol=1e-8)
    assert torch.allclose(tube.volumes[1:], 1.05**2 * exact[1:], rtol=1e-7)
    assert torch.allclose(tube.radii[1:], torch.full((2,), 0.105, dtype=torch.float64), rtol=1e-8)


@pytest.mark.parametrize("metric", [balls, ellipsoids])
def test_fresh_points_are_inside_as_often_as_stated(metric: object) -> None:
    inside = []
    for seed in range(10):
        tube = reach_tube(van_der_pol, CENTRE, 0.1, TIMES, mu=1.1, gamma=0.1, metric=metric, seed=seed, rtol=1e-8)
        assert (tube.probability >= 0.9).all()
        inside.append(tube.contains(reached(van_der_pol, 0.1, 400, 1000 + seed)).all(0))
    assert torch.stack(inside).double().mean(0).min() >= 0.9


def test_a_tighter_tube_takes_more_samples_and_less_room() -> None:
    wide, tight = (reach_tube(van_der_pol, CENTRE, 0.1, TIMES, mu=mu, batch=20, rtol=1e-8) for mu in (1.5, 1.02))
    assert tight.samples > wide.samples and tight.mean_volume < wide.mean_volume


def test_the_columns_are_derivatives_of_the_solution() -> None:
    start = torch.cat((CENTRE[None, None], torch.eye(2, dtype=torch.float64)[None]), 1)
    found = solve(DOP853, with_columns(van_der_pol), start, 0.0, 1.5, rtol=1e-11, atol=1e-12).y[0]
    h = 1e-5
    for k in range(2):
        ends = [solve(DOP853, van_der_pol, (CENTRE + sign * h * torch.eye(2, dtype=torch.float64)[k])[None], 0.0, 1.5,
                      rtol=1e-12, atol=1e-13).y[0] for sign in (1, -1)]
        assert torch.allclose(found[1 + k], (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-8)


def test_a_ball_in_a_subspace_is_followed_along_its_directions_alone() -> None:
    stretch = torch.tensor([1.0, 3.0, 7.0], dtype=torch.float64)
    basis = torch.eye(3, dtype=torch.float64)[:, :2]

    def flow(points: Tensor) -> Flowed:
        moved = torch.stack((points, points * stretch), 1)
        columns = torch.stack((basis, stretch[:, None] * basis)).expand(len(points), 2, 3, 2)
        return Flowed(moved, columns)

    tube = cover(flow, torch.zeros(3, dtype=torch.float64), 0.5, torch.tensor([0.0, 1.0]), directions=basis,
                 metric=balls, mu=1.1)
    assert tube.radii[1] == pytest.approx(1.1 * 1.5, rel=5e-3)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_caps_cover_the_part_of_a_sphere_that_falls_into_them(size: int) -> None:
    points = sphere_points(100_000, size, torch.Generator().manual_seed(0)).numpy()
    assert np.allclose(np.linalg.norm(points, axis=1), 1)
    for angle in (0.7, 2.0):
        share = (points[:, 0] >= math.cos(angle)).mean()
        assert cap_fraction(np.array(angle), size) == pytest.approx(share, abs=0.006)


def test_an_arc_is_the_root_of_its_bound() -> None:
    room, rate, change = np.array([0.1, 0.1, 0.0]), np.array([1.0, 0.0, 2.0]), np.array([0.5, 2.0, 0.0])
    arc = cap_arc(room, rate, change)
    assert np.allclose(rate * arc + change * arc**2 / 2, room)
    assert cap_arc(np.array([1.0]), np.array([0.0]), np.array([0.0])) == np.inf


def test_a_lipschitz_bound_is_exceeded_no_more_often_than_stated() -> None:
    generator = np.random.default_rng(0)
    bounds = lipschitz_bound(generator.uniform(size=(400, 200)), 0.95)
    assert bounds.min() > 0.97 and np.median(bounds) < 1.1
    few = np.array([[1.0], [3.0]])
    assert lipschitz_bound(few, 0.95) == 3.0


def test_a_tube_refuses_points_of_another_shape() -> None:
    tube = reach_tube(linear, CENTRE, 0.1, TIMES)
    assert isinstance(tube, Tube)
    with pytest.raises(ValueError, match="points have shape"):
        tube.contains(torch.zeros(4, 2))


@pytest.mark.parametrize(("change", "message"), [
    (dict(radius=0.0), "radius=0.0"), (dict(times=[0.0]), "at least two"), (dict(times=[1.0, 0.0]), "increasing"),
    (dict(mu=1.0), "mu=1.0"), (dict(gamma=1.0), "gamma=1.0"), (dict(batch=1), "batch=1"),
    (dict(centre=torch.zeros(2, 2)), "centre has shape")])
def test_wrong_arguments_are_refused(change: dict[str, object], message: str) -> None:
    given = dict(centre=CENTRE, radius=0.1, times=TIMES) | change
    with pytest.raises(ValueError, match=message):
        reach_tube(linear, given.pop("centre"), given.pop("radius"), given.pop("times"), **given)


def test_too_few_samples_are_an_error_that_says_so() -> None:
    with pytest.raises(RuntimeError, match="raise mu, gamma or most"):
        reach_tube(van_der_pol, CENTRE, 0.1, TIMES, mu=1.0001, batch=10, most=20, rtol=1e-6)


def test_a_singular_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="metric=ellipsoids"):
        ellipsoids(torch.zeros(2, 2, 2, dtype=torch.float64))
