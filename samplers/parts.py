"""A part of a run: where it begins and ends among the rows of its plan, and what it hands to the next part."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from odecore.plan import Plan, Registers


class Handover(NamedTuple):
    """A run that ended before its plan did, to be gone on with by the same model or another.

    Attributes:
        plan: the whole plan.
        row: how many of its rows are done.
        seed: seed of the first sample.
        draws: how many times noise was drawn for each sample.
        anchor, point: the last accepted state and the next evaluation point, of shape (num, …).
        predictions: recent predictions, newest first.
    """

    plan: Plan
    row: int
    seed: int
    draws: int
    anchor: Tensor
    point: Tensor
    predictions: tuple[Tensor, ...]

    def registers(self, first: int, last: int, device: torch.device) -> Registers:
        """Registers of the samples from ``first`` to before ``last``, in memory of their own."""
        anchor, point, *predictions = (
            tensor[first:last].to(device, copy=True) for tensor in (self.anchor, self.point, *self.predictions))
        registers = Registers(anchor, self.plan.depth)
        registers.point = point
        registers.predictions = predictions
        return registers


def hand_over(plan: Plan, row: int, seed: int, draws: int, batches: list[Registers]) -> Handover:
    """Gather the registers of all batches after ``row`` rows."""
    kept = [batch.predictions for batch in batches]
    return Handover(plan, row, seed, draws, torch.cat([batch.anchor for batch in batches]),
                    torch.cat([batch.point for batch in batches]),
                    tuple(torch.cat([predictions[i] for predictions in kept]) for i in range(len(kept[0]))))


def rows_between(plan: Plan, denoising_start: float, denoising_end: float, given: Handover | None) -> range:
    """The rows that a part of a run takes, from what fraction of its evaluations to what fraction.

    A fraction is rounded to the nearest row that ends a step, if the plan has any such row.

    Raises:
        ValueError: fractions out of order or of no row, or a start where the solver needs what was before it.
    """
    if not 0.0 <= denoising_start < denoising_end <= 1.0:
        raise ValueError(f"denoising_start={denoising_start}, denoising_end={denoising_end}: give fractions of the run "
                         "with 0 <= start < end <= 1")
    if given is not None and denoising_start != 0.0:
        raise ValueError(f"denoising_start={denoising_start}, but x_T is a run that goes on where it ended: leave "
                         "denoising_start out")
    ends = [0, *(i for i in range(1, plan.nfe) if plan.rows[i - 1].point == (1.0,)), plan.nfe]
    if len(ends) == 2:
        ends = list(range(plan.nfe + 1))
    last = min(ends, key=lambda i: abs(i - denoising_end * plan.nfe))
    first = given.row if given is not None else min(ends, key=lambda i: abs(i - denoising_start * plan.nfe))
    if first >= last:
        raise ValueError(f"denoising_start={denoising_start}, denoising_end={denoising_end}: that is from row {first} "
                         f"to row {last} of {plan.nfe}, which is no evaluation; rows that end a step: {ends}")
    if given is None and first > 0:
        _check_stands_alone(plan, first, denoising_start)
    return range(first, last)


def _check_stands_alone(plan: Plan, first: int, denoising_start: float) -> None:
    needs = any(len(weights) > 3 + i and any(_counts(w) for w in weights[3 + i:])
                for i, row in enumerate(plan.rows[first:]) for weights in (row.anchor, row.point))
    if needs or plan.rows[first - 1].point != (1.0,):
        times = plan.about.get("times")
        remedy = f" or grid= times that begin there ({times})" if times else ""
        raise ValueError(f"denoising_start={denoising_start}: from row {first} on the solver reads predictions made "
                         "before: pass the result of the run that ended there as x_T, choose a singlestep solver,"
                         f"{remedy}")


def _counts(weight: float | Tensor) -> bool:
    return isinstance(weight, Tensor) or weight != 0.0
