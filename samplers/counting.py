"""Count what is spent: evaluations of networks, and the passes of samples through them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from scoremodels.model import ScoreModel


@dataclass(slots=True)
class Count:
    """What was spent so far.

    Attributes:
        evaluations: forward passes of a network for a batch, whatever its size.
        passes: the same, of single samples.
    """

    evaluations: int = 0
    passes: int = 0


@contextmanager
def counted(model: ScoreModel) -> Iterator[Count]:
    """Count the evaluations of every network in a model, wrapped or not, for the length of the block.

    So guidance need not say what it costs: two branches in one batch are one evaluation and two passes a sample,
    two networks are two of each.
    """
    count = Count()

    def evaluated(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        count.evaluations += 1
        count.passes += len(arguments[0])

    hooks = [innermost.register_forward_pre_hook(evaluated) for innermost in dict.fromkeys(_innermost(model))]
    try:
        yield count
    finally:
        for hook in hooks:
            hook.remove()


def _innermost(module: nn.Module) -> list[nn.Module]:
    """Models that wrap no other; a network's own parts are no models to be sampled from."""
    own = "network" if isinstance(module, ScoreModel) else None
    parts = [child for name, child in module.named_children() if name != own]
    inner = [model for part in parts for model in _innermost(part)]
    return inner or ([module] if isinstance(module, ScoreModel) else [])
