"""Sample what is unknown of an image around what is known of it."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.wrapper import Wrapper
from scoremodels.model import ScoreModel


class Inpainting(Wrapper):
    """Hold a region of every sample to a known image y: ``x0 ← mask y + (1 - mask) x0``.

    The result is a model that predicts the sample. Where x0 is y at every time, the exact solution of the ODE is
    ``x_t = α_t y + σ_t ε`` with one ε from start to end, namely ``(x_T - α_T y)/σ_T``: the known region is the image,
    noised to the current level with the same noise at every row, as the network is used to. So no state has to be
    replaced, and any solver that is exact for a constant prediction ends in the known region with y itself. With
    a solver that adds noise the region follows its noise. Under ``restart``, which goes back to more noise and
    on again, the regions are brought into harmony as in RePaint.

    Args:
        model: the model to sample from, with or without guidance.
        image: y, of the shape of a sample, in the model's range.
        mask: 1 where the image is known, 0 where it is to be made, or in between; broadcasts over a sample.

    Raises:
        ValueError: a wrong shape, a mask out of range, or an image that is not finite.

    Cost: that of the model.

    Source: Song et al. 2021, arXiv:2011.13456, appendix I.2; Lugmayr et al. 2022 (RePaint), arXiv:2201.09865.
    """

    def __init__(self, model: ScoreModel, image: Tensor, mask: Tensor) -> None:
        if tuple(image.shape) != model.shape or not image.is_floating_point():
            raise ValueError(f"image has shape {tuple(image.shape)} and dtype {image.dtype}: give a floating-point "
                             f"image of shape {model.shape}")
        if not image.isfinite().all():
            raise ValueError("image holds non-finite values: put any finite number where it is unknown")
        mask = mask.to(image.dtype)
        if mask.ndim > image.ndim or any(
                m not in (1, n) for m, n in zip(mask.shape[::-1], image.shape[::-1], strict=False)):
            raise ValueError(f"mask has shape {tuple(mask.shape)}: give one that broadcasts to {model.shape}")
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise ValueError("mask holds values outside of 0 to 1: give 1 where the image is known, 0 where it is not")
        super().__init__(model, "sample")
        self.register_buffer("image", image.to(model.device))
        self.register_buffer("mask", mask.to(model.device))
        self.image: Tensor
        self.mask: Tensor

    def forward(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """The predicted sample at ``x`` of shape (B, …), which is the image where that is known."""
        x0 = self.model.denoise(x, t, condition)
        return torch.lerp(x0, self.image.to(x0.dtype).expand_as(x0), self.mask.to(x0.dtype).expand_as(x0))
