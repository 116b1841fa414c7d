"""Non-linear pieces around a model: guidance and thresholding. Each is a model that wraps a model."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoremodels.model import ScoreModel


class ClassifierFreeGuidance(ScoreModel):
    """Push the prediction away from the unconditional one: ``u + scale (c - u)``.

    Any prediction is linear in the network's output, so this holds for ε, x0, v, flow and score alike.

    Args:
        model: a class-conditional model trained with label dropout.
        scale: 1 is the conditional model, 0 the unconditional one; more than 1 guides.

    Raises:
        ValueError: the model is unconditional or knows no "no label", or the scale is not finite.

    Cost: one evaluation of twice the batch, counted as one NFE.

    Source: Ho & Salimans 2022, arXiv:2207.12598.
    """

    def __init__(self, model: ScoreModel, scale: float) -> None:
        if not model.num_classes:
            raise ValueError("model is unconditional: classifier-free guidance needs a class-conditional one")
        if not model.label_dropout:
            raise ValueError("model was trained with labels only: classifier-free guidance needs one that was also "
                             "trained without")
        if not math.isfinite(scale):
            raise ValueError(f"scale={scale}: give a finite guidance scale")
        super().__init__(model.network, model.schedule, model.prediction, model.shape, num_classes=model.num_classes,
                         label_dropout=model.label_dropout, name=model.name, value_range=model.value_range)
        self.model = model
        self.scale = float(scale)

    def forward(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided prediction at ``x`` of shape (B, …); without a condition, the unconditional one."""
        if condition is None or self.scale == 0.0:
            return self.model(x, t)
        if self.scale == 1.0:
            return self.model(x, t, condition)
        no_label = torch.full_like(condition, self.model.num_classes)
        times = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        conditional, unconditional = self.model(torch.cat([x, x]), times, torch.cat([condition, no_label])).chunk(2)
        return torch.lerp(unconditional, conditional, self.scale)


class DynamicThresholding(ScoreModel):
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
        super().__init__(model.network, model.schedule, "sample", model.shape, num_classes=model.num_classes,
                         label_dropout=model.label_dropout, name=model.name, value_range=model.value_range)
        self.model = model
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
