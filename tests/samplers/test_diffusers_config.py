"""`from_config` keeps what a model's config says, whichever diffusers scheduler it was written for."""

from __future__ import annotations

import inspect
import json
import logging
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UnCLIPScheduler,
    UniPCMultistepScheduler,
)

from samplers.diffusers import FewStepScheduler
from samplers.diffusers_config import SUPPORTED

DISCRETE = [DDIMScheduler, DDPMScheduler, PNDMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler,
            LMSDiscreteScheduler, DPMSolverMultistepScheduler, DEISMultistepScheduler, UniPCMultistepScheduler]
SPACED = [scheduler for scheduler in DISCRETE if scheduler is not PNDMScheduler]  # repeats a timestep


def saved(scheduler: Any) -> dict[str, Any]:
    """The config as a model folder holds it."""
    return json.loads(scheduler.to_json_string())


@pytest.mark.parametrize("spacing", ("leading", "linspace", "trailing"))
@pytest.mark.parametrize("source", SPACED)
def test_timesteps_are_those_of_the_source(source: type, spacing: str) -> None:
    offset = {"steps_offset": 1} if spacing == "leading" else {}
    theirs = source(timestep_spacing=spacing, **offset)
    ours = FewStepScheduler.from_config(theirs.config)
    for count in (1, 2, 7, 10, 20, 50):
        theirs.set_timesteps(count)
        ours.set_timesteps(count)
        np.testing.assert_allclose(ours.timesteps.numpy(), theirs.timesteps.numpy(), rtol=1e-6, atol=1e-4)
        assert len(ours.timesteps) == count


@pytest.mark.parametrize("source", DISCRETE)
def test_defaults_of_the_source_class_are_kept(source: type) -> None:
    theirs = source()
    ours = FewStepScheduler.from_config(theirs.config)
    for name in ("timestep_spacing", "steps_offset", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
        assert ours.config[name] == theirs.config[name], name


@pytest.mark.parametrize("source", [*DISCRETE, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler])
def test_a_config_in_memory_means_the_same_as_the_saved_one(source: type) -> None:
    in_memory = source()
    assert "_class_name" not in in_memory.config
    ours = FewStepScheduler.from_config(in_memory.config)
    assert ours.config.conventions in (source.__name__, *SUPPORTED)
    again = FewStepScheduler.from_config(saved(source()))
    for scheduler in (ours, again):
        scheduler.set_timesteps(6)
    assert torch.equal(ours.timesteps, again.timesteps)
    assert ours.schedule == again.schedule


@pytest.mark.parametrize("beta_schedule", ("linear", "scaled_linear", "squaredcos_cap_v2"))
@pytest.mark.parametrize("zero_snr", (False, True))
def test_the_schedule_is_that_of_the_source(beta_schedule: str, zero_snr: bool) -> None:
    theirs = DDIMScheduler(beta_schedule=beta_schedule, rescale_betas_zero_snr=zero_snr)
    ours = FewStepScheduler.from_config(theirs.config)
    alphas = ours.schedule.alpha(np.arange(1000.0))
    np.testing.assert_allclose(alphas**2, theirs.alphas_cumprod.double().numpy(), atol=2e-6)


@pytest.mark.parametrize("prediction", ("epsilon", "sample", "v_prediction"))
def test_the_prediction_type_is_kept(prediction: str) -> None:
    ours = FewStepScheduler.from_config(DDIMScheduler(prediction_type=prediction).config)
    assert ours.config.prediction_type == prediction


def test_trained_betas_and_a_shifted_snr_are_kept() -> None:
    betas = np.linspace(1e-4, 0.03, 100)
    ours = FewStepScheduler.from_config(DDPMScheduler(num_train_timesteps=100, trained_betas=betas).config)
    np.testing.assert_allclose(ours.schedule.betas, betas)
    theirs = CogVideoXDDIMScheduler()
    ours = FewStepScheduler.from_config(theirs.config)
    np.testing.assert_allclose(ours.schedule.alpha(np.arange(1000.0)) ** 2, theirs.alphas_cumprod, atol=2e-6)


@pytest.mark.parametrize("levels", ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"))
@pytest.mark.parametrize("source", (EulerDiscreteScheduler, DPMSolverMultistepScheduler))
def test_noise_levels_are_those_of_the_source_and_times_keep_their_fraction(source: type, levels: str) -> None:
    theirs = source(**{levels: True})
    ours = FewStepScheduler.from_config(theirs.config)
    theirs.set_timesteps(8)
    ours.set_timesteps(8)
    np.testing.assert_allclose(ours.sigmas.numpy(), theirs.sigmas.numpy(), rtol=1e-3, atol=1e-5)
    assert np.abs(ours.timesteps.numpy() - theirs.timesteps.numpy()).max() < 1.0
    assert ours.timesteps.dtype == torch.float32


@pytest.mark.parametrize("source", (EDMEulerScheduler, EDMDPMSolverMultistepScheduler))
@pytest.mark.parametrize("levels", ("karras", "exponential"))
def test_an_edm_config_gives_its_levels_its_network_times_and_its_input_scale(source: type, levels: str) -> None:
    theirs = source(sigma_schedule=levels, sigma_data=0.7)
    ours = FewStepScheduler.from_config(theirs.config)
    theirs.set_timesteps(9)
    ours.set_timesteps(9)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas, rtol=1e-5)
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps, rtol=1e-4, atol=1e-6)
    x, t = torch.randn(1, 3, 4, 4), ours.timesteps[0]
    torch.testing.assert_close(ours.scale_model_input(x, t), theirs.scale_model_input(x, theirs.timesteps[0]))


@pytest.mark.parametrize("prediction", ("epsilon", "v_prediction"))
def test_first_order_on_an_edm_config_equals_edm_euler(prediction: str) -> None:
    theirs = EDMEulerScheduler(prediction_type=prediction)
    ours = FewStepScheduler.from_config(theirs.config, solver="euler")
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 80
    torch.testing.assert_close(run(ours, x, 8), run(theirs, x, 8), rtol=1e-5, atol=1e-5)


def test_the_continuous_euler_of_video_models_is_edm_with_unit_data() -> None:
    theirs = EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous", use_karras_sigmas=True,
                                    sigma_min=0.002, sigma_max=700.0)
    ours = FewStepScheduler.from_config(theirs.config, solver="euler")
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 700
    torch.testing.assert_close(run(ours, x, 8), run(theirs, x, 8), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", (1.0, 3.0))
def test_first_order_on_a_flow_config_equals_flow_match_euler(shift: float) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = FewStepScheduler.from_config(theirs.config, solver="euler")
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(run(ours, x, 6), run(theirs, x, 6), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.timesteps, theirs.timesteps, rtol=1e-6)


def test_levels_that_a_flow_pipeline_gives_are_shifted_by_its_mu_for_one_run_only() -> None:
    config = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    theirs, ours = FlowMatchEulerDiscreteScheduler.from_config(config), FewStepScheduler.from_config(config)
    given = np.linspace(1.0, 1 / 6, 6).tolist()
    for mu in (1.15, 0.5, 1.15):
        theirs.set_timesteps(sigmas=given, mu=mu)
        ours.set_timesteps(sigmas=given, mu=mu)
        np.testing.assert_allclose(ours.sigmas, theirs.sigmas, rtol=1e-5)
    with pytest.raises(ValueError, match="mu=None"):
        ours.set_timesteps(6)


def test_flow_levels_of_unipc_are_kept_whole() -> None:
    theirs = UniPCMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction")
    ours = FewStepScheduler.from_config(theirs.config)
    theirs.set_timesteps(8)
    ours.set_timesteps(8)
    np.testing.assert_allclose(ours.sigmas, theirs.sigmas, atol=2e-6)
    assert np.abs(ours.timesteps.numpy() - theirs.timesteps.numpy()).max() <= 1.0


@pytest.mark.parametrize("source", [HeunDiscreteScheduler, FlowMatchHeunDiscreteScheduler, UnCLIPScheduler])
def test_a_source_that_counts_steps_otherwise_still_gives_as_many_evaluations_as_asked_for(source: type) -> None:
    ours = FewStepScheduler.from_config(source().config)
    ours.set_timesteps(7)
    assert len(ours.timesteps) == 7


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_default_config_of_every_supported_class_compiles(name: str) -> None:
    defaults = {key: p.default for key, p in inspect.signature(getattr(diffusers, name).__init__).parameters.items()
                if p.default is not inspect.Parameter.empty}
    ours = FewStepScheduler.from_config({"_class_name": name, **defaults})
    ours.set_timesteps(5)
    assert len(ours.timesteps) == 5


def test_arguments_override_the_config_under_our_names_and_the_sources() -> None:
    config = DPMSolverMultistepScheduler().config
    ours = FewStepScheduler.from_config(config, solver="dpm-solver-3", use_karras_sigmas=True, solver_order=3)
    assert ours.config.solver == "dpm-solver-3"
    assert ours.config.use_karras_sigmas
    assert ours.config.solver_order == 3  # kept for the way back


@pytest.mark.parametrize("source", (DDPMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler))
def test_no_attribute_of_a_known_config_is_reported_as_unexpected(
    source: type, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    FewStepScheduler.from_config(source().config)
    FewStepScheduler.from_config(saved(source()))
    FewStepScheduler.from_config(saved(FewStepScheduler.from_config(saved(source()))))
    assert not caplog.records


def test_levels_of_a_schedule_that_ends_in_pure_noise_are_finite() -> None:
    ours = FewStepScheduler(rescale_betas_zero_snr=True, use_karras_sigmas=True, prediction_type="v_prediction")
    ours.set_timesteps(8)
    assert float(ours.sigmas[0]) == pytest.approx(4096.0)


def test_our_own_config_round_trips() -> None:
    ours = FewStepScheduler.from_config(DDIMScheduler(timestep_spacing="trailing").config, solver="dpm-solver-3m")
    for config in (ours.config, saved(ours)):
        again = FewStepScheduler.from_config(config)
        for name in inspect.signature(FewStepScheduler.__init__).parameters:
            if name != "self":
                assert again.config[name] == ours.config[name], name


@pytest.mark.parametrize(("arguments", "message"), [
    ({"solver": "dpm-solver++-2n"}, "solver="),
    ({"solver": "dpm-solver-12"}, "chooses its own steps"),
    ({"weights": "exakt"}, "weights="),
    ({"weights": "heun", "solver": "euler"}, "weights='heun'"),
    ({"grid": "karas"}, "grid="),
    ({"timestep_spacing": "trail"}, "timestep_spacing="),
    ({"final_sigmas_type": "none"}, "final_sigmas_type="),
    ({"beta_schedule": "qubic"}, "beta_schedule="),
    ({"prediction_type": "x"}, "prediction"),
    ({"conventions": "Scheduler"}, "Scheduler"),
    ({"sample_max_value": 0.5}, "sample_max_value=0.5"),
    ({"use_karras_sigmas": True, "use_beta_sigmas": True}, "choose one"),
])
def test_a_wrong_argument_is_refused_when_the_scheduler_is_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewStepScheduler(**arguments)


def test_a_config_of_an_unknown_class_is_refused() -> None:
    with pytest.raises(ValueError, match="_class_name='AmusedScheduler'"):
        FewStepScheduler.from_config({"_class_name": "AmusedScheduler"})


def run(scheduler: Any, x: torch.Tensor, count: int) -> torch.Tensor:
    scheduler.set_timesteps(count)
    for t in scheduler.timesteps:
        raw = torch.tanh(scheduler.scale_model_input(x, t) * 0.9) if hasattr(scheduler, "scale_model_input") else (
            torch.tanh(x * 0.9))
        x = scheduler.step(raw, t, x).prev_sample
    return x
