"""Samples that keep constraints: a model whose denoised sample is moved to where they hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odecore.learn.constraints import Kind, equality, inequality, raised
from scoremodels.model import ScoreModel


@dataclass(frozen=True, slots=True)
class SampleConstraint:
    """A demand on samples: ``function(x0) = 0``, or ``≤ 0``.

    Args:
        kind: :func:`~odecore.learn.constraints.equality` or :func:`~odecore.learn.constraints.inequality`.
        function: of samples of shape (B, …), with values of shape (B, …); differentiable, no sample depending on
            another.

    Raises:
        ValueError: another kind.
    """

    kind: Kind
    function: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if self.kind not in (equality, inequality):
            raise ValueError(f"kind={self.kind!r}: choose equality or inequality of odecore.learn.constraints")

    def violation(self, x0: Tensor) -> Tensor:
        """The largest violation of each sample, of shape (B,)."""
        value = self.function(x0)
        return self.kind(value, torch.zeros_like(value), 1.0).violation.flatten(1).amax(1)


def known_pixels(values: Tensor, mask: Tensor) -> SampleConstraint:
    """Ask for given values where the mask is true (inpainting)."""
    return SampleConstraint(equality, lambda x0: (x0 - values.to(x0))[:, mask.to(x0.device)])


def mean_value(value: float) -> SampleConstraint:
    """Ask for a mean over each sample, the brightness of an image; the value counts as √D of it for good scaling."""
    return SampleConstraint(equality, lambda x0: _spread_mean(x0) - value * _size(x0) ** 0.5)


def mean_at_most(value: float) -> SampleConstraint:
    """Ask that the mean over each sample is no larger: an ink limit."""
    return SampleConstraint(inequality, lambda x0: _spread_mean(x0) - value * _size(x0) ** 0.5)


def mirrored(axis: int = -1) -> SampleConstraint:
    """Ask that each sample equals its mirror image along an axis."""
    return SampleConstraint(equality, lambda x0: (x0 - x0.flip(axis)) / 2)


class ConstrainedModel(ScoreModel):
    """A model whose denoised sample is the nearest one that keeps the constraints, by an augmented Lagrangian.

    ``min_z |z - x̂0|² / 2 + Σ ρ Φ² + λ Φ`` (likewise for inequalities) is descended by gradients, and then
    ``λ ← λ + 2ρΦ``, again and again. The network is evaluated once, as without constraints, and not differentiated.
    Solve to the end of the schedule (``end="clean"``), where the last state is a denoised sample.

    Args:
        model: any model.
        constraints: demands; their slopes should be about one, as those of this module are.
        weight: ρ.
        moves: of the multipliers.
        steps: of the descent between two moves.

    Raises:
        ValueError: no constraints, or a number out of range.

    Cost: one evaluation; ``moves · steps`` gradients of the constraints.

    Source: multipliers as Djeumou et al. 2022, arXiv:2109.06407; on samples this is our own construction.
    """

    def __init__(
        self, model: ScoreModel, constraints: Sequence[SampleConstraint], *, weight: float = 1.0, moves: int = 12,
        steps: int = 8,
    ) -> None:
        if not constraints or not weight > 0 or moves < 1 or steps < 1:
            raise ValueError(f"constraints={constraints!r}, weight={weight}, moves={moves}, steps={steps}: give at "
                             "least one constraint, move and step, and a positive weight")
        super().__init__(model.network, model.schedule, "sample", model.shape, num_classes=model.num_classes,
                         label_dropout=model.label_dropout, name=model.name, value_range=model.value_range)
        self.model = model
        self.constraints = tuple(constraints)
        self.weight, self.moves, self.steps = float(weight), moves, steps

    def forward(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """The constrained x0 at ``x`` of shape (B, …)."""
        return constrained(self.model.denoise(x, t, condition), self.constraints, weight=self.weight,
                           moves=self.moves, steps=self.steps)


def constrained(
    x0: Tensor, constraints: Sequence[SampleConstraint], *, weight: float = 1.0, moves: int = 12, steps: int = 8
) -> Tensor:
    """The samples nearest to the given ones that keep the constraints, see :class:`ConstrainedModel`."""
    z, start = x0.detach().float(), x0.detach().float()
    multipliers = [torch.zeros_like(constraint.function(z)) for constraint in constraints]
    length = 1 / (1 + 2 * weight * len(constraints))
    for _ in range(moves):
        for _ in range(steps):
            z = z - length * (z - start + _slope(z, constraints, multipliers, weight))
        multipliers = [raised(constraint.kind, constraint.function(z), multiplier, weight)
                       for constraint, multiplier in zip(constraints, multipliers, strict=True)]
    return z.to(x0.dtype)


def _slope(
    z: Tensor, constraints: Sequence[SampleConstraint], multipliers: Sequence[Tensor], weight: float
) -> Tensor:
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        penalties = [constraint.kind(constraint.function(point), multiplier, weight).penalty.sum()
                     for constraint, multiplier in zip(constraints, multipliers, strict=True)]
        return torch.autograd.grad(torch.stack(penalties).sum(), point)[0]


def _size(x0: Tensor) -> int:
    return x0[0].numel()


def _spread_mean(x0: Tensor) -> Tensor:
    """``√D`` times the mean, whose slope has norm one."""
    return x0.flatten(1).sum(1, keepdim=True) / _size(x0) ** 0.5
