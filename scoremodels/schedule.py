"""Noise schedules: ``x_t = α(t) x0 + σ(t) ε`` with ε standard normal, in float64 and with exact inverses.

Time is what the network is told: a timestep index for discrete schedules, σ for EDM, a number in
[0, 1] for the continuous ones. It grows with the noise.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scoremodels.prediction import conversion

Array = NDArray[np.float64]
Value = TypeVar("Value", float, Array)


class NoiseSchedule(ABC):
    """How much signal and noise a state holds at each time.

    Every method takes a float and returns a float, or takes a float64 array and returns one.
    Formulas go on beyond ``t_max`` where the mathematics allows it.
    """

    __slots__ = ()
    kind: ClassVar[str]

    @property
    @abstractmethod
    def t_min(self) -> float:
        """Least noisy time that the network was trained at."""

    @property
    @abstractmethod
    def t_max(self) -> float:
        """Noisiest time that the network was trained at."""

    @property
    @abstractmethod
    def t_clean(self) -> float:
        """Time at which σ = 0; may lie below ``t_min``."""

    @property
    def _t_last(self) -> float:
        """Where the formulas end."""
        return math.inf

    def alpha(self, t: Value) -> Value:
        """Signal scale α(t).

        Raises:
            ValueError: a time outside the schedule, or NaN; so too for the methods below.
        """
        return _evaluate(self._alpha, self._checked(t), t)

    def sigma(self, t: Value) -> Value:
        """Noise scale σ(t)."""
        return _evaluate(self._sigma, self._checked(t), t)

    def log_snr(self, t: Value) -> Value:
        """Half the logarithm of the signal-to-noise ratio, λ(t) = log(α/σ); +inf at ``t_clean``."""
        return _evaluate(self._log_snr, self._checked(t), t)

    def ratio(self, t: Value) -> Value:
        """Noise-to-signal ratio ρ(t) = σ/α; inf where α = 0."""
        return _evaluate(self._ratio, self._checked(t), t)

    def time_of_log_snr(self, log_snr: Value) -> Value:
        """Invert :meth:`log_snr`; +inf gives ``t_clean``.

        Raises:
            ValueError: NaN, or more noise than the schedule reaches.
        """
        value = np.asarray(log_snr, dtype=np.float64)
        if np.isnan(value).any():
            raise ValueError(f"log_snr={log_snr}: give numbers, not NaN")
        return self._inverted(self._time_of_log_snr, value, log_snr, "log_snr")

    def time_of_ratio(self, ratio: Value) -> Value:
        """Invert :meth:`ratio`; 0 gives ``t_clean``.

        Raises:
            ValueError: a negative number or NaN, or more noise than the schedule reaches.
        """
        value = np.asarray(ratio, dtype=np.float64)
        if not (value >= 0.0).all():
            raise ValueError(f"ratio={ratio}: a noise-to-signal ratio is at least 0")
        return self._inverted(self._time_of_ratio, value, ratio, "ratio")

    @abstractmethod
    def prior_scale(self, t: float) -> float:
        """Give the standard deviation of the noise that sampling from time t starts with."""

    def conversion(self, source: str, target: str, t: float) -> tuple[float, float]:
        """Give (a, b) of ``target = a x_t + b raw``, see :func:`scoremodels.prediction.conversion`."""
        return conversion(source, target, float(self.alpha(t)), float(self.sigma(t)),
                          sigma_data=getattr(self, "sigma_data", 1.0))

    def to_config(self) -> dict[str, Any]:
        """Describe the schedule as JSON data, from which :func:`schedule_from_config` makes an equal one."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]

    def _checked(self, t: float | Array) -> Array:
        times = np.asarray(t, dtype=np.float64)
        if not ((times >= self.t_clean) & (times <= self._t_last)).all():
            raise ValueError(f"t={t}: times of this schedule lie between {self.t_clean} and {self._t_last}")
        return times

    def _inverted(self, function: Callable[[Array], Array], value: Array, given: Value, name: str) -> Value:
        with np.errstate(invalid="ignore"):
            times = _evaluate(function, value, given)
        if not (np.isfinite(times) & (np.asarray(times) <= self._t_last)).all():
            raise ValueError(f"{name}={given}: that is more noise than the schedule reaches "
                             f"({name}={getattr(self, name)(self.t_max)} at t={self.t_max})")
        return times

    @abstractmethod
    def _alpha(self, t: Array) -> Array: ...

    @abstractmethod
    def _sigma(self, t: Array) -> Array: ...

    @abstractmethod
    def _log_snr(self, t: Array) -> Array: ...

    @abstractmethod
    def _ratio(self, t: Array) -> Array: ...

    @abstractmethod
    def _time_of_log_snr(self, log_snr: Array) -> Array: ...

    @abstractmethod
    def _time_of_ratio(self, ratio: Array) -> Array: ...


def _evaluate(function: Callable[[Array], Array], value: Array, given: Value) -> Value:
    # The ends of a schedule take logarithms of zero and divide by it on purpose: their limits are ±inf.
    with np.errstate(divide="ignore", over="ignore"):
        result = function(value)
    return result if isinstance(given, np.ndarray) else float(result)  # type: ignore[return-value]


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name}={value}: give a positive finite number")


class _VariancePreserving(NoiseSchedule):
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
class DiscreteVP(_VariancePreserving):
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
        _positive(beta_start=beta_start, beta_end=beta_end)
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
    def _t_last(self) -> float:
        return self.t_max

    def to_config(self) -> dict[str, Any]:
        """Describe the schedule by its recipe if it has one, else by its betas."""
        return {"kind": self.kind, **(self.recipe or {"betas": list(self.betas)})}

    @classmethod
    def _from_config(cls, config: Mapping[str, Any]) -> Self:
        config = dict(config)
        if config.pop("zero_terminal_snr", False):
            return cls._from_config(config).zero_terminal_snr()
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
class ContinuousVP(_VariancePreserving):
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
        _positive(beta_min=self.beta_min, beta_max=self.beta_max, t_min=self.t_min)
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
        _positive(sigma_data=self.sigma_data)

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
    _positive(sigma_min=sigma_min, sigma_max=sigma_max)
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
        _positive(shift=self.shift, scale=self.scale)

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
    def _t_last(self) -> float:
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
            return DiscreteVP._from_config(parameters)
        return _KINDS[kind](**parameters)
    except (KeyError, TypeError) as error:
        raise ValueError(f"schedule {dict(config)} has wrong or missing parameters: {error}") from error
