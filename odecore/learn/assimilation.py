"""Estimate the state of any field from observations of part of it: an ensemble Kalman filter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from odecore.driver.integrate import integrate
from odecore.stepper import Stepper


class Assimilated(NamedTuple):
    """Ensembles at the times of the observations.

    Attributes:
        forecasts: before each observation was taken in.
        analyses: after it.
    """

    forecasts: Float[Tensor, "times members n"]
    analyses: Float[Tensor, "times members n"]

    def increments(self, interval: float) -> Float[Tensor, "later n"]:
        """What observations added to the mean, per unit of time: the trace of the model's error.

        The first one belongs to the start and is left out, so that row k stands beside analysis k + 1.
        """
        return (self.analyses - self.forecasts).mean(1)[1:] / interval


@torch.no_grad()
def analysis(
    ensemble: Float[Tensor, "members n"], predicted: Float[Tensor, "members q"], observation: Float[Tensor, " q"],
    covariance: Float[Tensor, "q q"],
) -> Float[Tensor, "members n"]:
    """Take one observation into an ensemble, by the symmetric square root.

    With anomalies A of the members and B of what they predict, both over √(N - 1), and ``G = I + B R⁻¹ Bᵀ``::

        mean + = Aᵀ G⁻¹ B R⁻¹ (y - ⟨h⟩)        A ← G^(-1/2) A

    Mean and covariance are those of Kalman's formulas where h is linear; no random numbers are drawn.

    Args:
        ensemble: the members.
        predicted: h of each.
        observation: y.
        covariance: R of its noise.

    Cost: one eigendecomposition of (members, members).

    Source: Bishop, Etherton & Majumdar 2001, doi:10.1175/1520-0493(2001)129<0420:ASWTET>2.0.CO;2.
    """
    scale = math.sqrt(len(ensemble) - 1)
    mean, expected = ensemble.mean(0), predicted.mean(0)
    anomalies, seen = (ensemble - mean) / scale, (predicted - expected) / scale
    weighted = torch.linalg.solve(covariance, seen, left=False)
    values, basis = torch.linalg.eigh(weighted @ seen.T)
    values = 1 + values.clamp_min(0.0)
    shift = basis @ (basis.T @ (weighted @ (observation - expected)) / values)
    return mean + shift @ anomalies + scale * (basis / values.sqrt()) @ (basis.T @ anomalies)


@torch.no_grad()
def ensemble_kalman(
    stepper: Stepper, field: Callable[..., Tensor], ensemble: Float[Tensor, "members n"],
    observations: Float[Tensor, "times q"], *, interval: float, observe: Callable[[Tensor], Tensor],
    covariance: Float[Tensor, "q q"], steps: int = 1, inflation: float = 1.0,
) -> Assimilated:
    """Filter observations ``y_k = h(x(k interval)) + noise`` with an ensemble that follows a field between them.

    Parameters are estimated by making them part of the state, with derivative zero.

    Args:
        stepper: of the solution between two observations.
        field: of states of shape (members, n).
        ensemble: at the time of the first observation, before it.
        observations: y_k.
        interval: between two of them.
        observe: h, of states of shape (members, n).
        covariance: of the noise.
        steps: of the stepper in an interval.
        inflation: factor of the anomalies of each forecast, at least 1: stands for errors of the model and for
            what a small ensemble misses.

    Returns:
        The ensembles before and after each observation.

    Raises:
        ValueError: fewer than two members, numbers out of range, or a covariance that does not fit.

    Cost: ``(times - 1) · steps`` steps of the whole ensemble.

    Source: Evensen 1994, doi:10.1029/94JC00572.
    """
    if ensemble.ndim != 2 or len(ensemble) < 2:
        raise ValueError(f"ensemble has shape {tuple(ensemble.shape)}: give (members, n) with at least two members")
    if not 0 < interval < math.inf or steps < 1 or not 1 <= inflation < math.inf:
        raise ValueError(f"interval={interval}, steps={steps}, inflation={inflation}: give a positive interval, and "
                         "at least 1 step and an inflation of at least 1")
    size = observations.shape[-1]
    if observations.ndim != 2 or covariance.shape != (size, size) or not bool(
            torch.linalg.eigvalsh(covariance).min() > 0):
        raise ValueError(f"observations have shape {tuple(observations.shape)} and covariance "
                         f"{tuple(covariance.shape)}: give (times, q) and a positive definite (q, q)")
    times = [interval * k / steps for k in range(steps + 1)]
    forecasts, analyses = [], []
    for k, observation in enumerate(observations):
        if k:
            ensemble = integrate(stepper, field, ensemble, times).y
        mean = ensemble.mean(0)
        ensemble = mean + inflation * (ensemble - mean)
        forecasts.append(ensemble)
        ensemble = analysis(ensemble, observe(ensemble), observation, covariance)
        analyses.append(ensemble)
    return Assimilated(torch.stack(forecasts), torch.stack(analyses))
