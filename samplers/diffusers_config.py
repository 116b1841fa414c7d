"""From the config of any diffusers scheduler to that of ours."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Collection, Mapping
from typing import Any

import diffusers

from samplers.diffusers_solver import options_of, solver_class
from samplers.diffusers_spacing import EDM_CLASSES, FLAVOURS, FLOW_CLASSES

_LOG = logging.getLogger(__name__)

KEPT = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "snr_shift_scale", "sigma_min", "sigma_max", "sigma_data", "rho", "use_flow_sigmas", "shift",
    "use_dynamic_shifting", "time_shift_type", "shift_terminal", "prediction_type", "variance_type",
    "timestep_spacing", "steps_offset", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "thresholding", "dynamic_thresholding_ratio", "sample_max_value", "clip_sample", "clip_sample_range",
)
"""What a model's config says of its schedule, its prediction and its timesteps; diffusers' own names."""

_ENDS_WITH_NOISE = ("DEISMultistepScheduler", "SASolverScheduler", "TCDScheduler", "DPMSolverMultistepInverseScheduler")
"""Classes whose last step (first, of an inverse) is at the least noise of training, whatever else their configs say."""

_FINAL_ALPHA, _CONSISTENCY = "set_alpha_to_one", ("LCMScheduler",)

_NEVER_CLIP = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "TCDScheduler", "DDIMInverseScheduler")
"""Classes that do not do what their ``clip_sample`` says, and one that should not: what is clipped has no inverse."""

SUPPORTED = (*FLAVOURS, *EDM_CLASSES, *FLOW_CLASSES)
"""Every class whose config can be translated."""


def class_of(config: Mapping[str, Any]) -> str | None:
    """Name the diffusers scheduler that a config belongs to; None if it is none of ``SUPPORTED`` and does not say.

    A saved config holds ``_class_name``, but that of a scheduler made in this process does not. It
    starts with the arguments of its class, though, whatever it has inherited from others after them, and says which
    of them have default values. Classes that agree in all of that cannot be told apart; the first of them is taken,
    and a warning logged.
    """
    if "_class_name" in config:
        return str(config["_class_name"])
    keys = [key for key in config if not key.startswith("_")]
    unset = config.get("_use_default_values", ())
    matches: dict[int, list[str]] = {}
    for name in SUPPORTED:
        defaults = _defaults(name)
        if defaults and set(keys[:len(defaults)]) == set(defaults) and all(
                defaults[key] == config[key] for key in unset if key in defaults):
            matches.setdefault(len(defaults), []).append(name)
    if not matches:
        return None
    first, *others = matches[max(matches)]
    if {solver_class(name) for name in others} - {solver_class(first)}:
        _LOG.warning("the config is that of %s: %s is taken; call from_config with the scheduler itself, in place of "
                     "its config, to be understood", " or ".join((first, *others)), first)
    return first


def translated(
    name: str, source: Mapping[str, Any], overrides: Mapping[str, Any], own: Collection[str]
) -> dict[str, Any]:
    """Translate the config of a diffusers scheduler, defaults of its class included.

    diffusers drops the values that a config holds by default of its class, so that the next
    class's own defaults take their place; a DDPM config then changes its spacing from "leading" to
    "linspace". Here they are kept.

    Args:
        name: the scheduler's class.
        source: its config.
        overrides: arguments of either class that come before the config.
        own: names of the arguments of our class.

    Returns:
        The keys of ``KEPT`` that the source defines, ``conventions``, ``solver_options`` and ``final_sigmas_type``.
        What else the source says stays beside them for the way back, unless the name means something here.

    Raises:
        ValueError: the class is none of ``SUPPORTED``, or uses what none of our schedules can express.
    """
    if name not in SUPPORTED:
        raise ValueError(f"_class_name={name!r}: configs of {', '.join(SUPPORTED)} can be translated; for another "
                         "one construct FewStepScheduler(...) with the model's schedule")
    defaults = _defaults(name)
    given = {key: value for key, value in source.items() if key != "_use_default_values"} | {
        key: value for key, value in overrides.items() if key in defaults or key in source}
    full = defaults | given
    kept = {key: full[key] for key in KEPT if key in full} | _levels(name, full)
    kept = {"conventions": name, "final_sigmas_type": _end(name, full)} | kept
    if name in _NEVER_CLIP:
        kept["clip_sample"] = False
    kept["solver_options"] = options_of(overrides.get("conventions", kept["conventions"]), full)
    return {key: value for key, value in given.items() if key not in own} | kept


def _levels(name: str, full: Mapping[str, Any]) -> dict[str, Any]:
    """What the family of a class means by its settings of noise levels."""
    kept: dict[str, Any] = {}
    if name == "UnCLIPScheduler":
        kept["timestep_spacing"] = "linspace"
    if name in FLOW_CLASSES or full.get("use_flow_sigmas"):
        kept["prediction_type"] = "flow_prediction"
        kept["shift"] = full.get("flow_shift", full.get("shift", 1.0))
        if full.get("invert_sigmas"):
            raise ValueError("invert_sigmas=True: a flow from data to noise is not supported")
    if full.get("use_lu_lambdas"):
        kept["use_exponential_sigmas"] = True
    if name in EDM_CLASSES:
        kept["use_karras_sigmas"] = full["sigma_schedule"] == "karras"
        kept["use_exponential_sigmas"] = full["sigma_schedule"] == "exponential"
    if full.get("timestep_type") == "continuous" and full["prediction_type"] == "v_prediction":
        # EulerDiscreteScheduler then preconditions as EDM does, for data of standard deviation one.
        if full["sigma_min"] is None or full["sigma_max"] is None or not full["use_karras_sigmas"]:
            raise ValueError("timestep_type='continuous' is supported with use_karras_sigmas=True, sigma_min and "
                             "sigma_max: set these")
        kept |= {"conventions": "EDMEulerScheduler", "sigma_data": 1.0}
    return kept


def _end(name: str, full: Mapping[str, Any]) -> str:
    """Where the last step of a class goes."""
    if "final_sigmas_type" in _defaults(name):
        return str(full["final_sigmas_type"])
    with_noise = name in _ENDS_WITH_NOISE or (name in FLAVOURS and _FINAL_ALPHA in _defaults(name)
                                              and name not in _CONSISTENCY and not full[_FINAL_ALPHA])
    return "sigma_min" if with_noise else "zero"


def _defaults(name: str) -> dict[str, Any]:
    """The arguments of a scheduler's class, by default."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
