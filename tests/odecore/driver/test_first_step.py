"""The automatic first step: against scipy's, for each sample by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import DOP853, RK23, RK45
from torch import Tensor

from odecore.driver.first_step import automatic_first_step
from odecore.driver.solve import solve, summed_tolerance
from odecore.explicit.embedded import BOGACKI_SHAMPINE, DORMAND_PRINCE

Y0 = torch.tensor([[0.3, 1.0], [40.0, -2.0], [0.0, 1e-7]], dtype=torch.float64)


def field(y: Tensor, t: Tensor) -> Tensor:
    return torch.stack([y[:, 1] * torch.cos(t), -3 * torch.sin(y[:, 0]) - t], 1)


@pytest.mark.parametrize(("order", "method"), [(3, RK23), (5, RK45), (8, DOP853)])
@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_each_sample_gets_the_first_step_of_scipy(order: int, method: type, direction: float) -> None:
    t, ways = torch.full((3,), 0.4, dtype=torch.float64), torch.full((3,), direction, dtype=torch.float64)
    ours = automatic_first_step(field, t, ways, Y0, order, lambda x, size: summed_tolerance(x, size, 1e-4, 1e-6))

    def alone(t: float, y: np.ndarray) -> np.ndarray:
        return field(torch.from_numpy(y).unsqueeze(0), torch.tensor([t], dtype=torch.float64))[0].numpy()

    for i, y in enumerate(Y0.numpy()):
        theirs = method(alone, 0.4, y, 0.4 + direction * 100, rtol=1e-4, atol=1e-6).h_abs
        assert ours.length[i].item() == pytest.approx(theirs, rel=1e-10)


def test_the_first_step_does_not_depend_on_the_interval_and_its_evaluations_count() -> None:
    reached: list[Tensor] = []
    calls: list[int] = []

    def recorded(y: Tensor, t: Tensor) -> Tensor:
        calls.append(len(y))
        return field(y, t)

    for end in (5.0, 50.0):
        attempts: list[Tensor] = []
        calls.clear()
        solution = solve(DORMAND_PRINCE, recorded, Y0, 0.0, end, rtol=1e-4, atol=1e-6,
                         callback=lambda n, t, attempts=attempts: attempts.append(t))
        assert solution.nfe == len(calls)
        reached.append(attempts[0])
    assert torch.equal(*reached)


def test_a_field_at_rest_gets_a_first_step_and_a_short_interval_no_more_than_itself() -> None:
    solution = solve(BOGACKI_SHAMPINE, lambda y, t: torch.zeros_like(y), torch.zeros(2, 1), 0.0,
                     torch.tensor([1e-9, 3.0], dtype=torch.float64), rtol=1e-3, atol=1e-3)
    assert solution.t.tolist() == [1e-9, 3.0] and solution.accepted[0] == 1


def test_a_trial_that_overflows_leaves_a_finite_step() -> None:
    length = automatic_first_step(lambda y, t: torch.where(t.unsqueeze(1) > 0, torch.inf, -y), torch.zeros(1).double(),
                                  torch.ones(1).double(), torch.ones(1, 1).double(), 5,
                                  lambda x, size: summed_tolerance(x, size, 1e-3, 1e-3)).length
    assert torch.isfinite(length).all() and (length > 0).all()
