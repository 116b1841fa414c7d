"""Windows of trajectories and the loss of a rollout."""

from __future__ import annotations

import pytest
import torch

from odecore.explicit.embedded import TSITOURAS
from odecore.learn.fields import MLP, StructuredField, Unknown
from odecore.learn.rollout import rollout_loss, trajectories, windows

TIMES = [0.1 * k for k in range(6)]


def decay(y: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -y


def test_windows_are_all_stretches_in_order() -> None:
    runs = torch.arange(10.0).reshape(2, 5, 1)
    assert windows(runs, 3)[:, :, 0].tolist() == [[0, 1, 2, 3], [1, 2, 3, 4], [5, 6, 7, 8], [6, 7, 8, 9]]


def test_trajectories_are_the_exact_solution() -> None:
    found = trajectories(TSITOURAS, decay, torch.tensor([[1.0], [2.0]], dtype=torch.float64), TIMES)
    exact = torch.tensor([[1.0], [2.0]], dtype=torch.float64) * torch.exp(-torch.tensor(TIMES, dtype=torch.float64))
    torch.testing.assert_close(found[:, :, 0], exact, rtol=1e-9, atol=0)


def test_the_loss_is_the_mean_square_over_later_nodes() -> None:
    nodes = trajectories(TSITOURAS, decay, torch.ones(3, 1, dtype=torch.float64), TIMES)
    shifted = nodes.clone()
    shifted[:, 1:] += 0.5
    zero = StructuredField(lambda y, t, g: 0 * g - y, {"g": Unknown(MLP((1, 1), dtype=torch.float64), (0,))})
    loss = rollout_loss(TSITOURAS, TIMES, weight=2.0)
    assert loss(zero, (nodes,)).item() < 1e-20  # type: ignore[union-attr]
    torch.testing.assert_close(loss(zero, (shifted,)).item(), 2 * 0.25)  # type: ignore[union-attr]


@pytest.mark.parametrize("length", [0, 5])
def test_windows_longer_than_a_trajectory_are_refused(length: int) -> None:
    with pytest.raises(ValueError, match="steps of a trajectory"):
        windows(torch.zeros(2, 5, 1), length)
