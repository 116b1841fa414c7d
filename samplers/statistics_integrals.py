"""What a step over log-SNR needs of empirical model statistics: integrals of l, s and b with exponential kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from odecore.implicit.tableaus import GAUSS6
from samplers.model_statistics import ModelStatistics

_LONGEST = 0.05
"""Three Gauss points on a piece this long leave an error of some 1e-13 relative of e^{λ} and its like."""

MOMENTS = 4
"""Powers of λ that are integrated: enough for a polynomial through four predictions."""


class StepIntegrals(NamedTuple):
    """Integrals over a step from λ_s to λ_t, of the shape of the statistics.

    With ``L(λ) = ∫_{λ_s}^λ l``, ``S(λ) = ∫_{λ_s}^λ s`` and ``B(λ) = ∫_{λ_s}^λ e^{-S} b``:

    Attributes:
        decay: ``e^{-L(λ_t)}``.
        growth: ``e^{S(λ_t)}``, by which a prediction grows along the step.
        drift: ``e^{S(λ_t)} B(λ_t)``, what is added to it.
        moments: ``∫ e^{L - L(λ_t) + S} (λ - λ_s)^k dλ`` for k = 0, 1, ….
        constant: ``∫ e^{L - L(λ_t) + S} B dλ``.
    """

    decay: Tensor
    growth: Tensor
    drift: Tensor
    moments: tuple[Tensor, ...]
    constant: Tensor


def step_integrals(statistics: ModelStatistics, start: float, end: float) -> StepIntegrals:
    """Integrate over one step, by Gauss collocation between the knots of the statistics.

    Args:
        statistics: linear between its knots.
        start: λ_s.
        end: λ_t, more than λ_s.
    """
    knots = statistics.log_snr.numpy()
    edges = _pieces([start, *knots[(knots > start) & (knots < end)].tolist(), end])
    steps = np.diff(edges)
    nodes = edges[:-1, None] + steps[:, None] * np.asarray(GAUSS6.c)
    columns = (-1, 1, *[1] * (statistics.linear.ndim - 1))
    lengths = torch.from_numpy(steps).reshape(-1, 1, *[1] * (statistics.linear.ndim - 1))
    linear, slope, constant = (values.unflatten(0, nodes.shape) for values in statistics.at(nodes.ravel()))
    total_l, inner_l = _cumulated(linear, lengths)
    total_s, inner_s = _cumulated(slope, lengths)
    total_b, inner_b = _cumulated(torch.exp(-inner_s) * constant, lengths)
    weights = lengths * torch.tensor(GAUSS6.b, dtype=torch.float64).reshape(1, *columns[:1], *columns[2:])
    kernel = weights * torch.exp(inner_l - total_l + inner_s)
    offsets = torch.from_numpy(nodes - start).reshape(*nodes.shape, *columns[2:])
    moments = tuple((kernel * offsets**k).sum((0, 1)) for k in range(MOMENTS))
    growth = torch.exp(total_s)
    return StepIntegrals(torch.exp(-total_l), growth, growth * total_b, moments, (kernel * inner_b).sum((0, 1)))


def _pieces(edges: Sequence[float]) -> np.ndarray:
    """Cut intervals into equal pieces that are short enough."""
    cut = [np.linspace(a, b, max(1, math.ceil((b - a) / _LONGEST)), endpoint=False)
           for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return np.append(np.concatenate(cut), edges[-1])


def _cumulated(values: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The integral over all pieces, and up to each Gauss point, of values at Gauss points (piece, point, …)."""
    a, b = (torch.tensor(weights, dtype=torch.float64) for weights in (GAUSS6.a, GAUSS6.b))
    whole = lengths[:, 0] * torch.einsum("j,pj...->p...", b, values)
    ends = whole.cumsum(0)
    return ends[-1], (ends - whole)[:, None] + lengths * torch.einsum("ij,pj...->pi...", a, values)
