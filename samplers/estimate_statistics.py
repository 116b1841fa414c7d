"""Estimate a model's empirical statistics for DPM-Solver-v3 on trajectories of its probability-flow ODE."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from odecore.plan import Plan, Weight, execute
from samplers.compile import compile_plan
from samplers.model_statistics import ModelStatistics
from samplers.noise import SampleNoise
from scoremodels.model import ScoreModel
from scoremodels.schedule import NoiseSchedule

_SOLVER = "dpm-solver++-2m"
_DIFFERENCE = 0.01
"""Step of the differences, in log-SNR and in units of the noise: the rounding of a float32 network, divided by it, and
its square are both below what a few hundred samples can tell."""


@torch.no_grad()
def estimate_statistics(
    model: ScoreModel, *, num: int = 256, knots: int = 64, seed: int = 0, condition: Tensor | None = None,
    batch: int = 64, progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> ModelStatistics:
    """Estimate l, s and b of a model at knots spaced evenly in log-SNR.

    ``l = E[diag σ ∂ε/∂x]``, by Hutchinson's estimate with one random sign for each element; s and b by least squares
    of ``df/dλ`` on f over the samples. Both derivatives, that in x and that along the ODE, are differences of the
    network's output, so that any model will do whose output has float32's precision; states are in float64.

    Args:
        model: the pretrained model, or a wrapper that adds guidance.
        num: trajectories.
        knots: steps of each trajectory, at least 8.
        seed: trajectory i starts from noise drawn with seed ``seed + i``.
        condition: one label a trajectory.
        batch: how many trajectories to compute at once.
        progress: wraps the starting indices of the batches, for instance ``tqdm``.

    Returns:
        The statistics, of the shape of a sample, from the noisiest time (or the first of finite log-SNR) to ``t_min``.

    Raises:
        ValueError: an argument is out of range.

    Cost: five evaluations for each knot and trajectory.

    Source: Zheng et al. 2023, arXiv:2310.13268, equations 11 and 14 and appendix C.1.1.
    """
    if num < 2:
        raise ValueError(f"num={num}: s and b are a regression over samples, so give at least 2, and 256 to trust them")
    if knots < 8:
        raise ValueError(f"knots={knots}: give at least 8")
    if condition is not None and len(condition) != num:
        raise ValueError(f"condition has {len(condition)} labels: give one for each of the num={num} trajectories")
    schedule = model.schedule
    # The row that goes on to a clean end is the one that is evaluated at the least noise.
    plan = compile_plan(_SOLVER, schedule, nfe=knots, grid="log-snr", prediction=model.prediction, end="clean")
    times = [float(row.t) for row in plan.rows]
    totals = {t: _Totals.zero(model.shape) for t in times if np.isfinite(schedule.log_snr(t))}
    ends = (min(totals), max(totals))
    starts: Iterable[int] = range(0, num, batch)
    for first in starts if progress is None else progress(starts):
        seeds = range(seed + first, seed + min(first + batch, num))
        x = SampleNoise(seeds, model.shape, device=model.device)() * float(schedule.prior_scale(times[0]))
        x = _wide(x)  # the network's body keeps its dtype, and what stands around it does not round
        network = partial(_labelled, model, None if condition is None else condition[first:first + batch])
        _observe(_Around(network, schedule, model.prediction, ends), plan, x, totals, seed + first)
    about = {"model": model.name, "num": num, "knots": knots, "seed": seed, "schedule": schedule.to_config()}
    return _regressed([float(schedule.log_snr(t)) for t in totals], list(totals.values()), num, about)


def _labelled(model: ScoreModel, labels: Tensor | None, x: Tensor, t: Weight) -> Tensor:
    return model(x, t, None if labels is None else labels.to(x.device))


def _observe(around: _Around, plan: Plan, x: Tensor, totals: dict[float, _Totals], seed: int) -> None:
    """Run a batch of trajectories, and count in what they show at the times of the totals."""
    signs = torch.Generator().manual_seed(seed)

    def network(point: Tensor, t: Weight) -> Tensor:
        raw = around.network(point, float(t))
        if t in totals:
            totals[float(t)].add(around.sample(point, float(t), raw, signs))
        return raw

    execute(plan, network, x)


class _Sample(NamedTuple):
    """Of each trajectory: ``u = e^{-λ} ε``, its derivative along the ODE, ``y = x/α``, and the estimate of l."""

    scaled: Tensor
    change: Tensor
    state: Tensor
    linear: Tensor


class _Around(NamedTuple):
    """A model near a point of a trajectory."""

    network: Callable[[Tensor, float], Tensor]
    schedule: NoiseSchedule
    prediction: str
    ends: tuple[float, float]

    def sample(self, x: Tensor, t: float, raw: Tensor, signs: torch.Generator) -> _Sample:
        """Differentiate along the ODE, and along random signs."""
        alpha, sigma = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        clock, middle, state = float(self.schedule.log_snr(t)), self._scaled(x, t, raw), x / alpha
        offsets = {self.ends[0]: (-2, -1), self.ends[1]: (1, 2)}.get(t, (-1, 1))  # nothing lies beyond the ends
        about, *beside = np.linalg.inv(np.vander([0, *offsets], increasing=True))[1] / _DIFFERENCE
        change = about * middle
        for weight, offset in zip(beside, offsets, strict=True):
            step = offset * _DIFFERENCE
            time = float(self.schedule.time_of_log_snr(clock + step))
            moved = float(self.schedule.alpha(time)) * (state - step * middle)  # dy/dλ = -u
            change = change + weight * self._scaled(moved, time)
        sign = (torch.randint(0, 2, x.shape, generator=signs) * 2.0 - 1.0).to(x)
        push = _DIFFERENCE * sigma * sign
        spread = self._scaled(x + push, t) - self._scaled(x - push, t)
        return _Sample(middle, change, state, alpha / (2.0 * _DIFFERENCE * sigma) * sign * spread)

    def _scaled(self, x: Tensor, t: float, raw: Tensor | None = None) -> Tensor:
        a, b = self.schedule.conversion(self.prediction, "epsilon", t)
        raw = self.network(x, t) if raw is None else raw
        return float(self.schedule.ratio(t)) * (a * x + b * raw)


def _wide(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()


class _Totals(NamedTuple):
    """Sums of first and second moments over trajectories."""

    means: list[Tensor]
    products: list[list[Tensor]]
    linear: list[Tensor]

    @classmethod
    def zero(cls, shape: Sequence[int]) -> _Totals:
        """Nothing yet."""
        def none() -> Tensor:
            return torch.zeros(tuple(shape), dtype=torch.float64)

        return cls([none() for _ in range(3)], [[none() for _ in range(3)] for _ in range(3)], [none()])

    def add(self, sample: _Sample) -> None:
        """Count the trajectories of a batch in."""
        values = [value.cpu().double() for value in sample[:3]]
        self.linear[0] += sample.linear.cpu().double().sum(0)
        for i, value in enumerate(values):
            self.means[i] += value.sum(0)
            for j, other in enumerate(values):
                self.products[i][j] += (value * other).sum(0)


def _regressed(
    log_snr: Sequence[float], totals: Sequence[_Totals], num: int, about: dict[str, object]
) -> ModelStatistics:
    """Regress ``df/dλ`` on f, both linear in the moments that were summed up.

    With ``u = e^{-λ} ε``, ``y = x/α`` and ``dy/dλ = -u``: ``f = u - l y`` and ``df/dλ = du/dλ + l u - (dl/dλ) y``.
    """
    knots = torch.tensor(log_snr, dtype=torch.float64)
    linear = torch.stack([total.linear[0] / num for total in totals])
    d_linear = torch.gradient(linear, spacing=(knots,), dim=0)[0]
    one = torch.ones_like(linear[0])
    slopes, constants = [], []
    for total, value, change in zip(totals, linear, d_linear, strict=True):
        f, d_f = (one, 0.0 * one, -value), (value, one, -change)
        mean_f, mean_d = (sum((w * m / num for w, m in zip(weights, total.means, strict=True)), start=0.0 * one)
                          for weights in (f, d_f))
        square, product = (sum((v * w * total.products[i][j] / num for i, v in enumerate(f)
                                for j, w in enumerate(weights)), start=0.0 * one) for weights in (f, d_f))
        spread = square - mean_f**2
        known = spread > 1e-12 * square
        slope = torch.where(known, (product - mean_f * mean_d) / torch.where(known, spread, one), 0.0 * one)
        slopes.append(slope)
        constants.append(mean_d - slope * mean_f)
    return ModelStatistics(knots, linear, torch.stack(slopes), torch.stack(constants), about)
