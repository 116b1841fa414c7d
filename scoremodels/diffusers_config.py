"""From the config of a diffusers scheduler to a noise schedule and a kind of prediction; plain dictionary work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from scoremodels.prediction import PREDICTIONS
from scoremodels.schedule import EDM, DiscreteVP, NoiseSchedule, RectifiedFlow
from scoremodels.schedule_base import Array

_STABLE = {"beta_start": 0.00085, "beta_end": 0.012}
_STABLE_SCALED = {**_STABLE, "beta_schedule": "scaled_linear"}
_BETAS: dict[str, dict[str, Any]] = {
    **dict.fromkeys((
        "DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
        "DEISMultistepScheduler", "DPMSolverMultistepInverseScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
        "LMSDiscreteScheduler", "PNDMScheduler", "RePaintScheduler", "SASolverScheduler", "UniPCMultistepScheduler"),
        {}),
    **dict.fromkeys(("DPMSolverSDEScheduler", "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
                     "KDPM2DiscreteScheduler"), _STABLE),
    **dict.fromkeys(("LCMScheduler", "TCDScheduler"), _STABLE_SCALED),
    **dict.fromkeys(("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"), {**_STABLE_SCALED, "snr_shift_scale": 3.0}),
    "UnCLIPScheduler": {"beta_schedule": "squaredcos_cap_v2"},
}
"""Schedulers over DDPM's betas, and the defaults in which they differ from DDPMScheduler."""

_EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
         "LTXEulerAncestralRFScheduler")
_FAMILIES = {**dict.fromkeys(_BETAS, "betas"), **dict.fromkeys(_EDM, "edm"), **dict.fromkeys(_FLOW, "flow"),
             "ScoreSdeVeScheduler": "score"}


def schedule_from_diffusers(config: Mapping[str, Any]) -> tuple[NoiseSchedule, str]:
    """Give the noise schedule that a diffusers scheduler config means, and what its network predicts.

    The family follows from ``_class_name``. Without one (a scheduler in memory has none in its
    config), and for ``FewStepScheduler``, it follows from the keys that are not None: ``sigma_data``
    means EDM; a flow prediction, ``use_flow_sigmas``, or ``shift`` without betas mean rectified flow;
    anything about betas means DDPM's betas; ``snr`` beside ``sigma_max`` means score_sde's VE.

    What the network is told and fed is that of the schedule with these exceptions, in which diffusers
    scales the network's input itself: for "edm" and "edm_v" it is fed ``x / sqrt(σ² + σ_data²)`` and
    told ``log(σ) / 4``, while the schedule's time is σ.

    Args:
        config: the scheduler's config, as in ``scheduler_config.json``; absent keys take the
            defaults of the class.

    Returns:
        The schedule, and one of ``scoremodels.prediction.PREDICTIONS``.

    Raises:
        ValueError: a scheduler or an option whose process is none of ours.
    """
    config = {key: value for key, value in config.items() if value is not None}
    name = config.get("_class_name")
    if name in (None, "FewStepScheduler"):
        family = _inferred(config)
    elif name in _FAMILIES:
        family = _FAMILIES[name]
    else:
        raise ValueError(f"_class_name={name!r}: that scheduler's noise process is not known here; if its config "
                         f"means the same as DDPMScheduler's, leave _class_name out. Known: {', '.join(_FAMILIES)}")
    if family == "betas" and config.get("use_flow_sigmas"):
        family = "flow"
    if family == "edm" or _tells_log_sigma(config):
        return _edm(config)
    if family == "flow":
        return _flow(config)
    if family == "score":
        # Its network is told σ, so that EDM's clock describes it.
        return EDM(config.get("sigma_min", 0.01), config.get("sigma_max", 1348.0)), "score"
    defaults = _BETAS.get(str(name), {})
    return _betas({**defaults, **config}), _prediction(config)


def _inferred(config: Mapping[str, Any]) -> str:
    if "sigma_data" in config:
        # Two more schedulers have a sigma_data, but tell their networks another time.
        if "clip_denoised" in config or ("solver_order" in config and "algorithm_type" not in config):
            raise ValueError("config is that of CMStochasticIterativeScheduler or CosineDPMSolverMultistepScheduler, "
                             "whose network times are not supported: use that scheduler itself")
        return "edm"
    betas = {"beta_schedule", "trained_betas", "beta_start", "beta_end"} & config.keys()
    if config.get("prediction_type") in ("flow", "flow_prediction") or ("shift" in config and not betas):
        return "flow"
    if betas:
        return "betas"
    if {"snr", "sigma_max"} <= config.keys():
        return "score"
    raise ValueError(f"config with keys {sorted(config)} names no noise process: give _class_name, or beta_schedule, "
                     "or trained_betas, or sigma_data, or shift")


def _prediction(config: Mapping[str, Any], default: str = "epsilon") -> str:
    given = config.get("prediction_type", default)
    prediction = {"flow_prediction": "flow"}.get(given, given)
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction_type={given!r} is unknown: choose one of {', '.join(PREDICTIONS)}")
    return prediction


def _tells_log_sigma(config: Mapping[str, Any]) -> bool:
    """Stable Video Diffusion's use of the Euler scheduler: EDM with unit σ_data and v-prediction."""
    return config.get("timestep_type") == "continuous" and config.get("prediction_type") == "v_prediction"


def _edm(config: Mapping[str, Any]) -> tuple[NoiseSchedule, str]:
    raw = _prediction(config)
    prediction = {"epsilon": "edm", "v_prediction": "edm_v"}.get(raw, raw)
    if prediction not in ("edm", "edm_v"):
        raise ValueError(f"prediction_type={raw!r} has no meaning under EDM preconditioning: choose 'epsilon' or "
                         "'v_prediction'")
    unit = _tells_log_sigma(config)
    return EDM(config.get("sigma_min", 0.002), config.get("sigma_max", 700.0 if unit else 80.0),
               config.get("sigma_data", 1.0 if unit else 0.5)), prediction


def _flow(config: Mapping[str, Any]) -> tuple[NoiseSchedule, str]:
    if config.get("invert_sigmas"):
        raise ValueError("invert_sigmas=True: networks whose time runs from noise at 0 to data are not supported; "
                         "wrap the network so that its time grows with the noise")
    # With dynamic shifting the shift is a matter of each run's grid.
    shift = 1.0 if config.get("use_dynamic_shifting") else config.get("shift", config.get("flow_shift", 1.0))
    return RectifiedFlow(float(shift), float(config.get("num_train_timesteps", 1000))), _prediction(config, "flow")


def _betas(config: Mapping[str, Any]) -> DiscreteVP:
    steps = config.get("num_train_timesteps", 1000)
    start, end = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    name = config.get("beta_schedule", "linear")
    if "trained_betas" in config:
        schedule = DiscreteVP.from_betas(config["trained_betas"])
    elif name == "linear":
        schedule = DiscreteVP.linear(start, end, steps)
    elif name == "scaled_linear":
        schedule = DiscreteVP.scaled_linear(start, end, steps)
    elif name == "squaredcos_cap_v2":
        schedule = DiscreteVP.cosine(steps)
    elif name == "sigmoid":
        schedule = DiscreteVP.from_betas(start + (end - start) / (1.0 + np.exp(-np.linspace(-6.0, 6.0, steps))))
    elif name == "exp":
        schedule = DiscreteVP.from_betas(np.full(steps, -math.expm1(-12.0 / steps)))
    elif name == "laplace":
        schedule = DiscreteVP.from_betas(_laplace_betas(steps))
    else:
        raise ValueError(f"beta_schedule={name!r} is unknown: choose linear, scaled_linear, squaredcos_cap_v2, "
                         "sigmoid, exp or laplace, or give trained_betas")
    if "snr_shift_scale" in config:
        schedule = _shift_snr(schedule, config["snr_shift_scale"])
    return schedule.zero_terminal_snr() if config.get("rescale_betas_zero_snr") else schedule


def _laplace_betas(steps: int) -> Array:
    """Follow diffusers' ``betas_for_alpha_bar(…, alpha_transform_type="laplace")``."""
    t = np.arange(steps + 1) / steps
    log_snr = -0.5 * np.where(t <= 0.5, 1.0, -1.0) * np.log(1.0 - 2.0 * np.abs(0.5 - t) + 1e-6)
    squares = np.sqrt(1.0 / (1.0 + np.exp(-log_snr)))
    return np.minimum(1.0 - squares[1:] / squares[:-1], 0.999)


def _shift_snr(schedule: DiscreteVP, scale: float) -> DiscreteVP:
    """Multiply (σ/α)² by ``scale`` at every timestep (CogVideoX)."""
    if not 0.0 < scale < math.inf:
        raise ValueError(f"snr_shift_scale={scale}: give a positive number")
    attenuation = np.log1p(scale * schedule.ratio(np.arange(len(schedule.betas), dtype=np.float64)) ** 2)
    return DiscreteVP.from_betas(-np.expm1(-np.diff(attenuation, prepend=0.0)))
