"""Guidance away from a network whose self-attention sees nothing but itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from samplers.compiled import GraphedNetwork
from samplers.guidance import Contrast
from samplers.wrapper import Guidance, modules_of
from scoremodels.model import ScoreModel


class PerturbedAttentionGuidance(Guidance):
    """Push the prediction away from the perturbed one: ``g + scale (c - p)``.

    g is the model's prediction with whatever guidance it has, c the one without (of two, the better), and p is c
    with the identity for attention maps in some layers.

    Args:
        model: a model with a diffusers network, or guidance by contrast around it.
        scale: 0 is the model alone.
        layers: parts of the names of the attention layers to perturb; the paper takes the middle of the network.

    Raises:
        ValueError: no self-attention of that name, a network that is replayed as a CUDA graph, or a scale that is
            not finite.

    Cost: the model's own, and one NFE.

    Source: Ahn et al. 2024, arXiv:2403.17377.
    """

    def __init__(self, model: ScoreModel, scale: float = 3.0, *, layers: Sequence[str] = ("mid",)) -> None:
        if not math.isfinite(scale):
            raise ValueError(f"scale={scale}: give a finite guidance scale")
        if modules_of(model, GraphedNetwork):
            raise ValueError("model replays its network as a CUDA graph, whose attention cannot be changed: compile it "
                             "with mode='default', or not at all")
        super().__init__(model)
        self.scale = float(scale)
        plain = model.unguided if isinstance(model, Guidance) else model
        self._layers = _chosen(plain, (layers,) if isinstance(layers, str) else tuple(layers))

    @property
    def unguided(self) -> ScoreModel:
        """The model without any guidance."""
        return self.model.unguided if isinstance(self.model, Guidance) else self.model

    def forward(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """The guided prediction at ``x`` of shape (B, …)."""
        if self.scale == 0.0:
            return self.model(x, t, condition)
        guided, better = self._both(x, t, condition)
        with _identity_attention(self._layers):
            perturbed = self.unguided(x, t, condition)
        return guided + self.scale * (better - perturbed)

    def _both(self, x: Tensor, t: float | Tensor, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        """The prediction with the model's own guidance, and the one without; each evaluation is made once."""
        if isinstance(self.model, Contrast) and not self.model.idle(condition):
            better, worse = self.model.pair(x, t, condition)
            return worse.lerp(better, self.model.scale), better
        guided = self.model(x, t, condition)
        return guided, guided if self._plain(condition) else self.unguided(x, t, condition)

    def _plain(self, condition: Tensor | None) -> bool:
        return not isinstance(self.model, Guidance) or (isinstance(self.model, Contrast) and self.model.idle(condition))


class _IdentityAttention:
    """A diffusers attention processor whose attention map is the identity, so that each position keeps its value."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, temb: Tensor | None = None, *args: object, **kwargs: object,
    ) -> Tensor:
        values = hidden_states if attn.spatial_norm is None else attn.spatial_norm(hidden_states, temb)
        if hidden_states.ndim == 4:
            values = values.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            values = attn.group_norm(values.transpose(1, 2)).transpose(1, 2)
        values = attn.to_out[0](attn.to_v(values))
        if hidden_states.ndim == 4:
            values = values.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            values = values + hidden_states
        return values / attn.rescale_output_factor


def _chosen(model: ScoreModel, layers: Sequence[str]) -> list[Any]:
    found = {name: module for name, module in model.named_modules() if _is_self_attention(module)}
    if not found:
        raise ValueError(f"model {model.name!r} has no self-attention of diffusers' kind to perturb: use Autoguidance "
                         "with a worse model, or a model with attention")
    chosen = [module for name, module in found.items() if any(part in name for part in layers)]
    if not chosen:
        raise ValueError(f"layers={tuple(layers)!r}: no self-attention has such a name; choose parts of "
                         f"{', '.join(found)}")
    return chosen


def _is_self_attention(module: nn.Module) -> bool:
    parts = ("processor", "set_processor", "to_v", "to_out", "residual_connection", "rescale_output_factor")
    return all(hasattr(module, part) for part in parts) and not getattr(module, "is_cross_attention", False)


@contextmanager
def _identity_attention(layers: Sequence[Any]) -> Iterator[None]:
    """Perturb the layers for the length of the block; the network belongs to others too."""
    usual = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.set_processor(_IdentityAttention())
        yield
    finally:
        for layer, processor in zip(layers, usual, strict=True):
            layer.set_processor(processor)
