"""ERA-Solver: an implicit Adams step whose prediction of the next noise picks its history by the error of the last one.

The choice depends on the data, so this is no plan. It is a wrapper of the network, as guidance is, under the plan of
Euler's method: what the network gives is noise, what the plan is given has the mean of the noise over the step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from odecore.plan import Plan, Weight, combine
from samplers.edm import EULER_SOLVER
from samplers.solver import Network, SelectingSolver
from scoremodels.schedule import NoiseSchedule

_EULER = replace(EULER_SOLVER, grid="time")
"""On wide last steps, as Karras times have them on flows, extrapolation in t goes astray."""

ADAMS_MOULTON = (9 / 24, 19 / 24, -5 / 24, 1 / 24)
"""Weights of the predicted noise at the end of a step and of those before it, newest first."""


def era(bases: int = 4, scale: float = 5.0) -> SelectingSolver:
    """Build ERA-Solver.

    With the noises ``ε_0 … ε_i`` that the network gave at ``t_0 … t_i``, a step is DDIM's with
    ``(9 ε̂_{i+1} + 19 ε_i - 5 ε_{i-1} + ε_{i-2})/24``, where ``ε̂_{i+1}`` is extrapolated in t to the end of the step
    through k of them, those of index ``floor((m/k)^(Δ/λ) i)``, m = 1 … k, with ``Δ = |ε̂_i - ε_i|``, the
    Euclidean norm, for each sample of a batch by itself. The worse the last one was predicted, the older are the
    bases. At first Δ is λ, which spreads them evenly; the first k - 1 steps are DDIM's. Where two indices
    coincide, the older one moves to the next free place.

    Args:
        bases: k, at least 3.
        scale: λ, above 0, in the norm of a whole sample: it goes with the square root of the number of its values.

    Raises:
        ValueError: an argument out of its range.

    Cost: one evaluation a step; all predictions of a run are kept. No synchronisation: the choice is made where the
        predictions are.

    Source: Li et al. 2023, arXiv:2301.12935, algorithm 1.
    """
    if isinstance(bases, bool) or not isinstance(bases, int) or bases < 3:
        raise ValueError(f"bases={bases!r}: give a whole number of at least 3")
    if not scale > 0.0:
        raise ValueError(f"scale={scale!r}: give a number above 0")

    def wrap(network: Network, plan: Plan, schedule: NoiseSchedule, prediction: str) -> Network:
        return ErrorRobust(network, plan, schedule, prediction, bases, scale)

    return SelectingSolver(f"era-{bases}", 2, "Li et al. 2023, arXiv:2301.12935", base=_EULER, wrap=wrap)


@dataclass
class ErrorRobust:
    """The network of one run: called once for each row of its plan, in order.

    Args:
        network: gives the raw prediction.
        plan: Euler's, compiled for that prediction.
        schedule: noise schedule of the model.
        prediction: what the network predicts.
        bases: number of predictions that are extrapolated.
        scale: error at which they are spread evenly.
    """

    network: Network
    plan: Plan
    schedule: NoiseSchedule
    prediction: str
    bases: int
    scale: float

    def __post_init__(self) -> None:
        self._noises: list[Tensor] = []
        self._expected: Tensor | None = None
        self._times = torch.tensor([*(row.t for row in self.plan.rows), self.plan.rows[-1].t_next], dtype=torch.float64)

    def __call__(self, x: Tensor, t: Weight) -> Tensor:
        """Evaluate the network; give the raw prediction that has the mean of the noise over the step."""
        raw = self.network(x, t)
        if x.dtype in (torch.float16, torch.bfloat16):  # differences of the noises would drown in its rounding
            x, raw = x.float(), raw.float()
        self._noises.append(combine(self.schedule.conversion(self.prediction, "epsilon", float(t)), (x, raw)))
        last = len(self._noises) - 1
        if last < self.bases - 1:
            return raw
        self._expected = self._extrapolated(selected(self._error() / self.scale, last, self.bases))
        mean = combine(ADAMS_MOULTON, (self._expected, *self._noises[:-4:-1]))
        return combine(self.schedule.conversion("epsilon", self.prediction, float(t)), (x, mean))

    def _error(self) -> Tensor:
        """Δ of each sample, in float64."""
        now = self._noises[-1]
        if self._expected is None:
            return torch.full(now.shape[:1], self.scale, dtype=torch.float64, device=now.device)
        return (self._expected - now).flatten(1).double().norm(dim=1)

    def _extrapolated(self, indices: Tensor) -> Tensor:
        """Lagrange's polynomial through the noises at those indices, at the end of the step."""
        now, count = self._noises[-1], len(self._noises)
        times = self._times.to(now.device)
        share = torch.zeros(len(now), count, dtype=torch.float64, device=now.device)
        share.scatter_(1, indices, lagrange(times[indices], times[count]))
        columns = share.to(now.dtype).reshape(len(now), count, *[1] * (now.ndim - 1)).unbind(1)
        return combine(columns, self._noises)


def selected(exponent: Tensor, last: int, bases: int) -> Tensor:
    """Give the distinct indices ``floor((m/k)^exponent · last)``, m = 1 … k, in a row for each sample.

    Args:
        exponent: Δ/λ of each sample.
        last: index of the newest prediction, at least ``bases`` - 1.
        bases: k.
    """
    fractions = torch.arange(1, bases + 1, dtype=torch.float64, device=exponent.device) / bases
    free = (fractions ** exponent.unsqueeze(1) * last).floor().long()
    indices = [torch.clamp(column, min=m) for m, column in enumerate(free.unbind(1))]
    for m in reversed(range(bases - 1)):
        indices[m] = torch.minimum(indices[m], indices[m + 1] - 1)
    return torch.stack(indices, 1)


def lagrange(nodes: Tensor, at: Tensor) -> Tensor:
    """Values of the Lagrange polynomials at a place, in a row for each row of nodes."""
    count = nodes.shape[1]
    differences = nodes.unsqueeze(2) - nodes.unsqueeze(1) + torch.eye(count, dtype=nodes.dtype, device=nodes.device)
    numerators = (at - nodes).unsqueeze(1).expand(-1, count, -1).clone()
    numerators.diagonal(dim1=1, dim2=2).fill_(1.0)
    return (numerators / differences).prod(2)


ERA = (era(4),)
