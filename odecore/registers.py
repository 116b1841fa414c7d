"""The tensors of one run of a plan, and the linear combinations that take it from row to row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from odecore.plan import Row

Weight = float | Tensor
"""A number, or a tensor that broadcasts over the state (one weight per sample or per Fourier mode)."""

_HALF = (torch.float16, torch.bfloat16)
_LEAST_SCALE = 1e-30
"""Below this weight of the raw output a quotient by it might overflow in float32."""


class Registers:
    """The tensors of one run of a plan: anchor, point and the recent predictions, newest first.

    A plan is frozen and may serve many runs; each run owns its registers. Where gradients are
    off, buffers are allocated at first use and then reused; where they are on, every combination
    is a new tensor. Half-precision states are kept in float32.

    Args:
        x: initial state, any shape.
        depth: number of earlier predictions to keep, :attr:`Plan.depth`.
        reuse: whether buffers may be reused. False for a caller who hands the points on and
            cannot know how long they are kept.
    """

    __slots__ = ("anchor", "point", "_kept", "_scales", "_depth", "_reuse", "_spare", "_borrowed")

    def __init__(self, x: Tensor, depth: int, *, reuse: bool = True) -> None:
        self.anchor = self.point = x.float() if x.dtype in _HALF else x
        self._kept: list[Tensor] = []
        self._scales: list[float] = []
        self._depth = depth
        self._reuse = reuse
        self._spare: list[Tensor] = []
        self._borrowed = self.anchor

    @property
    def predictions(self) -> list[Tensor]:
        """Recent predictions, newest first, at most ``depth`` of them."""
        return [kept if scale == 1.0 else kept * scale for kept, scale in zip(self._kept, self._scales, strict=True)]

    @predictions.setter
    def predictions(self, values: Sequence[Tensor]) -> None:
        """Put predictions of another run in their place."""
        self._kept, self._scales = list(values), [1.0] * len(values)

    def advance(self, row: Row, raw: Tensor, noise: Tensor | None = None) -> Tensor:
        """Apply one row to the raw network output; return the next evaluation point.

        Cost: one multiplication or addition of the state's size per non-zero weight of anchor and point,
        at most one for the prediction, for noise and for an offset; no synchronisation.
        """
        anchor, point = self.anchor, self.point
        if raw.dtype != anchor.dtype:
            raw = raw.to(anchor.dtype)
        kept, scale = self._keep(row.to_prediction, point, raw)
        registers = (anchor, point, kept, *self._kept)
        scales = (1.0, 1.0, scale, *self._scales)
        new = anchor
        if noise is not None:
            used = len(row.anchor)
            new = self._combine((*_scaled(row.anchor, scales), row.noise), (*registers[:used], noise.to(anchor.dtype)))
        elif not _keeps(row.anchor):
            new = self._combine(_scaled(row.anchor, scales), registers)
        if isinstance(row.offset, Tensor):
            new = new + _meet(row.offset, new)
        elif row.offset != 0.0:
            new = new + row.offset
        following = new
        if not _keeps(row.point):
            following = self._combine(_scaled(row.point, scales), (new, *registers[1:]))
        self._kept, self._scales = list(registers[2:2 + self._depth]), list(scales[2:2 + self._depth])
        self.anchor, self.point = new, following
        self._recycle(registers, raw)
        return following

    def _keep(self, to_prediction: tuple[Weight, Weight], point: Tensor, raw: Tensor) -> tuple[Tensor, float]:
        """The prediction a·point + b·raw up to a factor: as raw + (a/b)·point, one operation in place of two."""
        a, b = to_prediction
        if isinstance(a, Tensor) or isinstance(b, Tensor) or abs(b) < _LEAST_SCALE:
            return self._combine(to_prediction, (point, raw)), 1.0
        if a != 0.0:
            return self._combine((1.0, a / b), (raw, point)), b
        # The network may write its next output where it wrote this one, so what is kept is a copy.
        return raw if self._depth == 0 else self._combine((1.0,), (raw,)), b

    def _combine(self, weights: Sequence[Weight], tensors: Sequence[Tensor]) -> Tensor:
        return combine(weights, tensors, self._buffer(weights))

    def _buffer(self, weights: Sequence[Weight]) -> Tensor | None:
        """Where to write a combination; None lets one be allocated, of whatever shape tensor weights give it."""
        if torch.is_grad_enabled():
            return None
        if self._reuse and self._spare:
            return self._spare.pop()
        if not self._reuse and {*map(type, weights)} != {float}:
            return None
        return torch.empty_like(self.anchor)

    def _recycle(self, old: Sequence[Tensor], raw: Tensor) -> None:
        """Put the tensors that no register holds any more on the pile of spare buffers; ``raw`` is not ours."""
        if not self._reuse or torch.is_grad_enabled():
            return
        kept = [self.anchor, self.point, self._borrowed, raw, *self._kept, *self._spare]
        for tensor in old:
            if not any(tensor is other for other in kept):
                self._spare.append(tensor)
                kept.append(tensor)


def _keeps(weights: tuple[Weight, ...]) -> bool:
    """Whether weights merely repeat the first register."""
    return len(weights) == 1 and not isinstance(weights[0], Tensor) and weights[0] == 1.0


def _scaled(weights: tuple[Weight, ...], scales: Sequence[float]) -> list[Weight]:
    """Weights over kept tensors from weights over what these stand for."""
    return [weight * scale for weight, scale in zip(weights, scales, strict=False)]


def combine(weights: Sequence[Weight], tensors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """Add up ``Σ_i weights[i] · tensors[i]``; numbers that are zero cost nothing.

    Args:
        weights: numbers, or tensors that broadcast over the state.
        tensors: at least as many tensors of one shape and dtype.
        out: where to write, none of the tensors; None makes a new tensor, which autograd can follow.
    """
    total: Tensor | None = None
    copied = True  # whether the total is a tensor of ours; one of weight 1 that comes first is not multiplied
    for weight, tensor in zip(weights, tensors, strict=False):
        if isinstance(weight, Tensor):
            factor, copied = _meet(weight, tensor), True
            if total is None:
                total = torch.mul(tensor, factor, out=out)
            else:
                total = torch.addcmul(total, tensor, factor, out=out)
        elif weight != 0.0:
            if total is not None:
                total, copied = torch.add(total, tensor, alpha=weight, out=out), True
            elif weight == 1.0:
                total, copied = tensor, False
            else:
                total = torch.mul(tensor, weight, out=out)
    if total is None:
        return torch.zeros_like(tensors[0])
    return total if copied else torch.mul(total, 1.0, out=out)


def _meet(weight: Tensor, tensor: Tensor) -> Tensor:
    """Bring a weight to the dtype and device of the tensor that it multiplies."""
    real = tensor.dtype.to_real() if not weight.is_complex() else tensor.dtype
    return weight.to(tensor.device, real)
