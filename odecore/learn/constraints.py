"""Constraints as values, and the augmented Lagrangian that keeps them in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from odecore.learn.fit import Loss, Moment


class Multiplied(NamedTuple):
    """What a constraint adds to an objective, elementwise, and how far its values miss it.

    Attributes:
        penalty: the terms to add.
        violation: not negative; zero where the constraint holds.
    """

    penalty: Tensor
    violation: Tensor


def equality(value: Tensor, multiplier: Tensor, weight: float) -> Multiplied:
    """``ρ Φ² + λ Φ`` for Φ = 0."""
    return Multiplied(value * (weight * value + multiplier), value.abs())


def inequality(value: Tensor, multiplier: Tensor, weight: float) -> Multiplied:
    """``(max(ν + 2ρΨ, 0)² - ν²) / 4ρ`` for Ψ ≤ 0.

    That is ``ρ Ψ² + ν Ψ`` where the constraint pushes, and a constant where it does not, so that the term has a
    continuous slope and never pulls a value below zero.

    Source: Rockafellar 1973, doi:10.1007/BF01580138.
    """
    push = (multiplier + 2 * weight * value).clamp_min(0.0)
    return Multiplied((push.square() - multiplier.square()) / (4 * weight), value.clamp_min(0.0))


def raised(kind: Kind, value: Tensor, multiplier: Tensor, weight: float) -> Tensor:
    """The next multiplier: ``λ + 2ρΦ``, or ``max(ν + 2ρΨ, 0)``."""
    following = multiplier + 2 * weight * value
    return following.clamp_min(0.0) if kind is inequality else following


Kind = Callable[[Tensor, Tensor, float], Multiplied]
"""``equality`` or ``inequality``."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """A demand on a module at collocation points: ``function(module, points) = 0``, or ``≤ 0``.

    Args:
        kind: :func:`equality` or :func:`inequality`.
        function: of the module and some rows of the points; its values, one row a point, of any shape, may come
            from outputs or from inner terms.
        points: where it is asked for, of shape (points, …).

    Raises:
        ValueError: another kind, or no points.
    """

    kind: Kind
    function: Callable[[nn.Module, Tensor], Tensor]
    points: Tensor

    def __post_init__(self) -> None:
        if self.kind not in (equality, inequality):
            raise ValueError(f"kind={self.kind!r}: choose equality or inequality of odecore.learn.constraints")
        if self.points.ndim < 1 or not len(self.points):
            raise ValueError(f"points have shape {tuple(self.points.shape)}: give at least one row")


@dataclass(slots=True)
class AugmentedLagrangian:
    """Keep constraints while a loss is minimised: a wrapper of the loss, and a callback that moves the multipliers.

    ::

        J = loss + ρ_e mean Φ² + mean λΦ + ρ_i mean 1[ν + 2ρΨ > 0] Ψ² + mean νΨ
        λ ← λ + 2ρΦ     ν ← max(ν + 2ρΨ, 0)     ρ ← β ρ

    with one multiplier for each value at each point; ρ grows only where a constraint is violated by more than
    its tolerance (of one kind together).

    Args:
        constraints: by name; the loss has a term of each.
        weight: first ρ.
        growth: β, at least 1.
        every: steps between moves.
        tolerance: mean violation that is none.
        batch: collocation points of a step; all of them if there are no more.
        largest: ρ grows no further.
        seed: of the choice of points.

    Raises:
        ValueError: a number out of range, or no constraints.

    Cost: ``batch`` values of each constraint a step, all of them at each move.

    Source: Djeumou et al. 2022, arXiv:2109.06407; ρ, β and the tolerance as in the authors' code.
    """

    constraints: Mapping[str, Constraint]
    weight: float = 1e-3
    growth: float = 1.5
    every: int = 100
    tolerance: float = 1e-4
    batch: int = 256
    largest: float = 1e4
    seed: int = 0
    multipliers: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    history: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    _generator: torch.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.constraints:
            raise ValueError("constraints is empty: without them the loss is the whole objective")
        if not (0 < self.weight <= self.largest < math.inf and self.growth >= 1):
            raise ValueError(f"weight={self.weight}, growth={self.growth}, largest={self.largest}: give "
                             "0 < weight ≤ largest, and a growth of at least 1")
        if self.every < 1 or self.batch < 1 or self.tolerance < 0:
            raise ValueError(f"every={self.every}, batch={self.batch}, tolerance={self.tolerance}: give at least one "
                             "step and point, and a tolerance that is not negative")
        self._generator = torch.Generator().manual_seed(self.seed)
        self.weights = self.weights or dict.fromkeys(self.constraints, self.weight)

    def added_to(self, loss: Loss) -> Loss:
        """The loss with a term for each constraint, which it names."""
        def total(module: nn.Module, batch: Any) -> dict[str, Tensor]:
            value = loss(module, batch)
            return {**(value if isinstance(value, Mapping) else {"loss": value}), **self.terms(module)}

        return total

    def terms(self, module: nn.Module) -> dict[str, Tensor]:
        """What each constraint adds, on a batch of its points."""
        terms = {}
        for name, constraint in self.constraints.items():
            count = len(constraint.points)
            rows = slice(None) if self.batch >= count else torch.randint(
                count, (self.batch,), generator=self._generator)
            value = constraint.function(module, constraint.points[rows])
            multiplier = self._multiplier(name, value, count)[rows]
            terms[name] = constraint.kind(value, multiplier, self.weights[name]).penalty.mean()
        return terms

    @torch.no_grad()
    def violations(self, module: nn.Module) -> dict[str, float]:
        """The mean violation of each constraint over all its points."""
        return {name: float(_violation(constraint, constraint.function(module, constraint.points)).mean())
                for name, constraint in self.constraints.items()}

    @torch.no_grad()
    def __call__(self, moment: Moment) -> None:
        """Move the multipliers at every so many steps."""
        if moment.step % self.every:
            return
        missed = {}
        for name, constraint in self.constraints.items():
            value = constraint.function(moment.module, constraint.points)
            missed[name] = float(_violation(constraint, value).mean())
            before, weight = self._multiplier(name, value, len(value)), self.weights[name]
            self.multipliers[name] = raised(constraint.kind, value, before, weight)
        self.history.append((moment.step, missed))
        for kind in (equality, inequality):
            names = [name for name, constraint in self.constraints.items() if constraint.kind is kind]
            if max((missed[name] for name in names), default=0.0) > self.tolerance:
                self.weights |= {name: min(self.growth * self.weights[name], self.largest) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"multipliers": self.multipliers, "weights": self.weights, "history": self.history,
                "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.multipliers, self.weights, self.history = state["multipliers"], state["weights"], state["history"]
        self._generator.set_state(state["generator"])

    def _multiplier(self, name: str, value: Tensor, count: int) -> Tensor:
        if name not in self.multipliers:
            self.multipliers[name] = torch.zeros(count, *value.shape[1:], dtype=value.dtype, device=value.device)
        return self.multipliers[name]


def _violation(constraint: Constraint, value: Tensor) -> Tensor:
    return constraint.kind(value, torch.zeros_like(value), 1.0).violation
