"""One step of the scheduler: what it costs, what it remembers, and what it takes from the pipeline."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from odecore.plan import execute
from samplers.diffusers import FewStepScheduler
from samplers.registry import SOLVERS
from samplers.solver import Solver

FIXED = tuple(name for name, solver in SOLVERS.items() if isinstance(solver, Solver))
SHAPE = (1, 4, 16, 16)


class Operations(TorchDispatchMode):
    """Counts operations on tensors of the latent's size, and refuses those that wait for a device."""

    WAITING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "unique", "masked_select")

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.count = size, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = func.overloadpacket.__name__
        assert not any(name.startswith(waiting) for waiting in self.WAITING), f"{name} waits for the device"
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() >= self.size and not func.is_view:
            self.count += 1
        return result


class Unread:
    """A timestep that nobody may look at."""

    def __float__(self) -> float:
        raise AssertionError("the timestep was read")


def network(x: Tensor, t: float | Tensor) -> Tensor:
    return torch.tanh(0.9 * x) * (0.5 + float(t) / 2000)


def noise(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run(
    scheduler: Any, x: Tensor, start: int = 0, change: Callable[[Tensor], Tensor] = lambda x: x, **arguments: Any
) -> Tensor:
    for t in scheduler.timesteps[start:]:
        x = change(scheduler.step(network(x, t), t, x, **arguments).prev_sample)
    return x


def ready(count: int = 8, **config: Any) -> FewStepScheduler:
    scheduler = FewStepScheduler(**config)
    scheduler.set_timesteps(count)
    return scheduler


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("solver", FIXED)
def test_a_step_takes_at_most_twelve_operations_and_never_waits(solver: str, dtype: torch.dtype) -> None:
    scheduler = ready(solver=solver)
    x, raw = noise(dtype=dtype), noise(1, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        x = scheduler.step(raw, scheduler.timesteps[0], x, generator).prev_sample  # finds its index
        for _ in range(7):
            with Operations(x.numel()) as operations:
                x = scheduler.step(raw, Unread(), x, generator).prev_sample
            assert 0 < operations.count <= 12


@pytest.mark.parametrize("begin", (None, 0))
def test_the_first_step_does_not_wait_either(begin: int | None) -> None:
    scheduler, x, raw = ready(), noise(), noise(1)
    if begin is not None:
        scheduler.set_begin_index(begin)
    t = scheduler.timesteps[0]
    with Operations(x.numel()):
        scheduler.step(raw, t if begin is None else Unread(), x)


def test_a_timestep_is_found_by_its_value_too() -> None:
    expected = ready().step(noise(1), ready().timesteps[2], noise()).prev_sample
    for timestep in (float(ready().timesteps[2]), ready().timesteps[2].to(torch.bfloat16)):
        assert torch.equal(ready().step(noise(1), timestep, noise()).prev_sample, expected)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16))
@pytest.mark.parametrize("solver", ("dpm-solver++-3m", "dpm-solver-3", "edm-heun"))
def test_steps_equal_the_executor_in_every_precision(solver: str, dtype: torch.dtype) -> None:
    scheduler = ready(solver=solver)
    expected = execute(scheduler.plan, lambda x, t: network(x, np.float32(t)), noise(dtype=dtype))
    result = run(scheduler, noise(dtype=dtype))
    assert result.dtype == dtype
    assert torch.equal(result, expected)


def test_a_half_precision_sample_that_was_written_to_is_read_again() -> None:
    scheduler, reference = ready(), ready()

    def overwrite(x: Tensor) -> Tensor:
        return x.mul_(0.5)

    changed = run(scheduler, noise(dtype=torch.bfloat16), change=overwrite)
    copied = run(reference, noise(dtype=torch.bfloat16), change=lambda x: x * 0.5)
    assert torch.equal(changed, copied)


def test_half_precision_works_in_inference_mode() -> None:
    with torch.inference_mode():
        assert torch.isfinite(run(ready(), noise(dtype=torch.bfloat16))).all()


@pytest.mark.parametrize("order", (2, 3))
def test_a_sample_that_the_pipeline_changes_between_steps_is_taken_up_as_in_diffusers(order: int) -> None:
    theirs = DPMSolverMultistepScheduler(solver_order=order)
    theirs.set_timesteps(8)
    ours = ready(solver=f"dpm-solver++-{order}m", weights="midpoint")
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2)) < 0.5

    def inpaint(x: Tensor) -> Tensor:
        return torch.where(mask, x, 0.3)

    torch.testing.assert_close(run(ours, noise(), change=inpaint), run(theirs, noise(), change=inpaint),
                               rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("solver", FIXED)
def test_nothing_is_left_over_from_a_run_that_was_cut_short(solver: str) -> None:
    scheduler, x = ready(solver=solver), noise()
    arguments = {"variance_noise": noise(3)}
    expected = run(ready(solver=solver), x, **arguments)
    for t in scheduler.timesteps[:3]:
        scheduler.step(noise(5), t, noise(6), **arguments)
    scheduler.set_timesteps(8)
    assert torch.equal(run(scheduler, x, **arguments), expected)


def held(solver: str, steps: int) -> tuple[FewStepScheduler, list[weakref.ref[Tensor]]]:
    """A scheduler after some steps, and references to every tensor that went in and out."""
    scheduler, x = ready(solver=solver, clip_sample=True), noise()
    references = [weakref.ref(x)]
    for t in scheduler.timesteps[:steps]:
        raw = network(x, t)
        x = scheduler.step(raw, t, x, variance_noise=noise(3)).prev_sample
        references += [weakref.ref(raw), weakref.ref(x)]
    return scheduler, references


@pytest.mark.parametrize("solver", ("ddim", "ddpm", "dpm-solver++-3m", "unipc-3", "edm-heun", "pndm"))
def test_no_tensor_is_held_after_a_run_nor_beyond_new_timesteps(solver: str) -> None:
    scheduler, references = held(solver, 8)
    assert not any(reference() is not None for reference in references)
    scheduler, references = held(solver, 5)
    assert any(reference() is not None for reference in references)
    scheduler.set_timesteps(8)
    assert not any(reference() is not None for reference in references)


def test_a_finished_run_may_be_followed_by_another_without_setting_timesteps() -> None:
    scheduler = ready()
    first = run(scheduler, noise())
    assert scheduler.step_index is None
    assert torch.equal(run(scheduler, noise()), first)


@pytest.mark.parametrize("order", (2, 3))
@pytest.mark.parametrize("begin", (1, 3, 7))
def test_a_multistep_run_that_begins_in_the_middle_equals_that_of_diffusers(order: int, begin: int) -> None:
    theirs = DPMSolverMultistepScheduler(solver_order=order)
    theirs.set_timesteps(8)
    ours = ready(solver=f"dpm-solver++-{order}m", weights="midpoint")
    for scheduler in (theirs, ours):
        scheduler.set_begin_index(begin)
    torch.testing.assert_close(run(ours, noise(), begin), run(theirs, noise(), begin), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by_index", (True, False))
@pytest.mark.parametrize("solver", [name for name in FIXED if not SOLVERS[name].stochastic])
def test_a_run_that_begins_anywhere_ends_on_the_exact_path_of_a_single_datum(solver: str, by_index: bool) -> None:
    datum, epsilon = 0.4, noise().double()
    for begin in range(9):
        scheduler = ready(9, solver=solver, final_sigmas_type="sigma_min", prediction_type="sample")
        if by_index:
            scheduler.set_begin_index(begin)
        t = scheduler.timesteps[begin:begin + 1]
        x = scheduler.add_noise(torch.full(SHAPE, datum, dtype=torch.float64), epsilon, t)
        for t in scheduler.timesteps[begin:]:
            x = scheduler.step(torch.full_like(x, datum), t, x).prev_sample
        end = scheduler.plan.rows[-1].t_next
        expected = scheduler.schedule.alpha(end) * datum + scheduler.schedule.sigma(end) * epsilon
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)  # add_noise reads the timestep in float32


@pytest.mark.parametrize("solver", FIXED)
@pytest.mark.parametrize("end", ("zero", "sigma_min"))
def test_every_solver_is_finite_to_either_end(solver: str, end: str) -> None:
    scheduler = ready(7, solver=solver, final_sigmas_type=end)
    assert torch.isfinite(run(scheduler, noise(), variance_noise=noise(1))).all()


@pytest.mark.parametrize("levels", ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"))
@pytest.mark.parametrize("beta_schedule", ("linear", "squaredcos_cap_v2"))
def test_no_timestep_comes_twice_with_any_levels(levels: str, beta_schedule: str) -> None:
    for count in (10, 50, 100):
        scheduler = ready(count, beta_schedule=beta_schedule, **{levels: True})
        assert (torch.diff(scheduler.timesteps) < 0).all()
        assert len(scheduler.timesteps) == count


@pytest.mark.parametrize("spacing", ("leading", "linspace", "trailing"))
@pytest.mark.parametrize("count", (700, 1000, 1500))
def test_no_timestep_comes_twice_with_more_steps_than_can_be_rounded_apart(spacing: str, count: int) -> None:
    scheduler = ready(count, timestep_spacing=spacing, steps_offset=1)
    assert (torch.diff(scheduler.timesteps) < 0).all()
    assert scheduler.timesteps.max() <= 999
    assert len(scheduler.timesteps) == count


def test_a_learned_variance_is_cut_off_whatever_the_number_of_channels() -> None:
    ours, learned = ready(), ready(variance_type="learned_range")
    raw = noise(1)
    cut = learned.step(torch.cat([raw, noise(2)], 1), learned.timesteps[0], noise()).prev_sample
    assert torch.equal(cut, ours.step(raw, ours.timesteps[0], noise()).prev_sample)


@pytest.mark.parametrize("maximum", (1.0, 3.0))
def test_thresholding_equals_that_of_diffusers(maximum: float) -> None:
    config = {"thresholding": True, "sample_max_value": maximum, "dynamic_thresholding_ratio": 0.9}
    theirs = DPMSolverMultistepScheduler(**config)
    theirs.set_timesteps(8)
    ours = ready(**config)
    torch.testing.assert_close(run(ours, 3 * noise()), run(theirs, 3 * noise()), rtol=1e-5, atol=1e-5)


def test_given_noise_replaces_that_of_the_generator() -> None:
    ours = ready(solver="ddpm")
    generator = torch.Generator().manual_seed(9)
    drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    t = ours.timesteps[0]
    first = ours.step(noise(1), t, noise(), generator).prev_sample
    ours.set_timesteps(8)
    assert torch.equal(ours.step(noise(1), t, noise(), variance_noise=drawn).prev_sample, first)


def test_a_tuple_is_returned_if_asked_for() -> None:
    ours = ready()
    (x,) = ours.step(noise(1), ours.timesteps[0], noise(), return_dict=False)
    assert x.shape == SHAPE


@pytest.mark.parametrize("timesteps", (torch.tensor([0, 500, 999]), torch.tensor([17])))
def test_noising_and_velocity_equal_those_of_diffusers(timesteps: Tensor) -> None:
    ours, theirs = FewStepScheduler(), DDPMScheduler()
    x0, eps = noise(0, (3, 1, 4, 4)), noise(1, (3, 1, 4, 4))
    for name in ("add_noise", "get_velocity"):
        torch.testing.assert_close(getattr(ours, name)(x0, eps, timesteps), getattr(theirs, name)(x0, eps, timesteps),
                                   rtol=1e-5, atol=1e-5)


def test_noising_whole_timesteps_does_not_wait_for_the_device_once_its_table_is_there() -> None:
    ours, timesteps = FewStepScheduler(), torch.tensor([3])
    ours.add_noise(noise(), noise(1), timesteps)
    with Operations(1):
        ours.add_noise(noise(), noise(1), timesteps)


def test_noising_takes_fractional_timesteps() -> None:
    ours = ready(use_karras_sigmas=True)
    t = ours.timesteps[3:4]
    expected = ours.schedule.alpha(float(t)) * noise() + ours.schedule.sigma(float(t)) * noise(1)
    torch.testing.assert_close(ours.add_noise(noise(), noise(1), t), expected)


def test_custom_timesteps_are_where_the_network_is_evaluated() -> None:
    ours = FewStepScheduler()
    ours.set_timesteps(timesteps=[999, 700, 331.5, 20])
    assert ours.timesteps.tolist() == [999, 700, 331.5, 20]
    assert ours.num_inference_steps == ours.plan.nfe == 4
    assert ours.plan.rows[-1].t_next == ours.schedule.t_clean


def test_thresholding_that_cannot_be_is_refused_when_timesteps_are_set() -> None:
    ours = FewStepScheduler(thresholding=True, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="epsilon"):
        ours.set_timesteps(8)


def test_custom_sigmas_may_name_their_end() -> None:
    ours = FewStepScheduler()
    levels = [100.0, 6.0, 1.0, 0.2]
    for given in (levels, [*levels, 0.0]):
        ours.set_timesteps(sigmas=given)
        np.testing.assert_allclose(ours.sigmas, [*levels, 0.0], rtol=1e-6)


def test_a_published_singlestep_solver_takes_custom_timesteps_as_stages() -> None:
    ours = FewStepScheduler(solver="dpm-solver-3", weights="midpoint")
    ours.set_timesteps(timesteps=[999, 800, 600, 400, 200])
    assert ours.timesteps.tolist() == [999, 800, 600, 400, 200]


@pytest.mark.parametrize(("arguments", "message"), [
    ({}, "num_inference_steps=None"),
    ({"num_inference_steps": 0}, "nfe=0"),
    ({"timesteps": [999, 500], "sigmas": [1.0]}, "pass one of them"),
    ({"num_inference_steps": 3, "timesteps": [999, 500]}, "leave it out"),
    ({"timesteps": []}, "at least one"),
    ({"sigmas": [200.0, 1.0]}, "more noise"),
    ({"timesteps": [500, 999]}, "decrease"),
    ({"timesteps": [999, float("nan")]}, "finite"),
    ({"timesteps": [1200, 500]}, "between"),
    ({"num_inference_steps": 5, "mu": 1.0}, "mu=1.0"),
])
def test_wrong_timesteps_are_refused_when_they_are_set(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewStepScheduler().set_timesteps(**arguments)


def test_a_solver_that_places_its_own_stages_refuses_custom_timesteps() -> None:
    with pytest.raises(ValueError, match="weights='midpoint'"):
        FewStepScheduler(solver="edm-heun").set_timesteps(timesteps=[999, 500])


def test_a_step_before_timesteps_are_set_is_refused() -> None:
    with pytest.raises(ValueError, match="call set_timesteps"):
        FewStepScheduler().step(noise(1), 999, noise())


def test_a_timestep_that_is_not_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"timestep=950\.0 is none of"):
        ready().step(noise(1), 950, noise())


def test_an_output_of_another_shape_is_refused() -> None:
    scheduler = ready()
    with pytest.raises(ValueError, match="variance_type"):
        scheduler.step(torch.cat([noise(1), noise(2)], 1), scheduler.timesteps[0], noise())


def test_a_batch_of_another_size_in_mid_run_is_refused() -> None:
    scheduler = ready()
    scheduler.step(noise(1), scheduler.timesteps[0], noise())
    with pytest.raises(ValueError, match="before a new run"):
        scheduler.step(noise(1, (2, 4, 16, 16)), scheduler.timesteps[1], noise(2, (2, 4, 16, 16)))


def test_a_begin_index_beyond_the_plan_is_refused() -> None:
    scheduler = ready()
    scheduler.set_begin_index(8)
    with pytest.raises(ValueError, match="begin_index=8"):
        scheduler.step(noise(1), scheduler.timesteps[0], noise())
