"""Faults of diffusers' own schedulers (0.42) that a compiled plan cannot have; one test for each."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from samplers.diffusers import FewStepScheduler
from tests.samplers.test_diffusers_step import Operations, Unread

SHAPE = (2, 3, 8, 8)
CLASSES = (DDIMScheduler, DDPMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler,
           DPMSolverSinglestepScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler,
           FlowMatchEulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler, LMSDiscreteScheduler, PNDMScheduler,
           SASolverScheduler, UniPCMultistepScheduler)
LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(0.9 * x) * (0.5 + float(t) / 2000)


def ready(source: Any, count: int = 8, **config: Any) -> FewStepScheduler:
    ours = FewStepScheduler.from_config(source, **config)
    ours.set_timesteps(count)
    return ours


def run(scheduler: FewStepScheduler, x: Tensor, **arguments: Any) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, **arguments).prev_sample
    return x


@pytest.mark.parametrize("source", CLASSES)
def test_no_history_is_left_over_from_the_previous_batch(source: type) -> None:
    ours, draw = ready(source()), {"variance_noise": normal(2)}
    expected = run(ready(source()), normal(0), **draw)
    for batch in (1, 3):  # a run that is cut short, of another batch size
        ours.step(normal(3, (batch, 3, 8, 8)), ours.timesteps[0], normal(4, (batch, 3, 8, 8)),
                  variance_noise=normal(5, (batch, 3, 8, 8)))
        ours.set_timesteps(8)
    assert torch.equal(run(ours, normal(0), **draw), expected)


@pytest.mark.parametrize("kind", ("bh1", "bh2"))
@pytest.mark.parametrize(("predict_x0", "lower_order_final"), [(True, False), (False, True), (False, False)])
def test_unipc_is_finite_at_a_zero_final_sigma(predict_x0: bool, lower_order_final: bool, kind: str) -> None:
    for order in (1, 2, 3):
        source = UniPCMultistepScheduler(solver_order=order, predict_x0=predict_x0, solver_type=kind,
                                         lower_order_final=lower_order_final)
        assert torch.isfinite(run(ready(source), normal(0))).all()


@pytest.mark.parametrize("kind", ("midpoint", "heun"))
@pytest.mark.parametrize("end", ("zero", "sigma_min"))
def test_the_third_order_of_sde_dpm_solver_runs(end: str, kind: str) -> None:
    source = {**DPMSolverMultistepScheduler().config, "_class_name": "DPMSolverMultistepScheduler", "solver_order": 3,
              "algorithm_type": "sde-dpmsolver", "solver_type": kind, "final_sigmas_type": end}
    assert torch.isfinite(run(ready(source), normal(0), variance_noise=normal(1))).all()


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("source", (DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler,
                                    EulerDiscreteScheduler))
def test_no_timestep_comes_twice_on_a_cosine_schedule_and_every_one_is_found(source: type, levels: str) -> None:
    ours = ready(source(beta_schedule="squaredcos_cap_v2", **{levels: True}), 20)
    assert all(before > after for before, after in pairwise(ours.timesteps.tolist()))
    for index, t in list(enumerate(ours.timesteps.tolist()))[::6]:
        ours.set_timesteps(20)
        ours.step(normal(1), t, normal(0))
        assert ours.step_index == index + 1


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("source", (DPMSolverMultistepScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler))
def test_the_network_is_told_the_time_of_its_noise_level(source: type, levels: str) -> None:
    ours = ready(source(**{levels: True}), 9)
    np.testing.assert_allclose(ours.schedule.ratio(ours.timesteps.double().numpy()), ours.sigmas[:-1], rtol=1e-5)


def test_a_flow_network_is_told_the_time_of_its_noise_level() -> None:
    source = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    ours = ready(source, 9)
    np.testing.assert_allclose(ours.timesteps / 1000.0, ours.sigmas[:-1], rtol=1e-6)


@pytest.mark.parametrize("source", (UniPCMultistepScheduler, DPMSolverMultistepScheduler))
def test_the_shift_of_one_call_does_not_leak_into_the_next(source: type) -> None:
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_dynamic_shifting": True}
    ours = FewStepScheduler.from_config(source(**config))
    levels = []
    for mu in (0.3, 1.2, 0.3):
        ours.set_timesteps(6, mu=mu)
        levels.append(ours.sigmas.tolist())
    assert levels[0] == levels[2] != levels[1]
    with pytest.raises(ValueError, match="mu=None"):
        ours.set_timesteps(6)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
@pytest.mark.parametrize("source", (DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler))
def test_a_half_precision_state_is_kept_in_single_precision(source: type, dtype: torch.dtype) -> None:
    config = {"prediction_type": "sample", "final_sigmas_type": "sigma_min", "clip_sample": False}
    ours = ready(source(), 200, **config)
    x, datum = normal(0).to(dtype), torch.full(SHAPE, 0.5, dtype=dtype)  # the path of a single datum is known
    start, end = float(ours.timesteps[0]), float(ours.plan.rows[-1].t_next)
    noise = (x.double() - ours.schedule.alpha(start) * 0.5) / ours.schedule.sigma(start)
    for t in ours.timesteps:
        x = ours.step(datum, t, x).prev_sample
    exact = ours.schedule.alpha(end) * 0.5 + ours.schedule.sigma(end) * noise
    assert x.dtype == dtype
    assert float(((x.double() - exact) / exact).abs().max()) <= torch.finfo(dtype).eps


@pytest.mark.parametrize("source", (DDPMScheduler, EulerAncestralDiscreteScheduler, LCMScheduler, SASolverScheduler))
def test_the_noise_of_a_sample_does_not_depend_on_its_batch(source: type) -> None:
    ours = ready(source())

    def sample(seeds: list[int]) -> Tensor:
        ours.set_timesteps(8)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        x = torch.stack([normal(seed, SHAPE[1:]) for seed in seeds])
        return run(ours, x, generator=generators)

    assert torch.equal(sample([3, 4, 5])[1:2], sample([4]))


@pytest.mark.parametrize("source", CLASSES)
def test_no_step_waits_for_the_device(source: type) -> None:
    ours, x, generator = ready(source(), 8), normal(0), torch.Generator().manual_seed(0)
    for t in [ours.timesteps[0], *[Unread()] * 7]:
        with Operations(x.numel()):  # refuses every operation that reads from the device
            x = ours.step(normal(1), t, x, generator=generator).prev_sample
