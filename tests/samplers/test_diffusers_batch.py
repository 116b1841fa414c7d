"""Samples of one batch at different rows: each goes its own way, as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, LCMScheduler
from torch import Tensor

from odecore.plan import Row
from samplers.diffusers import FewStepScheduler
from samplers.diffusers_batch import rows_side_by_side, side_by_side
from samplers.registry import SOLVERS
from samplers.solver import Solver

PLAIN = tuple(name for name, solver in SOLVERS.items() if isinstance(solver, Solver) and not solver.stochastic)
BEGINS = (2, 0, 5)
COUNT = 9


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(0.9 * x) * (0.5 + t.reshape(-1, 1, 1, 1).float() / 2000)


def normal(seed: int = 0, batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def alone(scheduler: FewStepScheduler, x: Tensor, begin: int, **arguments: Any) -> Tensor:
    scheduler.set_timesteps(COUNT)
    for t in scheduler.timesteps[begin:]:
        given = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(given, t.reshape(1)), t, x, **arguments).prev_sample
    return x


def together(scheduler: FewStepScheduler, x: Tensor, begins: tuple[int, ...] = BEGINS, **arguments: Any) -> Tensor:
    scheduler.set_timesteps(COUNT)
    for step in range(COUNT - min(begins)):
        t = torch.stack([scheduler.timesteps[min(begin + step, COUNT - 1)] for begin in begins])
        given = scheduler.scale_model_input(x, t)
        x = scheduler.step(network(given, t), t, x, **arguments).prev_sample
    assert scheduler.step_index is None
    return x


def each(scheduler: FewStepScheduler, x: Tensor, begins: tuple[int, ...] = BEGINS, **arguments: Any) -> Tensor:
    return torch.cat([alone(scheduler, x[i: i + 1], begin, **arguments) for i, begin in enumerate(begins)])


@pytest.mark.parametrize("solver", PLAIN)
def test_each_sample_starts_at_its_own_row_with_every_solver(solver: str) -> None:
    scheduler, x = FewStepScheduler(solver=solver), normal().double()
    scheduler.set_timesteps(COUNT)
    starts = [0, *(i + 1 for i, row in enumerate(scheduler.plan.rows[:-1]) if row.point == (1.0,))]
    begins = (starts[1], 0, starts[-2])  # a time that comes twice stands for the place where a step starts
    torch.testing.assert_close(together(scheduler, x, begins), each(scheduler, x, begins), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("source", [
    DDIMScheduler(), DDIMScheduler(clip_sample=False, thresholding=True), EDMEulerScheduler(),
    LCMScheduler(clip_sample=True)], ids=repr)
def test_clipping_and_the_scale_of_the_input_are_those_of_each_sample(source: Any) -> None:
    scheduler, x = FewStepScheduler.from_config(source), normal()
    quiet = {"variance_noise": torch.zeros(1)} if isinstance(source, LCMScheduler) else {}
    torch.testing.assert_close(together(scheduler, x, **quiet), each(scheduler, x, **quiet), rtol=1e-5, atol=1e-5)


def test_a_sample_that_has_come_to_its_end_gets_no_more_noise() -> None:
    scheduler, x = FewStepScheduler.from_config(DDPMScheduler()), normal()
    last = (COUNT - 1, 0, COUNT - 2)
    result = together(scheduler, x, last, generator=torch.Generator().manual_seed(0))
    scheduler.set_timesteps(COUNT)
    t = scheduler.timesteps[-1]
    assert torch.equal(result[:1], scheduler.step(network(x[:1], t.reshape(1)), t, x[:1]).prev_sample)


def test_a_vector_of_one_time_is_that_time() -> None:
    scheduler, x = FewStepScheduler(), normal()
    scheduler.set_timesteps(COUNT)
    t = scheduler.timesteps[3].repeat(3)
    vector = scheduler.step(network(x, t), t, x).prev_sample
    scheduler.set_timesteps(COUNT)
    assert torch.equal(scheduler.step(network(x, t), t[0], x).prev_sample, vector)


def test_half_precision_states_are_weighed_in_single_precision() -> None:
    scheduler, x = FewStepScheduler(), normal().to(torch.bfloat16)
    result = together(scheduler, x)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, each(scheduler, x), rtol=2e-2, atol=2e-2)


def test_numbers_that_all_samples_share_stay_numbers() -> None:
    like = normal(batch=2)
    (row, rest) = rows_side_by_side([[Row(3, 2, anchor=(0.5, 0.0, 1.0))], [Row(3, 2, anchor=(0.5, 0.0, 2.0)),
                                                                         Row(2, 1, noise=1.0)]], like)
    assert (row.t, row.anchor[:2]) == (3.0, (0.5, 0.0))
    assert row.anchor[2].tolist() == [[[[1.0]]], [[[2.0]]]]
    assert rest.noise.flatten().tolist() == [0.0, 1.0]
    assert side_by_side([1.0, 1.0], like) == 1.0


def test_a_vector_that_does_not_fit_the_batch_is_refused() -> None:
    scheduler = FewStepScheduler()
    scheduler.set_timesteps(COUNT)
    with pytest.raises(ValueError, match="2 entries for a batch of 3"):
        scheduler.step(normal(1), scheduler.timesteps[:2], normal())


def test_a_learned_variance_needs_one_time() -> None:
    scheduler = FewStepScheduler.from_config(DDPMScheduler(variance_type="learned_range"))
    scheduler.set_timesteps(COUNT)
    with pytest.raises(ValueError, match="learned_range"):
        scheduler.step(torch.cat([normal(1), normal(2)], 1), scheduler.timesteps[:3], normal())
