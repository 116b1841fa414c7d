"""What a diffusers scheduler config means, against the numbers in diffusers' own scheduler objects."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from scoremodels.diffusers_config import _BETAS, schedule_from_diffusers
from scoremodels.prediction import conversion
from scoremodels.schedule import EDM, DiscreteVP, RectifiedFlow

NEEDS_TORCHSDE = {"DPMSolverSDEScheduler"}


@pytest.mark.parametrize("name", sorted(set(_BETAS) - NEEDS_TORCHSDE))
def test_the_default_config_of_each_class_gives_its_alphas(name: str) -> None:
    scheduler = getattr(diffusers, name)()
    schedule, prediction = schedule_from_diffusers(dict(scheduler.config))
    bare, _ = schedule_from_diffusers({"_class_name": name})
    theirs = scheduler.alphas_cumprod.double().numpy()
    assert schedule == bare and isinstance(schedule, DiscreteVP) and prediction == "epsilon"
    np.testing.assert_allclose(schedule.alpha(np.arange(1000.0)) ** 2, theirs, rtol=3e-4, atol=1e-9)


@pytest.mark.parametrize(("name", "options"), [
    ("DDPMScheduler", dict(beta_schedule="sigmoid")), ("DDPMScheduler", dict(beta_schedule="laplace")),
    ("HeunDiscreteScheduler", dict(beta_schedule="exp")), ("DDIMScheduler", dict(num_train_timesteps=77)),
    ("UniPCMultistepScheduler", dict(beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.05)),
    ("PNDMScheduler", dict(trained_betas=[0.1, 0.2, 0.3, 0.4], num_train_timesteps=4)),
    ("DDIMScheduler", dict(rescale_betas_zero_snr=True)), ("DDIMScheduler", dict(beta_schedule="squaredcos_cap_v2")),
    ("CogVideoXDDIMScheduler", dict(rescale_betas_zero_snr=True, snr_shift_scale=2.0)),
])
def test_beta_options_are_followed(name: str, options: dict) -> None:
    scheduler = getattr(diffusers, name)(**options)
    schedule, _ = schedule_from_diffusers(dict(scheduler.config))
    theirs = scheduler.alphas_cumprod.double().numpy()
    np.testing.assert_allclose(schedule.alpha(np.arange(len(theirs), dtype=float)) ** 2, theirs, rtol=5e-4, atol=1e-8)


@pytest.mark.parametrize(("given", "expected"), [
    ("epsilon", "epsilon"), ("sample", "sample"), ("v_prediction", "v_prediction"),
])
def test_the_prediction_type_is_kept(given: str, expected: str) -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type=given)
    assert schedule_from_diffusers(dict(scheduler.config))[1] == expected


def test_flow_matching_configs_give_rectified_flow() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    schedule, prediction = schedule_from_diffusers(dict(scheduler.config))
    assert (schedule, prediction) == (RectifiedFlow(3.0, 1000.0), "flow")
    np.testing.assert_allclose(schedule.sigma(scheduler.timesteps.double().numpy()), scheduler.sigmas, rtol=1e-6)
    assert schedule.t_min == pytest.approx(1000.0 * scheduler.sigma_min, rel=1e-6)


def test_dynamic_shifting_leaves_the_schedule_unshifted() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    assert schedule_from_diffusers(dict(scheduler.config))[0] == RectifiedFlow(1.0, 1000.0)


def test_flow_sigmas_in_a_beta_scheduler_give_rectified_flow() -> None:
    scheduler = diffusers.UniPCMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0)
    assert schedule_from_diffusers(dict(scheduler.config)) == (RectifiedFlow(5.0, 1000.0), "flow")


@pytest.mark.parametrize(("given", "kind"), [("epsilon", "edm"), ("v_prediction", "edm_v")])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_outputs_are_preconditioned_as_in_diffusers(given: str, kind: str, sigma_data: float) -> None:
    scheduler = diffusers.EDMEulerScheduler(sigma_max=60.0, sigma_data=sigma_data, prediction_type=given)
    schedule, prediction = schedule_from_diffusers(dict(scheduler.config))
    assert (schedule, prediction) == (EDM(0.002, 60.0, sigma_data), kind)
    for sigma in (0.002, 0.7, 60.0):
        a, b = schedule.conversion(prediction, "sample", sigma)
        x, raw = torch.tensor(1.3, dtype=torch.float64), torch.tensor(-0.4, dtype=torch.float64)
        assert a * 1.3 - b * 0.4 == pytest.approx(float(scheduler.precondition_outputs(x, raw, sigma)), rel=1e-12)


def test_continuous_euler_is_edm_with_unit_data() -> None:
    scheduler = diffusers.EulerDiscreteScheduler(
        timestep_type="continuous", prediction_type="v_prediction", sigma_min=0.002, sigma_max=700.0)
    schedule, prediction = schedule_from_diffusers(dict(scheduler.config))
    assert (schedule, prediction) == (EDM(0.002, 700.0, 1.0), "edm_v")
    a, b = conversion("edm_v", "sample", 1.0, 3.0)
    assert (a, b) == (pytest.approx(1 / 10), pytest.approx(-3 / 10**0.5))


def test_score_sde_ve_predicts_the_score() -> None:
    scheduler = diffusers.ScoreSdeVeScheduler()
    schedule, prediction = schedule_from_diffusers(dict(scheduler.config))
    assert prediction == "score" and (schedule.t_min, schedule.t_max) == (0.01, 1348.0)


@pytest.mark.parametrize(("config", "expected"), [
    ({"beta_schedule": "linear"}, (DiscreteVP.linear(), "epsilon")),
    ({"trained_betas": [0.1, 0.2], "prediction_type": "v_prediction"},
     (DiscreteVP.from_betas([0.1, 0.2]), "v_prediction")),
    ({"shift": 2.0, "num_train_timesteps": 1}, (RectifiedFlow(2.0, 1.0), "flow")),
    ({"sigma_data": 0.5, "beta_schedule": "linear"}, (EDM(), "edm")),
    ({"_class_name": "FewStepScheduler", "prediction_type": "flow", "beta_schedule": "linear", "shift": 1.5},
     (RectifiedFlow(1.5, 1000.0), "flow")),
    ({"beta_schedule": "linear", "trained_betas": None, "sigma_data": None}, (DiscreteVP.linear(), "epsilon")),
])
def test_without_a_class_the_keys_tell_the_family(config: dict, expected: tuple) -> None:
    assert schedule_from_diffusers(config) == expected


@pytest.mark.parametrize(("config", "match"), [
    ({"_class_name": "SCMScheduler"}, "SCMScheduler"), (dict(diffusers.SCMScheduler().config), "trigflow"),
    (dict(diffusers.CMStochasticIterativeScheduler().config), "CMStochastic"),
    (dict(diffusers.IPNDMScheduler().config), "names no noise process"),
    ({"num_train_timesteps": 1000}, "names no noise process"),
    ({"_class_name": "DDIMScheduler", "beta_schedule": "cubic"}, "beta_schedule='cubic'"),
    ({"_class_name": "DDIMScheduler", "prediction_type": "x"}, "prediction_type='x'"),
    ({"_class_name": "DDIMScheduler", "num_train_timesteps": 0}, "steps=0"),
    ({"_class_name": "EDMEulerScheduler", "prediction_type": "sample"}, "preconditioning"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas"),
])
def test_what_cannot_be_mapped_is_refused(config: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        schedule_from_diffusers(config)
