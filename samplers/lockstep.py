"""Run many trajectories side by side, so that small batches of noises share evaluations of the network.

A *walk* is a generator: it yields the point and the time at which it wants the network, is sent the raw
prediction, and returns its end point. Walks of equally many evaluations advance together.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from odecore.plan import Plan, Registers
from scoremodels.model import ScoreModel

Walk = Generator[tuple[Tensor, float], Tensor, Tensor]


def walk_plan(plan: Plan, x: Tensor) -> Walk:
    """Run a plan of plain numbers, without noise, from the states ``x``."""
    registers = Registers(x if plan.entry == 1.0 else plan.entry * x, plan.depth)
    for row in plan.rows:
        assert isinstance(row.t, float) and row.noise == 0.0
        registers.advance(row, (yield registers.point, row.t))
    return registers.anchor


def start_plan(model: ScoreModel, plan: Plan) -> Callable[[Tensor], Walk]:
    """Make a plan's walk from standard normal noise."""
    scale = model.schedule.prior_scale(float(plan.t_start))
    return lambda noise: walk_plan(plan, noise * scale)


@torch.no_grad()
def run_together(
    model: ScoreModel, walks: Sequence[Walk], condition: Tensor | None = None, *, states: int, batch: int = 256
) -> list[Tensor]:
    """Advance walks evaluation by evaluation, as many at once as fit into a batch.

    Args:
        model: the network.
        walks: all of as many evaluations and states.
        condition: one label a state of a walk.
        states: states of each walk.
        batch: largest number of states in one evaluation; a single walk may exceed it.

    Returns:
        The end points, one tensor a walk.

    Cost: the evaluations of the walks; the memory of a batch of states and of the histories of its walks.
    """
    together = max(1, batch // states)
    groups = [walks[first:first + together] for first in range(0, len(walks), together)]
    return [end for group in groups for end in _run_group(model, group, condition)]


def _run_group(model: ScoreModel, walks: Sequence[Walk], condition: Tensor | None) -> list[Tensor]:
    labels = None if condition is None else condition.to(model.device).repeat(len(walks))
    wanted = [next(walk) for walk in walks]
    while True:
        points = torch.cat([point for point, _ in wanted])
        times = torch.tensor([t for _, t in wanted], dtype=points.dtype).repeat_interleave(len(points) // len(walks))
        raws = model(points, times, labels).chunk(len(walks))
        following, ends = [], []
        for walk, raw in zip(walks, raws, strict=True):
            try:
                following.append(walk.send(raw))
            except StopIteration as stopped:
                ends.append(stopped.value)
        if not following:
            return ends
        assert not ends, "walks of different numbers of evaluations"
        wanted = following
