"""The one training loop: it minimises a loss over the parameters of a module."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Any], Tensor | Mapping[str, Tensor]]
Optimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
FLUSH = 32  # losses read from the device at once: one synchronisation for so many steps


class Moment(NamedTuple):
    """Where a run stands when its callbacks are called, after a step.

    Args:
        step: steps taken, from 1.
        module: the module as it was given, with its present parameters.
        optimizer: of the run; its `param_groups` may be changed.
        loss: of this step's batch, before the step; a tensor on the module's device.
        parts: the terms of the loss, where it names them.
    """

    step: int
    module: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Tensor
    parts: Mapping[str, Tensor]


Callback = Callable[[Moment], bool | None]


class Fit(NamedTuple):
    """What a run came to.

    Args:
        module: the module, trained in place.
        losses: of every step, those of an earlier run that was resumed among them.
        parts: every term of the loss that has a name, in the same way.
        seconds: of training, earlier runs included.
    """

    module: nn.Module
    losses: list[float]
    parts: dict[str, list[float]]
    seconds: float


def adam(lr: float = 1e-3) -> Optimizer:
    """Adam with a learning rate, as a value for `fit`."""
    return lambda parameters: torch.optim.Adam(parameters, lr=lr)


def minibatches(*data: Tensor, size: int, seed: int = 0) -> Callable[[int], tuple[Tensor, ...]]:
    """Batches of rows in an order that depends on the seed and the step alone, so that a resumed run sees the same.

    Args:
        data: tensors with rows that belong together.
        size: rows of a batch, at most the number of rows; what is left over at the end of an epoch is dropped.
        seed: of the order.

    Returns:
        A function of the step, from 0, that gives the rows of each tensor.

    Raises:
        ValueError: tensors of different lengths, or a size that does not fit.
    """
    lengths = {len(rows) for rows in data}
    if len(lengths) != 1:
        raise ValueError(f"data have {sorted(lengths)} rows; give at least one tensor, and all with as many rows")
    count = lengths.pop()
    if not 1 <= size <= count:
        raise ValueError(f"size={size} is outside 1..{count}, the rows of the data")
    per_epoch = count // size
    order: tuple[int, Tensor] = (-1, torch.empty(0))

    def batch(step: int) -> tuple[Tensor, ...]:
        nonlocal order
        epoch, index = divmod(step, per_epoch)
        if order[0] != epoch:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = epoch, torch.randperm(count, generator=generator)
        rows = order[1][index * size:(index + 1) * size]
        return tuple(tensor[rows.to(tensor.device)] for tensor in data)

    return batch


def fit(
    module: nn.Module, loss: Loss, data: Callable[[int], Any], *, steps: int, optimizer: Optimizer | None = None,
    callbacks: Sequence[Callback] = (), clip: float = math.inf, folder: str | Path | None = None, save_every: int = 500,
    progress: str | None = None, accelerator: Any = None,
) -> Fit:
    """Minimise ``E[loss(module, data(step))]`` over the parameters of the module that require gradients, in place.

    One optimiser step for each batch, by `accelerate`: under ``accelerate launch`` every process takes its
    share of the rows of each batch and the gradients are averaged. A closure is handed to the optimiser, so
    that those which evaluate the loss several times (LBFGS) work as well.

    Args:
        module: what to train; it stays on the device where it is.
        loss: of module and batch: a scalar, or named scalars whose sum is minimised.
        data: the batch of a step, from 0; a function of the step alone makes resumed runs equal undisturbed ones.
        steps: how many in all, those of an earlier run in `folder` included.
        optimizer: parameters → optimiser; ``adam(lr)`` or a lambda; Adam with its usual rate unless given.
        callbacks: called after each step; a schedule of the learning rate, an outer update of multipliers, a
            look at validation data. A run ends where one returns True.
        clip: largest norm of the gradient.
        folder: where checkpoints are kept; a run goes on from the one that it finds there. Callbacks with a
            ``state_dict`` and ``load_state_dict`` are saved and restored too.
        save_every: steps between checkpoints; one is made at the end as well.
        progress: what to call the bar on the console; None for no bar.
        accelerator: an `accelerate.Accelerator` for mixed precision and the like; it then belongs to this run.

    Returns:
        The module, the losses of all steps, the time.

    Raises:
        ValueError: no steps, nothing to train, or a checkpoint of a run with more steps than asked for.
        FloatingPointError: a loss that is not finite, found at most 32 steps later; checkpoints stay.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: give at least 1")
    if save_every < 1:
        raise ValueError(f"save_every={save_every}: give at least 1")
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("module has no parameter that requires a gradient: there is nothing to train")
    with ExitStack() as stack:
        advance = stack.enter_context(_Bar(progress, steps)) if progress else None
        run = _Run(module, loss, (optimizer or adam())(parameters), callbacks, clip, accelerator, folder)
        if run.step > steps:
            raise ValueError(f"folder={str(folder)!r} holds {run.step} steps, more than steps={steps}: "
                             "give another folder or more steps")
        was_training = module.training
        module.train()
        try:
            run.go(data, steps, save_every, advance)
        finally:
            module.train(was_training)
    return Fit(module, run.record.losses, run.record.parts, run.record.seconds)


class _Record:
    """Losses of a run: on the device until they are flushed, then numbers, checked."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.parts: dict[str, list[float]] = {}
        self.seconds = 0.0
        self.waiting: list[tuple[Tensor, dict[str, Tensor]]] = []

    def add(self, loss: Tensor, parts: Mapping[str, Tensor]) -> None:
        self.waiting.append((loss.detach(), {name: part.detach() for name, part in parts.items()}))
        if len(self.waiting) == FLUSH:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        losses = torch.stack([loss for loss, _ in self.waiting]).tolist()
        for name in self.waiting[0][1]:
            column = torch.stack([parts[name] for _, parts in self.waiting]).tolist()
            self.parts.setdefault(name, []).extend(column)
        self.waiting.clear()
        for k, value in enumerate(losses):
            if not math.isfinite(value):
                raise FloatingPointError(f"the loss of step {len(self.losses) + k + 1} is {value}: "
                                         "lower the learning rate, clip the gradient or look at the data")
        self.losses.extend(losses)


class _Run:
    """One run: the optimiser, the processes, what is recorded and kept."""

    def __init__(
        self, module: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer, callbacks: Sequence[Callback],
        clip: float, accelerator: Any, folder: str | Path | None,
    ) -> None:
        from accelerate import Accelerator

        self.accelerator = accelerator or Accelerator(device_placement=False)
        self.module, self.loss, self.callbacks, self.clip = module, loss, callbacks, clip
        self.step, self.record = 0, _Record()
        self.wrapped, self.optimizer = self.accelerator.prepare(module, optimizer)
        kept = [c for c in callbacks if hasattr(c, "state_dict") and hasattr(c, "load_state_dict")]
        self.accelerator.register_for_checkpointing(*kept)
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and (self.folder / "run.json").exists():
            self.load(self.folder)

    def go(
        self, data: Callable[[int], Any], steps: int, save_every: int, advance: Callable[[int], None] | None,
    ) -> None:
        started = time.perf_counter() - self.record.seconds
        stop, saved = False, self.step
        if advance:
            advance(self.step)
        while self.step < steps and not stop:
            loss, parts = self.take(self.share(data(self.step)))
            self.step += 1
            self.record.add(loss, parts)
            moment = Moment(self.step, self.module, self.optimizer.optimizer, loss, parts)
            stop = any([callback(moment) is True for callback in self.callbacks])
            if advance:
                advance(1)
            if self.folder is not None and (self.step % save_every == 0 or stop or self.step == steps):
                self.record.flush()
                self.record.seconds = time.perf_counter() - started
                self.save(self.folder)
                saved = self.step
        self.record.flush()
        self.record.seconds = time.perf_counter() - started
        assert self.folder is None or saved == self.step

    def take(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """One step of the optimiser; the loss before it."""
        first: list[tuple[Tensor, dict[str, Tensor]]] = []

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            value = self.loss(self.wrapped, batch)
            parts = dict(value) if isinstance(value, Mapping) else {}
            total = torch.stack([*parts.values()]).sum() if isinstance(value, Mapping) else value
            self.accelerator.backward(total)
            if math.isfinite(self.clip):
                self.accelerator.clip_grad_norm_(self.wrapped.parameters(), self.clip)
            first.append((total.detach(), parts))
            return total

        self.optimizer.step(closure)
        return first[0]

    def share(self, batch: Any) -> Any:
        """The rows of a batch that belong to this process."""
        count, rank = self.accelerator.num_processes, self.accelerator.process_index
        if count == 1:
            return batch
        from accelerate.utils import recursively_apply

        return recursively_apply(lambda tensor: tensor[rank::count], batch)

    def save(self, folder: Path) -> None:
        """Write a checkpoint beside the old one, then put it in its place."""
        folder.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=folder)) if self.accelerator.is_main_process else None
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            shared = [None if fresh is None else str(fresh)]
            fresh = Path(broadcast_object_list(shared)[0])
        assert fresh is not None
        self.accelerator.save_state(str(fresh), safe_serialization=True)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            written = dict(step=self.step, checkpoint=fresh.name, losses=self.record.losses, parts=self.record.parts,
                           seconds=self.record.seconds)
            (fresh / "run.json").write_text(json.dumps(written))
            shutil.copy(fresh / "run.json", folder / "run.json.new")
            os.replace(folder / "run.json.new", folder / "run.json")
            for old in folder.glob("checkpoint-*"):
                if old != fresh:
                    shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def load(self, folder: Path) -> None:
        written = json.loads((folder / "run.json").read_text())
        self.accelerator.load_state(str(folder / written["checkpoint"]))
        self.step = written["step"]
        self.record.losses, self.record.parts = written["losses"], written["parts"]
        self.record.seconds = written["seconds"]


class _Bar:
    """A bar on the console, removed at the end."""

    def __init__(self, description: str, total: int) -> None:
        from rich.progress import Progress

        self.progress = Progress(transient=True)
        self.task = self.progress.add_task(description, total=total)

    def __enter__(self) -> Callable[[int], None]:
        self.progress.start()
        return lambda count: self.progress.advance(self.task, count)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
