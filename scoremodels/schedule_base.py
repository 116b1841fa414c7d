"""What every noise schedule can answer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

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
    def t_last(self) -> float:
        """Where the formulas end: ``t_max``, or inf if they go on beyond."""
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
        """Describe the schedule as JSON data; :func:`scoremodels.schedule.schedule_from_config` makes it again."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]

    def _checked(self, t: float | Array) -> Array:
        times = np.asarray(t, dtype=np.float64)
        if not ((times >= self.t_clean) & (times <= self.t_last)).all():
            raise ValueError(f"t={t}: times of this schedule lie between {self.t_clean} and {self.t_last}")
        return times

    def _inverted(self, function: Callable[[Array], Array], value: Array, given: Value, name: str) -> Value:
        with np.errstate(invalid="ignore"):
            times = _evaluate(function, value, given)
        if not (np.isfinite(times) & (np.asarray(times) <= self.t_last)).all():
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


def positive(**values: float) -> None:
    """Refuse arguments that are not positive and finite."""
    for name, value in values.items():
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name}={value}: give a positive finite number")
