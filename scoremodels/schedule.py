"""Noise schedules: ``x_t = α(t) x0 + σ(t) ε`` with ε standard normal, in float64 and with exact inverses.

Time is what the network is told: a timestep index for discrete schedules, σ for EDM, a number in
[0, 1] for the continuous ones. It grows with the noise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from scoremodels.schedule_base import Array, NoiseSchedule, Value, positive
from scoremodels.schedule_vp import ContinuousVP, DiscreteVP

__all__ = ["EDM", "VE", "ContinuousVP", "DiscreteVP", "NoiseSchedule", "RectifiedFlow", "schedule_from_config"]


class _VarianceExploding(NoiseSchedule):
    """α = 1: the state is the data plus noise of standard deviation σ(t)."""

    __slots__ = ()

    @abstractmethod
    def _time_of_sigma(self, sigma: Array) -> Array: ...

    def prior_scale(self, t: float) -> float:
        """Give σ(t)."""
        return float(self.sigma(t))

    def _alpha(self, t: Array) -> Array:
        return np.ones_like(t)

    def _log_snr(self, t: Array) -> Array:
        return -np.log(self._sigma(t))

    def _ratio(self, t: Array) -> Array:
        return self._sigma(t)

    def _time_of_log_snr(self, log_snr: Array) -> Array:
        return self._time_of_sigma(np.exp(-log_snr))

    def _time_of_ratio(self, ratio: Array) -> Array:
        return self._time_of_sigma(ratio)


@dataclass(frozen=True, slots=True)
class VE(_VarianceExploding):
    """``σ(t) = σ_min (σ_max/σ_min)^t`` for t in [0, 1] (VE-SDE, Song et al. 2021, arXiv:2011.13456).

    The process itself starts at σ_min. So that noise can be removed altogether, σ goes on linearly
    to 0 at t = -1; no network is evaluated there.

    Args:
        sigma_min: σ(0).
        sigma_max: σ(1).
    """

    kind: ClassVar[str] = "ve"
    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _increasing_sigmas(self.sigma_min, self.sigma_max)

    @property
    def t_min(self) -> float:
        """The start of the process, 0."""
        return 0.0

    @property
    def t_max(self) -> float:
        """The end of the process, 1."""
        return 1.0

    @property
    def t_clean(self) -> float:
        """-1, where the linear continuation reaches σ = 0."""
        return -1.0

    def _sigma(self, t: Array) -> Array:
        growth = math.log(self.sigma_max / self.sigma_min)
        return np.where(t < 0.0, self.sigma_min * (1.0 + t), self.sigma_min * np.exp(growth * np.maximum(t, 0.0)))

    def _time_of_sigma(self, sigma: Array) -> Array:
        relative = sigma / self.sigma_min
        return np.where(relative < 1.0, relative - 1.0, np.log(relative) / math.log(self.sigma_max / self.sigma_min))


@dataclass(frozen=True, slots=True)
class EDM(_VarianceExploding):
    """``σ(t) = t``: the time is the noise level (Karras et al. 2022, arXiv:2206.00364).

    Args:
        sigma_min: least σ that the network is evaluated at.
        sigma_max: largest σ that the network was trained at.
        sigma_data: standard deviation of the data that the preconditioning assumes.
    """

    kind: ClassVar[str] = "edm"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _increasing_sigmas(self.sigma_min, self.sigma_max)
        positive(sigma_data=self.sigma_data)

    @property
    def t_min(self) -> float:
        """σ_min."""
        return self.sigma_min

    @property
    def t_max(self) -> float:
        """σ_max."""
        return self.sigma_max

    @property
    def t_clean(self) -> float:
        """The data, at σ = 0."""
        return 0.0

    def _sigma(self, t: Array) -> Array:
        return t

    def _time_of_sigma(self, sigma: Array) -> Array:
        return sigma


def _increasing_sigmas(sigma_min: float, sigma_max: float) -> None:
    positive(sigma_min=sigma_min, sigma_max=sigma_max)
    if sigma_min >= sigma_max:
        raise ValueError(f"sigma_min={sigma_min} is not below sigma_max={sigma_max}: exchange them")


@dataclass(frozen=True, slots=True)
class RectifiedFlow(NoiseSchedule):
    """``α = 1 - s``, ``σ = s`` with s = t/scale in [0, 1] (Liu et al. 2022, arXiv:2209.03003).

    Args:
        shift: how strongly uniform grids lean to the noise, see :meth:`shifted`; α and σ as
            functions of the network's time do not depend on it.
        scale: the network's time at pure noise: 1, or 1000 for networks trained with diffusers.
    """

    kind: ClassVar[str] = "rectified-flow"
    shift: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        positive(shift=self.shift, scale=self.scale)

    @property
    def t_min(self) -> float:
        """The first of a thousand shifted steps."""
        return self.shifted(1e-3)

    @property
    def t_max(self) -> float:
        """Pure noise, at ``scale``."""
        return float(self.scale)

    @property
    def t_clean(self) -> float:
        """The data, at time 0."""
        return 0.0

    @property
    def t_last(self) -> float:
        """Nothing is defined beyond ``t_max``."""
        return self.t_max

    def shifted(self, fraction: Value) -> Value:
        """Give the time at a fraction u of a uniform grid: ``scale · shift u / (1 + (shift - 1) u)``.

        Source: Esser et al. 2024, arXiv:2403.03206, eq. 23.
        """
        return self.scale * self.shift * fraction / (1.0 + (self.shift - 1.0) * fraction)

    def prior_scale(self, t: float) -> float:
        """Give σ(t), which is 1 at pure noise."""
        return float(self.sigma(t))

    def _alpha(self, t: Array) -> Array:
        return 1.0 - t / self.scale

    def _sigma(self, t: Array) -> Array:
        return t / self.scale

    def _log_snr(self, t: Array) -> Array:
        s = t / self.scale
        return np.log1p(-s) - np.log(s)

    def _ratio(self, t: Array) -> Array:
        s = t / self.scale
        return s / (1.0 - s)

    def _time_of_log_snr(self, log_snr: Array) -> Array:
        return self.scale / (1.0 + np.exp(log_snr))

    def _time_of_ratio(self, ratio: Array) -> Array:
        return self.scale / (1.0 + 1.0 / ratio)


_KINDS: dict[str, type[NoiseSchedule]] = {c.kind: c for c in (DiscreteVP, ContinuousVP, VE, EDM, RectifiedFlow)}


def schedule_from_config(config: Mapping[str, Any]) -> NoiseSchedule:
    """Make the schedule that :meth:`NoiseSchedule.to_config` described.

    Raises:
        ValueError: an unknown kind, or wrong or missing parameters.
    """
    parameters = dict(config)
    kind = parameters.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"kind={kind!r} of a schedule is unknown: choose one of {', '.join(_KINDS)}")
    try:
        if kind == DiscreteVP.kind:
            return DiscreteVP.from_config(parameters)
        return _KINDS[kind](**parameters)
    except (KeyError, TypeError) as error:
        raise ValueError(f"schedule {dict(config)} has wrong or missing parameters: {error}") from error
