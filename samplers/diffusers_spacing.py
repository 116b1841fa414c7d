"""Where diffusers' schedulers place their timesteps, as grids.

Its classes agree on the words (``timestep_spacing``, ``use_karras_sigmas``, …) and differ in the
arithmetic; which arithmetic holds follows from the name of the class that a model's config was
written for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from samplers import grids
from samplers.consistency import skipping
from samplers.flow_grids import shift_factor, shifted_levels
from samplers.grids import Grid, Times
from samplers.levels import HIGHEST_RATIO, beta_quantiles
from scoremodels.schedule import NoiseSchedule

Levels = Callable[[float, float, int], Times]
"""(highest, lowest, count) -> noise levels."""


class Flavour(NamedTuple):
    """How a class of schedulers on a discrete schedule counts.

    Attributes:
        dropped: how many of the least noisy points of the ramp are left out (for the end to take their place).
        rounded: whether "linspace" timesteps are whole.
        within: whether Karras, exponential and beta levels span the chosen timesteps, rather than all of training.
    """

    dropped: int
    rounded: bool
    within: bool


_DDIM = Flavour(0, True, False)
_EULER = Flavour(0, False, True)
_DPM = Flavour(1, True, False)
FLAVOURS: Mapping[str, Flavour] = {
    **dict.fromkeys(("DDIMScheduler", "DDIMParallelScheduler", "DDIMInverseScheduler", "DDPMScheduler",
                     "DDPMParallelScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler", "RePaintScheduler",
                     "CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "UnCLIPScheduler"), _DDIM),
    **dict.fromkeys(("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler",
                     "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
                     "DPMSolverSDEScheduler"), _EULER),
    **dict.fromkeys(("DPMSolverMultistepScheduler", "DPMSolverMultistepInverseScheduler",
                     "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
                     "SASolverScheduler"), _DPM),
}
"""The classes that count the timesteps of a discrete schedule."""

EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
"""The classes whose network is the bare body of an EDM-preconditioned model."""

FLOW_CLASSES = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
"""The classes of rectified flow."""

SPACINGS = ("leading", "linspace", "trailing")


CONSISTENCY_CLASSES = ("LCMScheduler", "TCDScheduler")
"""The classes whose timesteps are some of those that a model was distilled on."""


def spacing(
    config: Mapping[str, Any], mu: float | None = None, *, original: int | None = None, strength: float = 1.0
) -> Grid:
    """Find the grid that the scheduler of a config would use, in exact times.

    Times keep their fractions where diffusers rounds the network's time away from its noise level
    (Karras and exponential levels); no two of them are ever equal.

    Args:
        config: keys of :class:`samplers.diffusers.FewStepScheduler`.
        mu: log of the resolution-dependent shift (its value if ``time_shift_type`` is "linear") of a flow.
        original: timesteps that a consistency model was distilled on; None for its config's.
        strength: share of these to start from.

    Raises:
        ValueError: an unknown class, spacing or combination.
    """
    levels = _chosen_levels(config)
    if config["use_flow_sigmas"] and levels is not None:
        raise ValueError("use_flow_sigmas excludes use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas here: "
                         "choose one, or pass grid='karras' or grid='exponential'")
    if is_flow(config):
        return partial(_flow, shifted=_shift(config, mu), levels=levels, config=config)
    if mu is not None:
        raise ValueError(f"mu={mu}: only flow-matching schedules are shifted; leave mu out")
    if config["conventions"] in EDM_CLASSES:
        return partial(_edm, levels=levels or partial(_karras, rho=config["rho"]))
    if config["conventions"] in CONSISTENCY_CLASSES:
        known = (config["solver_options"] or {}).get("original_inference_steps", 50)
        return partial(skipping, original=known if original is None else original, strength=strength)
    if original is not None or strength != 1.0:
        raise ValueError(f"original_inference_steps={original}, strength={strength}: only consistency models have "
                         "timesteps that they were distilled on; leave both out")
    if config["timestep_spacing"] not in SPACINGS:
        raise ValueError(f"timestep_spacing={config['timestep_spacing']!r}: choose one of {', '.join(SPACINGS)}")
    return partial(_discrete, flavour=flavour_of(config), levels=levels, config=config)


def times_of_sigmas(config: Mapping[str, Any], schedule: NoiseSchedule, sigmas: Times, mu: float | None) -> Times:
    """The times of noise levels that a pipeline gives: σ/α, but σ of a flow, which are shifted as the config says.

    Raises:
        ValueError: ``mu`` where nothing is shifted by it, or levels beyond the schedule.
    """
    if is_flow(config):
        return _finite(config, _shift(config, mu)(sigmas)) * config["num_train_timesteps"]
    if mu is not None:
        raise ValueError(f"mu={mu}: only flow-matching schedules are shifted; leave mu out")
    return schedule.time_of_ratio(sigmas)


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a rectified flow."""
    return config["conventions"] in FLOW_CLASSES or bool(config["use_flow_sigmas"])


def flavour_of(config: Mapping[str, Any]) -> Flavour:
    """How the class that a config was written for counts.

    Raises:
        ValueError: it is none of the known ones.
    """
    if config["conventions"] not in FLAVOURS:
        known = ", ".join((*FLAVOURS, *EDM_CLASSES, *FLOW_CLASSES))
        raise ValueError(f"conventions={config['conventions']!r}: name the diffusers scheduler that the model's config "
                         f"was written for, one of {known}")
    return FLAVOURS[config["conventions"]]


def _discrete(
    schedule: NoiseSchedule, steps: int, end: float, *, flavour: Flavour, levels: Levels | None,
    config: Mapping[str, Any],
) -> Times:
    # An end that has noise is itself the last point of the ramp, unless an offset lifts all others above it.
    lifted = config["timestep_spacing"] == "leading" and config["steps_offset"] > 0
    dropped = flavour.dropped if end < schedule.t_min or lifted else 1
    if config["timestep_spacing"] == "leading":
        times = grids.leading(schedule, steps, end, offset=0, dropped=dropped)
        # The offset of Stable Diffusion's configs would leave the schedule where all its timesteps are asked for.
        times[:-1] += min(float(config["steps_offset"]), float(schedule.t_max) - times[0])
    elif config["timestep_spacing"] == "linspace":
        times = grids.linspace(schedule, steps, end, dropped=dropped, rounded=flavour.rounded)
    else:
        times = grids.trailing(schedule, steps, end)
    if levels is None:
        return times
    first, last = (times[0], times[-2]) if flavour.within else (schedule.t_max, schedule.t_min)
    high = schedule.ratio(float(first)) if config["sigma_max"] is None else config["sigma_max"]
    high = min(high, HIGHEST_RATIO)
    low = schedule.ratio(float(last)) if config["sigma_min"] is None else config["sigma_min"]
    return _to_end(schedule.time_of_ratio(_spread(levels, high, low, steps, end >= schedule.t_min)), end)


def _edm(schedule: NoiseSchedule, steps: int, end: float, *, levels: Levels) -> Times:
    return _to_end(_spread(levels, schedule.t_max, schedule.t_min, steps, end >= schedule.t_min), end)


def _flow(
    schedule: NoiseSchedule, steps: int, end: float, *, shifted: Callable[[Times], Times], levels: Levels | None,
    config: Mapping[str, Any],
) -> Times:
    total = config["num_train_timesteps"]
    if config["conventions"] in FLOW_CLASSES:
        # These classes take the span of their ramp from the shifted training levels, and shift it once more.
        span = np.array([1.0, 1.0 / total])
        high, low = span if config["use_dynamic_shifting"] else shifted_levels(span, config["shift"])
        sigmas = np.linspace(high, low, steps)
    elif config["conventions"] == "UniPCMultistepScheduler":
        sigmas = np.linspace(1.0, 1.0 / total, steps + 1)[:steps]
    else:
        sigmas = np.linspace(1.0 - 1.0 / total, 0.0, steps + 1)[:steps]
    sigmas = _finite(config, shifted(sigmas))
    if levels is not None:
        sigmas = levels(sigmas[0], sigmas[-1], steps)
    return _to_end(np.minimum(sigmas * total, schedule.t_max), end)


def _finite(config: Mapping[str, Any], sigmas: Times) -> Times:
    """Start just below pure noise where the class does so, whose second step then has a second order."""
    return np.minimum(sigmas, 1.0 - 1e-6) if config["conventions"] == "UniPCMultistepScheduler" else sigmas


def _to_end(times: Times, end: float) -> Times:
    return np.append(times, end)


def _spread(levels: Levels, high: float, low: float, steps: int, end_is_a_level: bool) -> Times:
    """``steps`` levels from high to low; to just above low, if the end takes the place of the last one."""
    return levels(high, low, steps + 1)[:steps] if end_is_a_level else levels(high, low, steps)


def _karras(high: float, low: float, count: int, *, rho: float = 7.0) -> Times:
    return np.linspace(high ** (1 / rho), low ** (1 / rho), count) ** rho


def _exponential(high: float, low: float, count: int) -> Times:
    return np.exp(np.linspace(math.log(high), math.log(low), count))


def _beta(high: float, low: float, count: int) -> Times:
    return low + beta_quantiles(count) * (high - low)


def _chosen_levels(config: Mapping[str, Any]) -> Levels | None:
    choices: dict[str, Levels] = {"use_karras_sigmas": partial(_karras, rho=config["rho"]),
                                  "use_exponential_sigmas": _exponential, "use_beta_sigmas": _beta}
    asked = [name for name in choices if config[name]]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)} are set: choose one")
    return choices[asked[0]] if asked else None


def _shift(config: Mapping[str, Any], mu: float | None) -> Callable[[Times], Times]:
    """The map of a flow's noise levels that moves them towards noise; ``mu`` holds for this call alone."""
    if config["use_dynamic_shifting"]:
        if mu is None:
            raise ValueError("mu=None: the config has use_dynamic_shifting=True, so pass mu to set_timesteps")
        factor = shift_factor(mu, config["time_shift_type"])
    else:
        if mu is not None:
            raise ValueError(f"mu={mu}: the config has use_dynamic_shifting=False; leave mu out or set it")
        factor = float(config["shift"])
    terminal = config["shift_terminal"]

    def shift(sigmas: Times) -> Times:
        sigmas = shifted_levels(sigmas, factor)
        if terminal and len(sigmas) > 1:
            sigmas = 1.0 - (1.0 - sigmas) * (1.0 - terminal) / (1.0 - sigmas[-1])
        return sigmas

    return shift
