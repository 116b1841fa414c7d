"""What a training run does besides steps: values for the callbacks of `fit`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from odecore.learn.fit import Callback, Moment


def every(steps: int, callback: Callback) -> Callback:
    """Call another callback at each so many steps only.

    Raises:
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: give at least 1")
    return lambda moment: callback(moment) if moment.step % steps == 0 else None


def cosine_decay(steps: int, *, warmup: int = 0, floor: float = 0.0) -> Callback:
    """Bring the learning rate from its first value to `floor` of it along half a cosine, after a linear rise.

    Args:
        steps: at which it arrives.
        warmup: steps of the rise from zero.
        floor: last rate over first, 0 to 1.

    Raises:
        ValueError: a warm-up that is longer than the run.
    """
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup={warmup} is outside 0..{steps - 1}")

    def update(moment: Moment) -> None:
        done = min(1.0, max(0.0, moment.step - warmup) / (steps - warmup))
        factor = floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
        if moment.step < warmup:
            factor = moment.step / warmup
        for group in moment.optimizer.param_groups:
            group.setdefault("first_lr", group["lr"])
            group["lr"] = group["first_lr"] * factor

    return update


@dataclass(slots=True)
class KeepBest:
    """Remember the parameters with the smallest measure, those at the start included.

    A run that never improves ends where it began when `restore` is called: that is what makes a fit safe.

    Args:
        measure: of the module, a number to be small; called without gradients, in evaluation mode.
        module: whose present parameters are the first candidate.
        every: steps between looks.
        patience: looks without improvement after which the run ends; None for no end.
    """

    measure: Callable[[nn.Module], float]
    module: nn.Module
    every: int = 100
    patience: int | None = None
    history: list[tuple[int, float]] = field(default_factory=list)
    best: tuple[int, float] = (0, math.inf)
    kept: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Measure the start."""
        if self.every < 1:
            raise ValueError(f"every={self.every}: give at least 1")
        self._look(0)

    def __call__(self, moment: Moment) -> bool:
        """Measure at every so many steps; True where patience has run out."""
        if moment.step % self.every == 0:
            self._look(moment.step)
        waited = (moment.step - self.best[0]) // self.every
        return self.patience is not None and waited >= self.patience

    def restore(self) -> bool:
        """Put the best parameters back; whether they are better than those at the start."""
        self.module.load_state_dict(self.kept)
        return self.best[0] > 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"history": self.history, "best": self.best, "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.history, self.best, self.kept = state["history"], tuple(state["best"]), state["kept"]

    def _look(self, step: int) -> None:
        training = self.module.training
        self.module.eval()
        with torch.no_grad():
            value = float(self.measure(self.module))
        self.module.train(training)
        self.history.append((step, value))
        if value < self.best[1] or not self.kept:
            self.best, self.kept = (step, value), copy.deepcopy(self.module.state_dict())
