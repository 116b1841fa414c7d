"""Empirical model statistics: what DPM-Solver-v3 has to know of a model beforehand.

With ``f = (σ ε - l x)/α`` they are, for each element of the state and along log-SNR λ: l, such that f depends least on
x; and s and b, such that ``df/dλ ≈ s f + b``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scoremodels.model import ScoreModel
from scoremodels.schedule import NoiseSchedule

_NAMES = ("log_snr", "linear", "slope", "constant")


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """l, s and b at knots of log-SNR, and linear between them.

    Args:
        log_snr: λ of the knots, rising strictly, of shape (K,) with K ≥ 2.
        linear: l at the knots, of shape (K, …), whose dimensions after the first broadcast over a sample.
        slope: s, of the shape of l.
        constant: b, of the shape of l.
        about: where they come from, JSON values only.

    Raises:
        ValueError: shapes that do not fit, knots that do not rise, or non-finite numbers.

    Source: Zheng et al. 2023, arXiv:2310.13268, section 3.1.
    """

    log_snr: Tensor
    linear: Tensor
    slope: Tensor
    constant: Tensor
    about: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _NAMES:
            value = torch.as_tensor(getattr(self, name)).detach().cpu().double()
            if not value.isfinite().all():
                raise ValueError(f"{name} holds non-finite numbers: estimate the statistics from more samples")
            object.__setattr__(self, name, value)
        knots = self.log_snr
        if knots.ndim != 1 or len(knots) < 2 or not (knots.diff() > 0).all():
            raise ValueError(f"log_snr has shape {tuple(knots.shape)}: give at least two knots, which rise strictly")
        for name in _NAMES[1:]:
            shape = tuple(getattr(self, name).shape)
            if shape != tuple(self.linear.shape) or shape[:1] != (len(knots),):
                raise ValueError(f"{name} has shape {shape}: l, s and b have one shape, {len(knots)} knots first")

    @classmethod
    def of_data_prediction(cls, least: float, most: float) -> ModelStatistics:
        """The statistics l = 1, s = b = 0 over a range of log-SNR, with which f is the predicted sample, negative."""
        one = torch.ones(2, dtype=torch.float64)
        return cls(torch.tensor([least, most], dtype=torch.float64), one, 0.0 * one, 0.0 * one)

    def at(self, log_snr: NDArray[np.float64]) -> tuple[Tensor, Tensor, Tensor]:
        """l, s and b at some λ, each with these first.

        Raises:
            ValueError: one of them lies beyond the knots.
        """
        knots, points = self.log_snr, torch.as_tensor(log_snr, dtype=torch.float64)
        slack = 1e-6 * float(knots[-1] - knots[0])
        if points.min() < knots[0] - slack or points.max() > knots[-1] + slack:
            raise ValueError(f"log-SNR runs from {float(points.min()):.5g} to {float(points.max()):.5g}, and the "
                             f"model's statistics from {float(knots[0]):.5g} to {float(knots[-1]):.5g}: estimate them "
                             "on the whole way, or choose a grid and an end within it")
        right = torch.searchsorted(knots, points).clamp(1, len(knots) - 1)
        share = ((points - knots[right - 1]) / (knots[right] - knots[right - 1])).clamp(0.0, 1.0)
        share = share.reshape(-1, *[1] * (self.linear.ndim - 1))
        linear, slope, constant = (torch.lerp(values[right - 1], values[right], share)
                                   for values in (self.linear, self.slope, self.constant))
        return linear, slope, constant

    def save(self, path: str | Path) -> None:
        """Write the statistics as safetensors, in float32 but for the knots."""
        tensors = {name: getattr(self, name).float().contiguous() for name in _NAMES[1:]}
        save_file({"log_snr": self.log_snr, **tensors}, path, {"about": json.dumps(dict(self.about))})

    @classmethod
    def load(cls, path: str | Path, model: ScoreModel | None = None) -> ModelStatistics:
        """Read what :meth:`save` wrote.

        Args:
            path: of the file.
            model: the model that they are to be used on, to check that they are of it.

        Raises:
            ValueError: no such file, one of another kind, or one of another model.
        """
        try:
            with safe_open(str(path), "pt") as file:
                about = json.loads((file.metadata() or {}).get("about", "{}"))
                knots, linear, slope, constant = map(file.get_tensor, _NAMES)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"path={str(path)!r} holds no model statistics ({error}): write them with "
                             "ModelStatistics.save") from error
        statistics = cls(knots, linear, slope, constant, about)
        if model is not None:
            statistics.check(model.schedule, name=model.name, shape=model.shape)
        return statistics

    def check(self, schedule: NoiseSchedule, *, name: str = "", shape: Sequence[int] | None = None) -> None:
        """Refuse another model than that which the statistics are of, as far as they say which that is.

        Raises:
            ValueError: another schedule, name or shape of a sample.
        """
        wanted = {"schedule": schedule.to_config(), "model": name}
        for key, value in wanted.items():
            known = self.about.get(key)
            if known and value and known != json.loads(json.dumps(value)):
                raise ValueError(f"the model's {key} is {value!r}, and its statistics are of {known!r}: estimate "
                                 "them on this model")
        if shape is not None and tuple(shape) != tuple(self.linear.shape[1:]):
            raise ValueError(f"the model's samples have shape {tuple(shape)}, and its statistics "
                             f"{tuple(self.linear.shape[1:])}: estimate them on this model")
