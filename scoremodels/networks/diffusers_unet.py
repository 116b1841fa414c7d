"""A diffusers UNet2DModel as a network of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class DiffusersUNet(nn.Module):
    """Call ``unet(x, t, class_labels)`` and take the prediction out of what it returns.

    A network that also learned a variance has twice the channels; only the first half is kept.

    Args:
        unet: a ``diffusers.UNet2DModel``.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        if condition is None:
            output = self.unet(x, t, return_dict=False)[0]
        else:
            output = self.unet(x, t, class_labels=condition, return_dict=False)[0]
        return output[:, : x.shape[1]]

    @property
    def config(self) -> dict[str, Any]:
        """What the network was built from, without diffusers' own notes."""
        config: Mapping[str, Any] = self.unet.config  # type: ignore[assignment]
        return {key: value for key, value in config.items() if not key.startswith("_")}
