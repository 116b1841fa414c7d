"""Variance-preserving noise schedules: DDPM's discrete one and the VP-SDE."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from scoremodels.schedule_base import Array, NoiseSchedule, positive


class VariancePreserving(NoiseSchedule):
    """α² + σ² = 1, all from the attenuation ``A(t) = -log α²``.

    1 - α² is never formed: ``σ² = -expm1(-A)`` keeps its digits where σ → 0.
    """

    __slots__ = ()

    @abstractmethod
    def attenuation(self, t: Array) -> Array:
        """A(t) = -log α(t)², rising from 0 at ``t_clean``."""

    @abstractmethod
    def _time_of_attenuation(self, attenuation: Array) -> Array: ...

    def prior_scale(self, t: float) -> float:
        """Give 1: the states of a variance-preserving process have unit variance."""
        return 1.0

    def _alpha(self, t: Array) -> Array:
        return np.exp(-0.5 * self.attenuation(t))

    def _sigma(self, t: Array) -> Array:
        return np.sqrt(-np.expm1(-self.attenuation(t)))

    def _log_snr(self, t: Array) -> Array:
        attenuation = self.attenuation(t)
        return -0.5 * (attenuation + np.log(-np.expm1(-attenuation)))

    def _ratio(self, t: Array) -> Array:
        return np.sqrt(np.expm1(self.attenuation(t)))

    def _time_of_log_snr(self, log_snr: Array) -> Array:
        return self._time_of_attenuation(np.logaddexp(0.0, -2.0 * log_snr))

    def _time_of_ratio(self, ratio: Array) -> Array:
        return self._time_of_attenuation(np.log1p(ratio * ratio))


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscreteVP(VariancePreserving):
    """DDPM's schedule: ``α_t² = Π_{i≤t} (1 - β_i)`` at timesteps t = 0, …, T-1.

    Between timesteps log α is interpolated linearly; t = -1 is the empty product, α = 1. Where
    β_{T-1} = 1 (zero terminal SNR), α itself is linear over the last interval, down to 0.

    Args:
        betas: β_0, …, β_{T-1}, in (0, 1); the last may be 1.
        recipe: how the betas were made, as JSON data; see the constructors below.

    Source: Ho et al. 2020, arXiv:2006.11239; betas in products, not squares, so that neither end
    loses digits.
    """

    kind: ClassVar[str] = "discrete-vp"
    betas: tuple[float, ...] = field(repr=False)
    recipe: Mapping[str, Any] | None = field(default=None, compare=False)
    _knots: Array = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, dtype=np.float64)
        if betas.ndim != 1 or len(betas) < 2:
            raise ValueError(f"betas has shape {betas.shape}: give at least two numbers in one dimension")
        if not ((betas > 0.0) & (betas < 1.0))[:-1].all() or not 0.0 < betas[-1] <= 1.0:
            raise ValueError("betas must lie in (0, 1), and only the last may be 1: "
                             f"they run from {betas.min()} to {betas.max()}")
        object.__setattr__(self, "betas", tuple(betas.tolist()))
        with np.errstate(divide="ignore"):
            knots = np.concatenate([[0.0], np.cumsum(-np.log1p(-betas))])
        knots.setflags(write=False)
        object.__setattr__(self, "_knots", knots)

    @classmethod
    def from_betas(cls, betas: ArrayLike) -> Self:
        """Take β_0, …, β_{T-1} as they are, for instance trained ones."""
        return cls(betas=betas)  # type: ignore[arg-type]

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: ArrayLike) -> Self:
        """Take α_t² at each timestep: decreasing numbers in (0, 1), of which the last may be 0."""
        squares = np.asarray(alphas_cumprod, dtype=np.float64)
        if squares.ndim != 1 or not (squares > 0.0)[:-1].all():
            raise ValueError("alphas_cumprod must be positive and one-dimensional, and only the last may be 0")
        if not (np.diff(squares, prepend=1.0) < 0.0).all():
            raise ValueError("alphas_cumprod must decrease strictly, from below 1")
        return cls.from_betas(-np.diff(squares, prepend=1.0) / np.concatenate([[1.0], squares[:-1]]))

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000) -> Self:
        """Space β evenly (Ho et al. 2020)."""
        return cls(betas=tuple(np.linspace(beta_start, beta_end, _steps(steps))), recipe=dict(
            beta_schedule="linear", beta_start=beta_start, beta_end=beta_end, steps=steps))

    @classmethod
    def scaled_linear(cls, beta_start: float = 0.00085, beta_end: float = 0.012, steps: int = 1000) -> Self:
        """Space √β evenly (Rombach et al. 2022, arXiv:2112.10752)."""
        positive(beta_start=beta_start, beta_end=beta_end)
        betas = np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), _steps(steps)) ** 2
        return cls(betas=tuple(betas), recipe=dict(
            beta_schedule="scaled_linear", beta_start=beta_start, beta_end=beta_end, steps=steps))

    @classmethod
    def cosine(cls, steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Self:
        """``α_t = cos(π/2 · ((t+1)/T + s)/(1 + s))``, with β cut at ``max_beta`` (Nichol & Dhariwal 2021)."""
        angles = (np.arange(_steps(steps) + 1) / steps + s) / (1.0 + s) * (math.pi / 2)
        # 1 - cos²b/cos²a = sin(b-a) sin(b+a) / cos²a loses no digits where the angles nearly agree.
        betas = np.sin(np.diff(angles)) * np.sin(angles[1:] + angles[:-1]) / np.cos(angles[:-1]) ** 2
        return cls(betas=tuple(np.minimum(betas, max_beta)), recipe=dict(
            beta_schedule="cosine", steps=steps, s=s, max_beta=max_beta))

    def zero_terminal_snr(self) -> Self:
        """Rescale α so that it ends at 0 and starts where it did (Lin et al. 2023, arXiv:2305.08891, algorithm 1)."""
        alphas = np.exp(-0.5 * self._knots[1:])
        drops = -alphas[:-1] * np.expm1(-0.5 * np.diff(self._knots[1:]))
        fractions = drops / (alphas[:-1] - alphas[-1])
        fractions[-1] = 1.0
        betas = (self.betas[0], *(fractions * (2.0 - fractions)))
        recipe = None if self.recipe is None else {**self.recipe, "zero_terminal_snr": True}
        return type(self)(betas=betas, recipe=recipe)

    @property
    def t_min(self) -> float:
        """The first timestep."""
        return 0.0

    @property
    def t_max(self) -> float:
        """The last timestep, T - 1."""
        return float(len(self.betas) - 1)

    @property
    def t_clean(self) -> float:
        """-1, the empty product."""
        return -1.0

    @property
    def t_last(self) -> float:
        """Nothing is defined beyond ``t_max``."""
        return self.t_max

    def to_config(self) -> dict[str, Any]:
        """Describe the schedule by its recipe if it has one, else by its betas."""
        return {"kind": self.kind, **(self.recipe or {"betas": list(self.betas)})}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Make a schedule from its recipe or its betas, the inverse of :meth:`to_config`."""
        config = dict(config)
        if config.pop("zero_terminal_snr", False):
            return cls.from_config(config).zero_terminal_snr()
        recipe = config.pop("beta_schedule", None)
        if recipe is None:
            return cls.from_betas(config["betas"])
        makers = {"linear": cls.linear, "scaled_linear": cls.scaled_linear, "cosine": cls.cosine}
        return makers[recipe](**config)

    def attenuation(self, t: Array) -> Array:
        """A(t) = -log α(t)²."""
        finite = self._finite_knots()
        value = np.interp(t, np.arange(len(finite)) - 1.0, finite)
        if len(finite) == len(self._knots):
            return value
        beyond = np.maximum(t - (len(finite) - 2.0), 0.0)
        return value - 2.0 * np.log1p(-beyond)

    def _time_of_attenuation(self, attenuation: Array) -> Array:
        finite = self._finite_knots()
        times = np.interp(attenuation, finite, np.arange(len(finite)) - 1.0)
        excess = np.maximum(attenuation - finite[-1], 0.0)
        if len(finite) < len(self._knots):
            return times - np.expm1(-0.5 * excess)
        # One rounding beyond the last knot is still the last time; more is not on the schedule.
        return np.where(excess <= 1e-12 * finite[-1], times, np.inf)

    def _finite_knots(self) -> Array:
        return self._knots if math.isfinite(self._knots[-1]) else self._knots[:-1]


def _steps(steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 2:
        raise ValueError(f"steps={steps!r}: give a whole number of training steps, at least 2")
    return int(steps)


@dataclass(frozen=True, slots=True)
class ContinuousVP(VariancePreserving):
    """``-log α(t)² = ½ t² (β_max - β_min) + t β_min`` for t in [0, 1] (VP-SDE, Song et al. 2021, arXiv:2011.13456).

    Args:
        beta_min: β(0).
        beta_max: β(1), at least ``beta_min``.
        t_min: least time that the network was trained at.
    """

    kind: ClassVar[str] = "continuous-vp"
    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3

    def __post_init__(self) -> None:
        positive(beta_min=self.beta_min, beta_max=self.beta_max, t_min=self.t_min)
        if self.beta_max < self.beta_min:
            raise ValueError(f"beta_max={self.beta_max} lies below beta_min={self.beta_min}: exchange them")
        if self.t_min >= 1.0:
            raise ValueError(f"t_min={self.t_min}: times run from t_min to 1")

    @property
    def t_max(self) -> float:
        """The end of the process, 1."""
        return 1.0

    @property
    def t_clean(self) -> float:
        """The data, at time 0."""
        return 0.0

    def attenuation(self, t: Array) -> Array:
        """A(t) = -log α(t)²."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _time_of_attenuation(self, attenuation: Array) -> Array:
        root = np.sqrt(self.beta_min**2 + 2.0 * (self.beta_max - self.beta_min) * attenuation)
        return 2.0 * attenuation / (self.beta_min + root)
