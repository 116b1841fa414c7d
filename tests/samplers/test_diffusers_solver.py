"""`from_config` understands the solver of each diffusers scheduler: ours gives the same states, step by step."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
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
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    TCDScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from torch import Tensor

from samplers.diffusers import FewStepScheduler

RELATIVE = 1e-5
SHAPE = (2, 3, 8, 8)
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
FOLDER = Path(__file__).parents[2] / "scoremodels" / "pretrained" / "fashion-mnist-ddpm"

Scheduler = Any


def network(x: Tensor, t: float | Tensor) -> Tensor:
    return torch.tanh(0.9 * x) * (0.5 + float(t) / 2000)


def normal(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_units_of_sigma(scheduler: Scheduler) -> bool:
    """Whether its states are x/α; ours are x."""
    return "DiscreteScheduler" in type(scheduler).__name__ and "Flow" not in type(scheduler).__name__


def alpha(scheduler: Scheduler, index: int) -> float:
    return 1.0 / float(scheduler.sigmas[index] ** 2 + 1.0) ** 0.5 if in_units_of_sigma(scheduler) else 1.0


def run(scheduler: Scheduler, x: Tensor, model: Any, told: Tensor, **arguments: Any) -> Tensor:
    """Sample; ``told`` are the times that the network is told."""
    if "generator" in inspect.signature(scheduler.step).parameters:
        arguments = {"generator": torch.Generator().manual_seed(1), **arguments}
    for told_time, t in zip(told, scheduler.timesteps, strict=True):
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(model(given, told_time), t, x, **arguments).prev_sample
    return x


@torch.no_grad()
def difference(
    theirs: Scheduler, count: int, model: Any = network, shape: tuple[int, ...] = SHAPE, **arguments: Any
) -> float:
    """Relative difference of the samples after the same evaluations; theirs may cut its timesteps to integers."""
    theirs.set_timesteps(count)
    ours = FewStepScheduler.from_config(theirs)
    ours.set_timesteps(len(theirs.timesteps))
    assert (ours.timesteps - theirs.timesteps).abs().max() <= 1.0
    start = normal(0, shape) * float(getattr(theirs, "init_noise_sigma", 1.0))
    other = run(theirs, start, model, ours.timesteps, **arguments) * alpha(theirs, -1)
    result = run(ours, start * alpha(theirs, 0), model, ours.timesteps, **arguments)
    return float((result - other).norm() / other.norm())


@pytest.mark.parametrize(("theirs", "count"), [
    (DDPMScheduler(), 8),
    (DDPMScheduler(variance_type="fixed_large", clip_sample=False), 8),
    (DDIMScheduler(), 8),
    (PNDMScheduler(skip_prk_steps=True, steps_offset=1), 8),
    (LMSDiscreteScheduler(**LEADING), 8),
    (EulerDiscreteScheduler(**LEADING), 8),
    (EulerAncestralDiscreteScheduler(**LEADING), 8),
    (HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02, **LEADING), 5),
    (KDPM2DiscreteScheduler(beta_start=1e-4, beta_end=0.02, **LEADING), 5),
    (KDPM2AncestralDiscreteScheduler(beta_start=1e-4, beta_end=0.02, **LEADING), 4),
    (DPMSolverMultistepScheduler(), 8),
    (DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"), 8),
    (DPMSolverSinglestepScheduler(), 8),
    (DEISMultistepScheduler(), 8),
    (UniPCMultistepScheduler(), 8),
], ids=lambda value: type(value).__name__ if hasattr(value, "config") else None)
def test_on_a_pretrained_network_the_default_solver_is_that_of_the_class(theirs: Scheduler, count: int) -> None:
    unet = UNet2DModel.from_pretrained(FOLDER, subfolder="unet").eval()
    assert difference(theirs, count, lambda x, t: unet(x, t).sample, (1, 1, 28, 28)) <= RELATIVE


@pytest.mark.parametrize("config", [
    {"clip_sample_range": 0.3}, {"clip_sample": False}, {"clip_sample": False, "thresholding": True},
    {"variance_type": "fixed_large", "clip_sample": False}, {"variance_type": "fixed_small_log"},
    {"prediction_type": "v_prediction"}, {"prediction_type": "sample"}, {"rescale_betas_zero_snr": True,
                                                                        "prediction_type": "v_prediction"}])
def test_ddpm_with_every_variance_and_clip_equals_that_of_diffusers(config: dict[str, Any]) -> None:
    assert difference(DDPMScheduler(**config), 8) <= RELATIVE


@pytest.mark.parametrize("kind", ("learned", "learned_range"))
def test_a_variance_that_the_network_learned_scales_the_noise_as_in_diffusers(kind: str) -> None:
    def both(x: Tensor, t: Tensor) -> Tensor:
        variance = torch.sigmoid(x) * 0.01 if kind == "learned" else torch.tanh(x)
        return torch.cat([network(x, t), variance], dim=1)

    assert difference(DDPMScheduler(variance_type=kind), 8, both) <= RELATIVE


@pytest.mark.parametrize("clipped", (False, True))
@pytest.mark.parametrize("eta", (0.0, 0.6, 1.0))
@pytest.mark.parametrize("config", [
    {}, {"clip_sample": False}, {"clip_sample": False, "thresholding": True, "sample_max_value": 2.0},
    {"set_alpha_to_one": False, "steps_offset": 1}])
def test_ddim_takes_its_eta_and_its_clip_from_the_pipeline_as_in_diffusers(
    config: dict[str, Any], eta: float, clipped: bool
) -> None:
    theirs = DDIMScheduler(**config)
    assert difference(theirs, 8, eta=eta, use_clipped_model_output=clipped) <= RELATIVE


@pytest.mark.parametrize("config", [
    {"skip_prk_steps": True, "steps_offset": 1}, {"skip_prk_steps": True, "set_alpha_to_one": True},
    {"steps_offset": 1}, {"set_alpha_to_one": True}])
def test_pndm_and_plms_equal_those_of_diffusers(config: dict[str, Any]) -> None:
    assert difference(PNDMScheduler(**config), 10) <= RELATIVE  # of which half a stride is a whole timestep


@pytest.mark.parametrize("end", ("zero", "sigma_min"))
def test_euler_ends_where_the_config_says(end: str) -> None:
    assert difference(EulerDiscreteScheduler(final_sigmas_type=end, **LEADING), 8) <= RELATIVE


@pytest.mark.parametrize("source", (HeunDiscreteScheduler, KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler,
                                    FlowMatchHeunDiscreteScheduler))
def test_a_class_of_two_evaluations_a_step_spends_2n_minus_1_on_n_steps_and_we_what_is_asked_for(source: type) -> None:
    theirs = source()
    theirs.set_timesteps(6)
    assert len(theirs.timesteps) == 11
    ours = FewStepScheduler.from_config(theirs)
    for nfe in (6, 11):
        ours.set_timesteps(nfe)
        assert len(ours.timesteps) == nfe


@pytest.mark.parametrize("final", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("kind", ("midpoint", "heun"))
@pytest.mark.parametrize("order", (1, 2, 3))
@pytest.mark.parametrize("algorithm", ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"))
def test_multistep_dpm_solver_takes_every_setting(
    algorithm: str, order: int, kind: str, final: tuple[bool, bool]
) -> None:
    theirs = DPMSolverMultistepScheduler(
        algorithm_type=algorithm, solver_order=order, solver_type=kind, lower_order_final=final[0],
        euler_at_final=final[1], final_sigmas_type="zero" if "++" in algorithm else "sigma_min")
    if algorithm.startswith("sde") and order == 3:
        # diffusers raises with noise prediction, and has one sign wrong with data prediction.
        ours = FewStepScheduler.from_config(theirs)
        ours.set_timesteps(8)
        assert ours.plan.about["solver"].endswith("-3m")
    else:
        assert difference(theirs, 8) <= RELATIVE


@pytest.mark.parametrize("count", (12, 13))
@pytest.mark.parametrize("lower", (True, False))
@pytest.mark.parametrize("order", (1, 2, 3))
@pytest.mark.parametrize("algorithm", ("dpmsolver++", "dpmsolver"))
def test_singlestep_dpm_solver_lowers_its_order_where_that_of_diffusers_does(
    algorithm: str, order: int, lower: bool, count: int
) -> None:
    end = "zero" if "++" in algorithm else "sigma_min"
    theirs = DPMSolverSinglestepScheduler(algorithm_type=algorithm, solver_order=order, lower_order_final=lower,
                                          final_sigmas_type=end)
    assert difference(theirs, count) <= RELATIVE


@pytest.mark.parametrize("lower", (True, False))
@pytest.mark.parametrize("order", (1, 2, 3))
def test_deis_ends_with_noise_as_in_diffusers(order: int, lower: bool) -> None:
    assert difference(DEISMultistepScheduler(solver_order=order, lower_order_final=lower), 8) <= RELATIVE


@pytest.mark.parametrize("disabled", ([], [0, 4]))
@pytest.mark.parametrize("lower", (True, False))
@pytest.mark.parametrize("predict_x0", (True, False))
@pytest.mark.parametrize("kind", ("bh1", "bh2"))
@pytest.mark.parametrize("order", (1, 2, 3))
def test_unipc_takes_every_setting(order: int, kind: str, predict_x0: bool, lower: bool, disabled: list[int]) -> None:
    # At a clean end, bh1 with data prediction, or without lower orders, gives no finite sample in diffusers.
    theirs = UniPCMultistepScheduler(
        solver_order=order, solver_type=kind, predict_x0=predict_x0, lower_order_final=lower,
        disable_corrector=disabled,
        final_sigmas_type="zero" if predict_x0 and lower and kind == "bh2" else "sigma_min")
    assert difference(theirs, 8) <= RELATIVE


@pytest.mark.parametrize("orders", [(1, 1), (2, 2), (2, 1), (3, 4)])
@pytest.mark.parametrize("algorithm", ("data_prediction", "noise_prediction"))
@pytest.mark.parametrize("tau", (None, lambda t: 0.5 if t > 300 else 0.0))
def test_sa_solver_equals_diffusers_on_the_same_noise(
    algorithm: str, orders: tuple[int, int], tau: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = [normal(seed) for seed in range(10, 18)]
    given = iter(draws)
    # Theirs draws in every step, also where its τ is zero.
    monkeypatch.setattr("diffusers.schedulers.scheduling_sasolver.randn_tensor", lambda *a, **k: next(given))
    theirs = SASolverScheduler(predictor_order=orders[0], corrector_order=orders[1], algorithm_type=algorithm,
                               tau_func=tau)
    theirs.set_timesteps(8)
    ours = FewStepScheduler.from_config(theirs)
    ours.set_timesteps(8)
    x = other = normal(0)
    for t, draw in zip(ours.timesteps, draws, strict=True):
        x = ours.step(network(x, t), t, x, variance_noise=draw).prev_sample
        other = theirs.step(network(other, t), t, other).prev_sample
    assert float((x - other).norm() / other.norm()) <= RELATIVE


@pytest.mark.parametrize("theirs", [
    EDMEulerScheduler(), EDMDPMSolverMultistepScheduler(), EDMDPMSolverMultistepScheduler(solver_order=3),
    EDMDPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")], ids=repr)
def test_edm_classes_keep_their_solver(theirs: Scheduler) -> None:
    assert difference(theirs, 8) <= RELATIVE


@pytest.mark.parametrize("theirs", [
    FlowMatchEulerDiscreteScheduler(shift=3.0), FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
    FlowMatchHeunDiscreteScheduler(shift=3.0), FlowMatchLCMScheduler(shift=3.0),
    DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)], ids=repr)
def test_flow_classes_keep_their_solver(theirs: Scheduler) -> None:
    assert difference(theirs, 6) <= RELATIVE


@pytest.mark.parametrize("config", [{}, {"clip_sample": True}, {"original_inference_steps": 20}])
def test_lcm_keeps_its_boundary_and_its_timesteps(config: dict[str, Any]) -> None:
    assert difference(LCMScheduler(**config), 4) <= RELATIVE


@pytest.mark.parametrize("arguments", [{}, {"eta": 0.0}, {"eta": 0.7}])
def test_tcd_takes_its_eta_from_the_pipeline(arguments: dict[str, Any]) -> None:
    assert difference(TCDScheduler(), 4, **arguments) <= RELATIVE


def test_ddim_of_cogvideox_does_not_clip_whatever_its_config_says() -> None:
    assert difference(CogVideoXDDIMScheduler(), 8) <= RELATIVE


@pytest.mark.parametrize(("original", "strength"), [(None, 1.0), (20, 1.0), (50, 0.6)])
def test_consistency_models_may_start_from_a_part_of_other_timesteps(original: int | None, strength: float) -> None:
    theirs = LCMScheduler()
    ours = FewStepScheduler.from_config(theirs)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(4, original_inference_steps=original, strength=strength)
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps)


def test_a_consistency_models_timesteps_are_refused_for_others() -> None:
    with pytest.raises(ValueError, match="original_inference_steps=20"):
        FewStepScheduler().set_timesteps(4, original_inference_steps=20)


def test_a_named_solver_overrides_that_of_the_class_and_none_brings_it_back() -> None:
    ours = FewStepScheduler.from_config(UniPCMultistepScheduler(solver_order=3), solver="euler")
    ours.set_timesteps(5)
    assert ours.plan.about["solver"] == "euler"
    again = FewStepScheduler.from_config(ours.config, solver=None)
    again.set_timesteps(5)
    assert again.plan.about["solver"] == "unipc-3"


def test_the_settings_of_the_source_may_be_overridden_under_its_own_names() -> None:
    source = DPMSolverMultistepScheduler().config
    ours = FewStepScheduler.from_config(source, solver_order=3, algorithm_type="dpmsolver")
    assert ours.config.solver_options["solver_order"] == 3
    ours.set_timesteps(20)
    assert ours.plan.about["solver"] == "published-multistep-noise-3"


def test_other_conventions_bring_their_own_solver_and_settings() -> None:
    source = DDPMScheduler(beta_schedule="scaled_linear")
    for config in (source, FewStepScheduler.from_config(source).config):
        ours = FewStepScheduler.from_config(config, conventions="UniPCMultistepScheduler")
        ours.set_timesteps(5)
        assert ours.plan.about["solver"] == "unipc-2"
        assert ours.config.beta_schedule == "scaled_linear"


def test_the_scheduler_itself_says_what_its_config_does_not(caplog: pytest.LogCaptureFixture) -> None:
    theirs = TCDScheduler()
    with caplog.at_level(logging.WARNING):
        guessed = FewStepScheduler.from_config(theirs.config)
    assert "LCMScheduler or TCDScheduler" in caplog.text
    assert guessed.config.conventions == "LCMScheduler"
    assert FewStepScheduler.from_config(theirs).config.conventions == "TCDScheduler"


def test_a_config_is_told_from_one_of_the_same_keys_by_its_defaults(caplog: pytest.LogCaptureFixture) -> None:
    for theirs in (LMSDiscreteScheduler(), HeunDiscreteScheduler(), DDPMScheduler(), DDIMScheduler()):
        assert FewStepScheduler.from_config(theirs.config).config.conventions == type(theirs).__name__
    assert not caplog.records


@pytest.mark.parametrize(("arguments", "message"), [
    ({"solver_options": {"solver_ordre": 3}}, "solver_ordre"),
    ({"solver_options": {"solver_order": 7}}, "order=7"),
    ({"solver_options": {"algorithm_type": "ddim"}}, "algorithm_type='ddim'"),
    ({"weights": "midpoint"}, "without a solver"),
    ({"clip_sample": True, "clip_sample_range": 0.0}, "clip_sample_range=0.0"),
    ({"conventions": "SASolverScheduler", "solver_options": {"algorithm_type": "x"}}, "algorithm_type='x'"),
    ({"conventions": "DPMSolverSinglestepScheduler", "solver_options": {"algorithm_type": "sde-dpmsolver++"}},
     "dpmpp-sde"),
])
def test_settings_that_no_solver_has_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FewStepScheduler(**arguments)


def test_a_negative_eta_is_refused() -> None:
    ours = FewStepScheduler.from_config(DDIMScheduler())
    ours.set_timesteps(4)
    with pytest.raises(ValueError, match="eta=-1"):
        ours.step(normal(1), ours.timesteps[0], normal(0), eta=-1.0)


def test_eta_of_one_run_does_not_leak_into_the_next() -> None:
    ours, x = FewStepScheduler.from_config(DDIMScheduler(clip_sample=False)), normal(0)
    ours.set_timesteps(4)
    quiet = run(ours, x, network, ours.timesteps)
    noisy = run(ours, x, network, ours.timesteps, eta=1.0)
    assert not torch.equal(noisy, quiet)
    assert torch.equal(run(ours, x, network, ours.timesteps), quiet)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverSDEScheduler", "UniPCMultistepScheduler", "LCMScheduler"])
def test_a_saved_scheduler_keeps_its_solver(name: str, tmp_path: Path) -> None:
    ours = FewStepScheduler.from_config({"_class_name": name, "beta_schedule": "scaled_linear"})
    ours.save_pretrained(tmp_path)
    again = FewStepScheduler.from_pretrained(tmp_path)
    for scheduler in (ours, again):
        scheduler.set_timesteps(6)
    assert again.plan.rows == ours.plan.rows
    assert dict(again.config.solver_options) == dict(ours.config.solver_options)


def test_every_class_that_is_understood_exists() -> None:
    from samplers.diffusers_config import SUPPORTED

    assert all(hasattr(diffusers, name) for name in SUPPORTED)
