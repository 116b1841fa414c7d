"""Thresholding: a model whose predicted samples keep to the range of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.wrapper import Wrapper
from scoremodels.model import ScoreModel


class DynamicThresholding(Wrapper):
    """Keep the predicted sample in range: clip x0 to its own quantile s ≥ 1 and divide by s.

    The result is a model that predicts the sample.

    Args:
        model: any model whose data lie in [-1, 1].
        quantile: which quantile of ``|x0|`` of each sample gives s, between 0 and 1.
        maximum: largest s; 1 is plain clipping.

    Raises:
        ValueError: a number out of range.

    Source: Saharia et al. 2022 (Imagen), arXiv:2205.11487, section 2.3.
    """

    def __init__(self, model: ScoreModel, quantile: float = 0.995, maximum: float = float("inf")) -> None:
        if not 0.0 < quantile <= 1.0:
            raise ValueError(f"quantile={quantile}: give a number above 0, at most 1")
        if not maximum >= 1.0:
            raise ValueError(f"maximum={maximum}: give a number of at least 1")
        super().__init__(model, "sample")
        self.quantile = quantile
        self.maximum = maximum

    def forward(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """The thresholded x0 at ``x`` of shape (B, …)."""
        return threshold(self.model.denoise(x, t, condition), self.quantile, self.maximum)


def threshold(x0: Tensor, quantile: float, maximum: float) -> Tensor:
    """Clip each sample to its quantile s of absolute values, 1 ≤ s ≤ ``maximum``, and divide by s."""
    magnitude = x0.abs().flatten(1).float()
    s = torch.quantile(magnitude, quantile, dim=1).clamp(1.0, maximum).to(x0.dtype)
    s = s.reshape(-1, *[1] * (x0.ndim - 1))
    return torch.clamp(x0, -s, s) / s
