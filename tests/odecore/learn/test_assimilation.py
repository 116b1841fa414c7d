"""An ensemble filter against Kalman's formulas, and on a field that is not linear."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from odecore.driver.integrate import integrate
from odecore.explicit.embedded import TSITOURAS
from odecore.learn.assimilation import ensemble_kalman

A = torch.tensor([[-0.1, 2.0, 0.0], [-2.0, -0.1, 1.0], [0.0, 0.3, -0.2]], dtype=torch.float64)
H = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64)
R = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)
INTERVAL = 0.2


def linear(x: Tensor, t: Tensor) -> Tensor:
    return x @ A.T


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("inflation", [1.0, 1.1])
def test_on_a_linear_system_it_is_the_kalman_filter(inflation: float) -> None:
    ensemble, observations = normal(12, 3), normal(20, 2)
    found = ensemble_kalman(TSITOURAS, linear, ensemble, observations, interval=INTERVAL, observe=lambda x: x @ H.T,
                            covariance=R, steps=2, inflation=inflation)
    step = integrate(TSITOURAS, linear, torch.eye(3, dtype=torch.float64), [0.0, INTERVAL / 2, INTERVAL]).y.T
    mean, spread = ensemble.mean(0), torch.cov(ensemble.T)
    for k, y in enumerate(observations):
        if k:
            mean, spread = step @ mean, step @ spread @ step.T
        spread = inflation**2 * spread
        torch.testing.assert_close(found.forecasts[k].mean(0), mean, rtol=1e-9, atol=1e-11)
        gain = spread @ H.T @ torch.linalg.inv(H @ spread @ H.T + R)
        mean, spread = mean + gain @ (y - H @ mean), (torch.eye(3) - gain @ H) @ spread
        torch.testing.assert_close(found.analyses[k].mean(0), mean, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(torch.cov(found.analyses[k].T), spread, rtol=1e-8, atol=1e-11)


def test_increments_are_what_observations_add_per_unit_of_time() -> None:
    found = ensemble_kalman(TSITOURAS, linear, normal(6, 3), normal(4, 2), interval=INTERVAL,
                            observe=lambda x: x @ H.T, covariance=R)
    added = found.analyses[2].mean(0) - found.forecasts[2].mean(0)
    torch.testing.assert_close(found.increments(INTERVAL)[1], added / INTERVAL)


def test_an_unknown_parameter_is_found_as_part_of_the_state() -> None:
    def pendulum(s: Tensor, t: Tensor) -> Tensor:
        angle, speed, stiffness = s.unbind(1)
        return torch.stack((speed, -stiffness * torch.sin(angle), torch.zeros_like(angle)), 1)

    truth = torch.tensor([[1.0, 0.0, 4.0]], dtype=torch.float64)
    path = integrate(TSITOURAS, pendulum, truth, [0.1 * k for k in range(201)], trajectory=True).ys
    assert path is not None
    seen = path[0, :, :1] + 0.05 * normal(201, 1)
    ensemble = truth.new_tensor([1.0, 0.0, 3.0]) + truth.new_tensor([0.3, 0.3, 1.0]) * normal(20, 3)
    found = ensemble_kalman(TSITOURAS, pendulum, ensemble, seen, interval=0.1, observe=lambda s: s[:, :1],
                            covariance=truth.new_tensor([[0.05**2]]))
    assert abs(float(found.analyses[-1, :, 2].mean()) - 4.0) < 0.03
    late = (found.analyses[100:, :, 0].mean(1) - path[0, 100:, 0]).square().mean().sqrt()
    assert float(late) < 0.5 * 0.05


def test_wrong_input_is_refused() -> None:
    good = dict(interval=0.1, observe=lambda x: x @ H.T, covariance=R)
    with pytest.raises(ValueError, match="at least two members"):
        ensemble_kalman(TSITOURAS, linear, normal(1, 3), normal(2, 2), **good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive interval"):
        ensemble_kalman(TSITOURAS, linear, normal(4, 3), normal(2, 2), **good | {"inflation": math.nan})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive definite"):
        ensemble_kalman(TSITOURAS, linear, normal(4, 3), normal(2, 2), **good | {"covariance": -R})  # type: ignore[arg-type]
