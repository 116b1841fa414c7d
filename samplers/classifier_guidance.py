"""Guidance by the gradient of a log-probability: of a classifier, of a measurement, of any differentiable wish."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samplers.wrapper import Guidance
from scoremodels.model import ScoreModel


class GradientGuidance(Guidance):
    """Add ``scale ∇_x log p(label | x)`` to the score of a model that is given no label.

    Where there is no signal (α = 0) a state says nothing of labels, and the model is left as it is.

    Args:
        model: the model to guide.
        num_classes: labels that the log-probability knows; 0 if it takes none.
        scale: 0 is the model alone, 1 the posterior by Bayes' rule; more than 1 sharpens it.

    Raises:
        ValueError: the model needs labels, or a number is out of range; when evaluated, log-probabilities that are
            not one a state.
    """

    def __init__(self, model: ScoreModel, num_classes: int, scale: float) -> None:
        if model.num_classes and not model.label_dropout:
            raise ValueError("model was trained with labels only: guidance by a gradient needs one that was also "
                             "trained without")
        if not isinstance(num_classes, int) or num_classes < 0:
            raise ValueError(f"num_classes={num_classes!r}: give the number of labels, or 0 for none")
        if not math.isfinite(scale):
            raise ValueError(f"scale={scale}: give a finite guidance scale")
        super().__init__(model)
        self.num_classes, self.label_dropout = num_classes, True
        self.scale = float(scale)

    @abstractmethod
    def pair(self, x: Tensor, t: float | Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give the model's own prediction, and ∇_x log p, both of the shape of ``x``."""

    def forward(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided prediction at ``x`` of shape (B, …); the model's own if a label is missing."""
        if self.scale == 0.0 or (condition is None and self.num_classes):
            return self.model(x, t)
        signal = np.asarray(self.schedule.alpha(_on_host(t))) > 0.0
        if not signal.any():
            return self.model(x, t)
        raw, gradient = self.pair(x, t, condition)
        if isinstance(t, Tensor):
            gradient = gradient * torch.from_numpy(signal).to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
            t = torch.where(torch.from_numpy(signal).to(t.device), t, self.schedule.t_min)
        _, slope = self.conversion("score", self.prediction, x, t)
        return raw + (self.scale * slope) * gradient


class ClassifierGuidance(GradientGuidance):
    """Follow a classifier of noisy states: ``score + scale ∇_x log p(label | x, t)``.

    Args:
        model: the model to guide.
        log_prob: ``(x, t, condition) -> log p`` of shape (B,), differentiable in x, on states as the model sees them.
        scale: 0 is the model alone, 1 the posterior by Bayes' rule; more than 1 sharpens it.
        num_classes: labels that the classifier knows; 0 if ``log_prob`` takes none.

    Raises:
        ValueError: see :class:`GradientGuidance`.

    Cost: one NFE, and a forward and a backward pass of the classifier, which no count includes.

    Source: Dhariwal & Nichol 2021, arXiv:2105.05233, section 4.2.
    """

    def __init__(
        self, model: ScoreModel, log_prob: Callable[[Tensor, float | Tensor, Tensor | None], Tensor],
        scale: float = 1.0, *, num_classes: int = 0,
    ) -> None:
        super().__init__(model, num_classes, scale)
        self.log_prob = log_prob

    def pair(self, x: Tensor, t: float | Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give the model's own prediction, and the classifier's gradient."""
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            gradient = _gradient(self.log_prob(state, t, condition), state)
        return self.model(x, t), gradient


class DenoisedGuidance(GradientGuidance):
    """Follow a classifier of clean samples, at the denoised one: ``score + scale ∇_x log p(label | E[x0 | x])``.

    No classifier of noisy states is needed, but the gradient passes through the network. With the
    log-likelihood of a measurement in place of a classifier this is posterior sampling.

    Args:
        model: the model to guide.
        log_prob: ``(x0, condition) -> log p`` of shape (B,), differentiable in x0.
        scale: 0 is the model alone.
        num_classes: labels that the classifier knows; 0 if ``log_prob`` takes none.

    Raises:
        ValueError: see :class:`GradientGuidance`.

    Cost: one NFE and its backward pass, and a forward and a backward pass of the classifier, neither of which
        is counted. Memory of a training step but for the gradients of the weights.

    Source: Bansal et al. 2023, arXiv:2302.07121, forward guidance; Chung et al. 2022, arXiv:2209.14687.
    """

    def __init__(
        self, model: ScoreModel, log_prob: Callable[[Tensor, Tensor | None], Tensor], scale: float = 1.0, *,
        num_classes: int = 0,
    ) -> None:
        super().__init__(model, num_classes, scale)
        self.log_prob = log_prob

    def pair(self, x: Tensor, t: float | Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """Give the model's own prediction, and the gradient through it."""
        a, b = self.conversion(self.prediction, "sample", x, t)
        with torch.enable_grad():
            state = x.detach().requires_grad_()
            raw = self.model(state, t)
            gradient = _gradient(self.log_prob(a * state + b * raw, condition), state)
        return raw.detach(), gradient


def _on_host(t: float | Tensor) -> NDArray[np.float64]:
    return np.asarray(t.detach().cpu() if isinstance(t, Tensor) else t, dtype=np.float64)


def _gradient(log_prob: Tensor, state: Tensor) -> Tensor:
    if log_prob.shape != (len(state),):
        raise ValueError(f"log_prob gives shape {tuple(log_prob.shape)}: give one log-probability a state, "
                         f"({len(state)},)")
    if not log_prob.requires_grad:
        raise ValueError("log_prob gives numbers without a gradient: compute them from the states, in torch, without "
                         "no_grad or detach")
    return torch.autograd.grad(log_prob.sum(), state)[0]
