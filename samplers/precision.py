"""Evaluate the network in half precision; the state stays as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.wrapper import Wrapper
from scoremodels.model import ScoreModel

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of the precisions that a network can be evaluated in."""


class MixedPrecision(Wrapper):
    """Evaluate a model under autocast: matrix products and convolutions in half precision, all else in float32.

    The state, and the sum that each row makes, keep the dtype of the start noise, float32.

    Args:
        model: the model, with or without guidance.
        dtype: bfloat16, which has the range of float32, or float16, which has three more bits.

    Raises:
        ValueError: another dtype.

    Cost: weights are cast anew at every evaluation; ``model.to(torch.bfloat16)`` casts them once, and with
        them normalisations and all else.
    """

    def __init__(self, model: ScoreModel, dtype: torch.dtype = torch.bfloat16) -> None:
        if dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"dtype={dtype}: choose torch.bfloat16 or torch.float16; float32 needs no wrapper")
        super().__init__(model)
        self.dtype = dtype

    def forward(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction at ``x`` of shape (B, …), in the dtype of ``x``."""
        with torch.autocast(x.device.type, self.dtype):
            return self.model(x, t, condition).to(x.dtype)
