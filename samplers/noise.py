"""Start noise and fresh noise that belong to a sample, not to its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SampleNoise:
    """One generator per sample, so that a sample's noise does not depend on its batch.

    Args:
        seeds: one seed a sample.
        shape: shape of one sample.
        device: where the noise is needed; it is drawn on the CPU, so that it is the same everywhere.
        dtype: dtype of the noise.

    """

    def __init__(
        self, seeds: Sequence[int], shape: Sequence[int], *, device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._shape = tuple(shape)
        self._device, self._dtype = device, dtype

    def __call__(self) -> Tensor:
        """Draw the next standard normal tensor, of shape ``(len(seeds), *shape)``."""
        draws = [torch.randn(self._shape, generator=generator, dtype=self._dtype) for generator in self._generators]
        return torch.stack(draws).to(self._device, non_blocking=True)
