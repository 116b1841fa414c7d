"""See what a run is heading for."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from samplers.wrapper import Wrapper
from scoremodels.model import ScoreModel


class Preview(Wrapper):
    """Show the denoised prediction at each evaluation, and change nothing.

    Args:
        model: the model, with or without guidance.
        show: called as ``show(t, x0)`` with the time and the predicted samples of the batch, of shape (B, …).

    Raises:
        ValueError: when evaluated, a time at which the prediction does not determine x0 (no signal, and the noise
            is what is predicted).

    Cost: one multiplication and addition of the states' size; no evaluation.
    """

    def __init__(self, model: ScoreModel, show: Callable[[float | Tensor, Tensor], None]) -> None:
        super().__init__(model)
        self.show = show

    def forward(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """The model's own prediction."""
        raw = self.model(x, t, condition)
        a, b = self.conversion(self.prediction, "sample", x, t)
        self.show(t, a * x + b * raw)
        return raw
