"""How many samples fit into a given amount of memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from samplers.guidance import GuidanceInterval
from scoremodels.model import ScoreModel

_TENSORS_OF_A_RUN = 5
"""Tensors of the state's size that a run holds beside its history and the network's own: see ``execute``."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """A bound on the memory that sampling takes beside the model's weights and the finished samples.

    Args:
        bytes: the bound.

    Raises:
        ValueError: not a positive number.
    """

    bytes: int

    def __post_init__(self) -> None:
        if isinstance(self.bytes, bool) or not isinstance(self.bytes, int) or self.bytes < 1:
            raise ValueError(f"bytes={self.bytes!r}: give a positive whole number of bytes, such as 2 * 1024**3")

    def batch(self, model: ScoreModel, *, depth: int = 3, condition: int | None = None) -> int:
        """How many samples of a model to compute at once.

        The network is evaluated at one sample and at two, and what that takes at its peak is continued linearly.
        On a GPU its allocator tells; elsewhere the tensors that come and go are added up, which leaves out what an
        operation takes for itself.

        Args:
            model: the model, with all its wrappers.
            depth: earlier predictions that the solver keeps, ``plan.depth``.
            condition: any label, for a model that is to be sampled with labels.

        Raises:
            ValueError: not even one sample fits.

        Cost: two evaluations.
        """
        one, two = (_evaluation(model, count, condition) for count in (1, 2))
        state = 4 * torch.Size(model.shape).numel() * (depth + _TENSORS_OF_A_RUN)
        slope = max(two - one, 0) + state
        fixed = max(2 * one - two, 0)
        if fixed + slope > self.bytes:
            raise ValueError(f"bytes={self.bytes}: one sample takes {fixed + slope} bytes: give as many, or a smaller "
                             "model")
        return (self.bytes - fixed) // slope


def halving(run: Callable[[int, int], Any], first: int, last: int) -> list[Any]:
    """Do ``run(first, last)``, in two halves if memory runs out, and so on down to single samples."""
    try:
        return [run(first, last)]
    except torch.OutOfMemoryError:
        if last - first == 1:
            raise
    # Outside of the handler, where nothing holds on to the tensors of the failed attempt any more.
    torch.cuda.empty_cache()
    middle = (first + last) // 2
    return [*halving(run, first, middle), *halving(run, middle, last)]


@torch.no_grad()
def _evaluation(model: ScoreModel, count: int, condition: int | None) -> int:
    """Peak of what one evaluation takes, in bytes; at a time where all of its guidance is at work."""
    x = torch.ones(count, *model.shape, device=model.device)
    labels = None if condition is None else torch.full((count,), condition, device=model.device)
    intervals = [module for module in model.modules() if isinstance(module, GuidanceInterval)]
    time = intervals[0].time_within() if intervals else float(model.schedule.t_min)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        before = torch.cuda.memory_allocated(model.device)
        model(x, time, labels)
        torch.cuda.synchronize(model.device)
        return torch.cuda.max_memory_allocated(model.device) - before
    with _Allocations() as allocations:
        model(x, time, labels)
    return allocations.peak


class _Allocations(TorchDispatchMode):
    """Add up the memory of all tensors that are made within the block, until each is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self._known: set[int] = set()
        self._live = self.peak = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in tree_leaves((args, kwargs or {})):  # what was there before is not ours, and is returned by views
            self._note(tensor, 0)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._note(tensor, 1)
        self.peak = max(self.peak, self._live)
        return result

    def _note(self, tensor: object, ours: int) -> None:
        if not isinstance(tensor, Tensor):
            return
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        size = ours * storage.nbytes()
        self._live += size
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self._live -= size
