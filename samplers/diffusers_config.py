"""From the config of any diffusers scheduler to that of ours."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers

from samplers.diffusers_spacing import EDM_CLASSES, FLAVOURS, FLOW_CLASSES

KEPT = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "snr_shift_scale", "sigma_min", "sigma_max", "sigma_data", "rho", "use_flow_sigmas", "shift",
    "use_dynamic_shifting", "time_shift_type", "shift_terminal", "prediction_type", "variance_type",
    "timestep_spacing", "steps_offset", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
    "final_sigmas_type", "thresholding", "dynamic_thresholding_ratio", "sample_max_value",
)
"""What a model's config says of its schedule, its prediction and its timesteps; diffusers' own names.

What it says of the solver (``solver_order``, ``algorithm_type``, ``clip_sample``, …) is not taken over.
"""

SUPPORTED = (*FLAVOURS, *EDM_CLASSES, *FLOW_CLASSES)
"""Every class whose config can be translated."""


def class_of(config: Mapping[str, Any]) -> str | None:
    """Name the diffusers scheduler that a config belongs to; None if it is none of ``SUPPORTED`` and does not say.

    A saved config holds ``_class_name``, but that of a scheduler made in this process does not. It
    starts with the arguments of its class, though, whatever it has inherited from others after them.
    """
    if "_class_name" in config:
        return str(config["_class_name"])
    keys = [key for key in config if not key.startswith("_")]
    matches = [(len(names), name) for name in SUPPORTED
               if (names := _defaults(name)) and set(keys[:len(names)]) == set(names)]
    return max(matches)[1] if matches else None


def translated(name: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """Translate the config of a diffusers scheduler, defaults of its class included.

    diffusers drops the values that a config holds by default of its class, so that the next
    class's own defaults take their place; a DDPM config then changes its spacing from "leading" to
    "linspace". Here they are kept.

    Args:
        name: the scheduler's class.
        source: its config.

    Returns:
        The keys of ``KEPT`` that the source defines, and ``conventions``.

    Raises:
        ValueError: the class is none of ``SUPPORTED``, or uses what none of our schedules can express.
    """
    if name not in SUPPORTED:
        raise ValueError(f"_class_name={name!r}: configs of {', '.join(SUPPORTED)} can be translated; for another "
                         "one construct FewStepScheduler(...) with the model's schedule")
    full = _defaults(name) | dict(source)
    kept = {key: full[key] for key in KEPT if key in full} | {"conventions": name}
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


def _defaults(name: str) -> dict[str, Any]:
    """The arguments of a scheduler's class, by default."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
