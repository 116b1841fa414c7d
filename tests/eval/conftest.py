"""A model whose probability-flow ODE has a closed-form solution, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM


class GaussianDenoiser(nn.Module):
    """Denoise data of distribution N(0, s²): ``D(x; σ) = x s²/(s² + σ²)``; counts its calls."""

    any_dtype = True

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = nn.Parameter(torch.tensor(deviation))
        self.calls = 0

    def forward(self, x: Tensor, sigma: Tensor, condition: Tensor | None) -> Tensor:
        self.calls += 1
        gain = self.deviation**2 / (self.deviation**2 + sigma**2)
        return x * gain.reshape(-1, *[1] * (x.ndim - 1))


def _gaussian_model(deviation: float = 0.5, shape: tuple[int, ...] = (1, 28, 28), num_classes: int = 0) -> ScoreModel:
    model = ScoreModel(GaussianDenoiser(deviation), EDM(), "sample", shape, num_classes=num_classes, name="gaussian")
    return model.requires_grad_(False)


@pytest.fixture
def gaussian_model() -> Callable[..., ScoreModel]:
    """Make the denoiser of N(0, s²) on EDM's schedule: ``gaussian_model(deviation, shape, num_classes)``."""
    return _gaussian_model
