"""One batch of a run: its start, its rows, what it spent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from odecore.plan import Plan, Registers, Row, Weight, execute
from samplers.adaptive import sample_adaptive
from samplers.counting import counted
from samplers.noise import SampleNoise
from samplers.parts import Handover
from samplers.solver import SelectingSolver
from samplers.trajectory import Recorder
from scoremodels.model import ScoreModel

Callback = Callable[[int, Row, Registers], None]


class Batch(NamedTuple):
    """What a batch came to.

    Attributes:
        samples: its samples, or their states where its part of the run ends.
        evaluations: of networks.
        passes: of its samples through networks, added up.
        states: accepted states on the way, of shape (rows + 1, batch, …), if they were asked for.
        registers: of the run, where it ended before its plan did.
    """

    samples: Tensor
    evaluations: int
    passes: int
    states: Tensor | None = None
    registers: Registers | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Where samples start from, each with noise of its own.

    Args:
        model: the model.
        seed: seed of the first sample.
        states: start states of all samples; None to draw them.
        scale: standard deviation of drawn states.
        used: how often noise was drawn for each sample in an earlier part of the run.
        labels: one a sample; None for none.
    """

    model: ScoreModel
    seed: int
    states: Tensor | None
    scale: float
    used: int
    labels: Tensor | None

    def of(self, first: int, last: int) -> tuple[Tensor, SampleNoise, Tensor | None]:
        """State, fresh noise and labels of the samples from ``first`` to before ``last``."""
        device = self.model.device
        noise = SampleNoise(range(self.seed + first, self.seed + last), self.model.shape, device=device)
        for _ in range(self.used):
            noise()
        x = noise().mul_(self.scale) if self.states is None else self.states[first:last].to(device)
        return x, noise, None if self.labels is None else self.labels[first:last].to(device)


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """Run some rows of a plan on a batch.

    Args:
        start: of all samples.
        plan: the plan.
        rows: which of its rows.
        selecting: a solver that changes the plan's weights by what it sees.
        given: the part of the run before this.
        callback: called after each row.
        recording: whether to keep the states on the way.
    """

    start: Start
    plan: Plan
    rows: range
    selecting: SelectingSolver | None = None
    given: Handover | None = None
    callback: Callback | None = None
    recording: bool = False

    def __call__(self, first: int, last: int) -> Batch:
        """Compute the samples from ``first`` to before ``last``."""
        model, plan = self.start.model, self.plan
        x, noise, label = self.start.of(first, last)

        def network(x: Tensor, t: Weight) -> Tensor:
            return model(x, t, label)

        chosen = network if self.selecting is None else self.selecting.wrap(
            network, plan, model.schedule, model.prediction)
        registers = None if self.given is None else self.given.registers(first, last, model.device)
        recorder = Recorder(x if registers is None else registers.anchor) if self.recording else None
        kept: list[Registers] = []

        def after(index: int, row: Row, registers: Registers) -> None:
            if index + 1 == self.rows.stop:
                kept.append(registers)
            for observer in (recorder, self.callback):
                if observer is not None:
                    observer(index, row, registers)

        with counted(model) as count:
            x = execute(plan, chosen, x, noise=noise, callback=after, part=self.rows, registers=registers)
        return Batch(x, count.evaluations, count.passes, None if recorder is None else recorder.states(),
                     kept[0] if self.rows.stop < plan.nfe else None)


@dataclass(frozen=True, slots=True)
class AdaptiveRun:
    """Run an adaptive solver on a batch.

    Args:
        start: of all samples.
        order: of the solver.
        rtol: relative tolerance.
        atol: absolute tolerance.
        t_end: where to stop.
    """

    start: Start
    order: int
    rtol: float
    atol: float
    t_end: float

    def __call__(self, first: int, last: int) -> Batch:
        """Compute the samples from ``first`` to before ``last``."""
        x, _, label = self.start.of(first, last)
        with counted(self.start.model) as count:
            samples, _, _ = sample_adaptive(self.start.model, x, order=self.order, rtol=self.rtol, atol=self.atol,
                                            condition=label, t_end=self.t_end)
        return Batch(samples, count.evaluations, count.passes)

