"""Guidance by contrast: away from a worse prediction, through a better one, and beyond it.

Each is a model that wraps a model, so that any solver samples it and one wraps another. Any prediction is
linear in x0 and ε, so that a contrast holds for ε, x0, v, flow and score alike.
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from samplers.wrapper import Guidance
from scoremodels.model import ScoreModel


class Contrast(Guidance):
    """Guide by two predictions: ``worse + scale (better - worse)``.

    Args:
        model: the model that gives the better prediction.
        scale: 1 is the better prediction, 0 the worse; more than 1 guides.

    Raises:
        ValueError: the scale is not finite.
    """

    def __init__(self, model: ScoreModel, scale: float) -> None:
        if not math.isfinite(scale):
            raise ValueError(f"scale={scale}: give a finite guidance scale")
        super().__init__(model)
        self.scale = float(scale)

    @abstractmethod
    def pair(self, x: Tensor, t: float | Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give the better and the worse prediction at ``x`` of shape (B, …)."""

    def idle(self, condition: Tensor | None) -> bool:
        """Whether the model alone gives the same."""
        return self.scale == 1.0

    def forward(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided prediction at ``x`` of shape (B, …)."""
        if self.idle(condition):
            return self.model(x, t, condition)
        better, worse = self.pair(x, t, condition)
        return torch.lerp(worse, better, self.scale)


class ClassifierFreeGuidance(Contrast):
    """Push the prediction away from the unconditional one: ``u + scale (c - u)``.

    Args:
        model: a class-conditional model trained with label dropout.
        scale: 1 is the conditional model, 0 the unconditional one; more than 1 guides.

    Raises:
        ValueError: the model is unconditional or knows no "no label", or the scale is not finite.

    Cost: one evaluation of twice the batch, counted as one NFE and two passes.

    Source: Ho & Salimans 2022, arXiv:2207.12598.
    """

    def __init__(self, model: ScoreModel, scale: float) -> None:
        if not model.num_classes:
            raise ValueError("model is unconditional: classifier-free guidance needs a class-conditional one")
        if not model.label_dropout:
            raise ValueError("model was trained with labels only: classifier-free guidance needs one that was also "
                             "trained without")
        super().__init__(model, scale)

    def idle(self, condition: Tensor | None) -> bool:
        """Whether the model alone gives the same: without a condition there is nothing to guide to."""
        return condition is None or super().idle(condition)

    def pair(self, x: Tensor, t: float | Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give the conditional and the unconditional prediction."""
        assert condition is not None
        no_label = torch.full_like(condition, self.model.num_classes)
        times = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        better, worse = self.model(torch.cat([x, x]), times, torch.cat([condition, no_label])).chunk(2)
        return better, worse

    def forward(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided prediction at ``x`` of shape (B, …); without a condition, the unconditional one."""
        return self.model(x, t) if self.scale == 0.0 else super().forward(x, t, condition)


class Autoguidance(Contrast):
    """Push the prediction away from that of a worse version of the model: ``w + scale (b - w)``.

    Args:
        model: the model to guide.
        worse: a smaller or less trained model of the same data, on the same schedule; it may predict another kind.
        scale: 1 is the model, 0 the worse one; more than 1 guides.

    Raises:
        ValueError: the worse model has another schedule, shape or labels, or the scale is not finite.

    Cost: one evaluation of each of the two networks, which are two NFE.

    Source: Karras et al. 2024, arXiv:2406.02507.
    """

    def __init__(self, model: ScoreModel, worse: ScoreModel, scale: float) -> None:
        super().__init__(model, scale)
        for name in ("schedule", "shape", "num_classes"):
            ours, other = getattr(model, name), getattr(worse, name)
            if ours != other:
                raise ValueError(f"worse has {name}={other!r}, the model {ours!r}: give a worse model of the same data "
                                 "on the same noise schedule")
        self.worse = worse

    def pair(self, x: Tensor, t: float | Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give the predictions of the model and of the worse one."""
        worse = self.worse(x, t, condition)
        if self.worse.prediction != self.prediction:
            a, b = self.conversion(self.worse.prediction, self.prediction, x, t)
            worse = a * x + b * worse
        return self.model(x, t, condition), worse


class RescaledGuidance(Guidance):
    """Bring the guided prediction g back to the spread of the better one b: ``r g std(b)/std(g) + (1 - r) g``.

    Strong guidance spreads predictions and so overexposes images; std is that of each sample.

    Args:
        guided: guidance by contrast.
        rescale: r, from 0 (guidance as it is) to 1; 0.7 is the published choice.

    Raises:
        ValueError: other guidance, or a number out of range.

    Cost: that of the guidance.

    Source: Lin et al. 2023, arXiv:2305.08891, section 3.4; applied to what the network predicts, as there.
    """

    def __init__(self, guided: Contrast, rescale: float = 0.7) -> None:
        if not isinstance(guided, Contrast):
            raise ValueError(f"guided is a {type(guided).__name__}: rescaling needs the better of two predictions, so "
                             "give ClassifierFreeGuidance or another Contrast")
        if not 0.0 <= rescale <= 1.0:
            raise ValueError(f"rescale={rescale}: give a number from 0 to 1")
        super().__init__(guided)
        self.guided = guided
        self.rescale = float(rescale)

    @property
    def unguided(self) -> ScoreModel:
        """The model without any guidance."""
        return self.guided.unguided

    def forward(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """The rescaled prediction at ``x`` of shape (B, …)."""
        if self.rescale == 0.0 or self.guided.idle(condition):
            return self.guided(x, t, condition)
        better, worse = self.guided.pair(x, t, condition)
        guided = torch.lerp(worse, better, self.guided.scale)
        axes = tuple(range(1, x.ndim))
        spread, wanted = guided.std(axes, keepdim=True), better.std(axes, keepdim=True)
        return guided * (1.0 + self.rescale * (wanted / spread - 1.0))


class GuidanceInterval(Guidance):
    """Guide at middle noise levels alone, ``low < σ/α ≤ high``; elsewhere the model is left as it is.

    Guidance at high noise takes variety away, at low noise it does nothing; without it there the evaluations of
    the second branch are saved as well.

    Args:
        guided: any guidance, itself perhaps wrapped.
        low: noise-to-signal ratio σ/α at and below which samples are not guided, at least 0.
        high: ratio above which they are not, more than ``low``; inf for no such bound.

    Raises:
        ValueError: no guidance, or bounds out of order.

    Cost: that of the guidance within the interval, that of the model elsewhere. Times of a batch that lie on
        both sides are evaluated in two parts; times on an accelerator are waited for.

    Source: Kynkäänniemi et al. 2024, arXiv:2404.07724; with α = 1 the ratio is their σ.
    """

    def __init__(self, guided: Guidance, low: float, high: float = math.inf) -> None:
        if not isinstance(guided, Guidance):
            raise ValueError(f"guided is a {type(guided).__name__}: give a model with guidance around it")
        if not 0.0 <= low < high:
            raise ValueError(f"low={low}, high={high}: give noise-to-signal ratios with 0 <= low < high")
        super().__init__(guided)
        self.guided = guided
        self.low, self.high = float(low), float(high)

    @property
    def unguided(self) -> ScoreModel:
        """The model without any guidance."""
        return self.guided.unguided

    def forward(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction at ``x`` of shape (B, …), guided where its time lies in the interval."""
        inside = [self._inside(time) for time in (t.flatten().tolist() if isinstance(t, Tensor) else [t])]
        if all(inside) or not any(inside):
            return (self.guided if inside[0] else self.unguided)(x, t, condition)
        assert isinstance(t, Tensor)
        result, mask = torch.empty_like(x), torch.tensor(inside, device=x.device)
        for model, part in ((self.guided, mask), (self.unguided, ~mask)):
            result[part] = model(x[part], t[part.to(t.device)], None if condition is None else condition[part])
        return result

    def time_within(self) -> float:
        """A time in the middle of the interval, as far as the schedule reaches; its least noisy if it does not."""
        low, high = (float(self.schedule.ratio(t)) for t in (self.schedule.t_min, self.schedule.t_max))
        low, high = max(low, self.low), min(high, self.high, 1e3)
        return float(self.schedule.time_of_ratio(math.sqrt(low * high)) if low < high else self.schedule.t_min)

    def _inside(self, t: float) -> bool:
        return self.low < float(self.schedule.ratio(t)) <= self.high
