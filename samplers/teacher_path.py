"""The converged solution at all times, so that a plan can be held to it on the way too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from odecore.plan import Plan, Registers, Row, Weight, execute
from samplers.converged import REFERENCE
from samplers.objectives import Objective
from samplers.sample import sample
from scoremodels.follow import followed
from scoremodels.model import ScoreModel


@dataclass(frozen=True, slots=True)
class TeacherPath:
    """States of a converged solution.

    Args:
        model: the model.
        ratios: σ/α of the states with noise, decreasing, on the host.
        states: of shape (times, samples, …), each over ``hypot(α, σ)``, on the model's device.
    """

    model: ScoreModel
    ratios: Tensor
    states: Tensor

    @classmethod
    def of(cls, model: ScoreModel, num: int, seed: int, labels: Tensor | None) -> TeacherPath:
        """Solve from so many noises.

        Cost: ``128 num`` evaluations, and the memory of 129 states of all of them.
        """
        solver, grid, nfe = REFERENCE
        run = sample(model, num=num, solver=solver, grid=grid, nfe=nfe, end="clean", seed=seed, condition=labels,
                     trajectory=True)
        assert run.trajectory is not None
        times = np.asarray(run.trajectory.times, dtype=np.float64)
        ratios, schedule = np.asarray(model.schedule.ratio(times)), model.schedule
        inside = (ratios > 0.0) & np.isfinite(ratios)
        sizes = torch.from_numpy(np.hypot(schedule.alpha(times), schedule.sigma(times)))[inside]
        states = run.trajectory.states[torch.from_numpy(inside)]
        states = states / sizes.reshape(-1, *[1] * (states.ndim - 1)).to(states)
        return cls(model, torch.from_numpy(ratios[inside]), states.to(model.device))

    def at(self, t: Tensor, chosen: Tensor) -> Tensor:
        """States of some samples, over ``hypot(α, σ)``, at a time: interpolated linearly over log(σ/α)."""
        schedule = self.model.schedule
        level = followed(lambda value: np.log(schedule.ratio(value)), t, float(schedule.t_min), float(schedule.t_max))
        levels = self.ratios.log()
        after = int(torch.searchsorted(-levels, -level.detach().cpu()).clamp(1, len(levels) - 1))
        share = ((levels[after - 1] - level) / (levels[after - 1] - levels[after])).clamp(0.0, 1.0)
        before, next_ = self.states[after - 1][chosen], self.states[after][chosen]
        return before + share.to(before) * (next_ - before)


def along(
    plan: Plan, network: Callable[[Tensor, Weight], Tensor], x: Tensor, teacher: TeacherPath, chosen: Tensor,
    objective: Objective, weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Run a plan, and measure its accepted states on the way, each over ``hypot(α, σ)``, as ``weight`` times the mean.

    Cost: the evaluations of the plan, in the backward pass once more: what autograd keeps of the network is kept for
        one evaluation at a time.
    """
    schedule, met = teacher.model.schedule, []
    ends = [float(torch.as_tensor(row.t_next).detach()) for row in plan.rows]

    def after(index: int, row: Row, registers: Registers) -> None:
        t, at = torch.as_tensor(row.t_next, dtype=torch.float64), ends[index]
        if at != ends[index - 1] and schedule.t_min <= at < schedule.t_max:
            size = followed(lambda t: np.hypot(schedule.alpha(t), schedule.sigma(t)), t, float(schedule.t_min))
            met.append(objective(registers.anchor / size.to(registers.anchor), teacher.at(t, chosen)))

    samples = execute(plan, lambda point, t: checkpoint(network, point, t, use_reentrant=False), x, callback=after)
    return samples, {"path": weight * torch.stack(met).mean()} if met else {}
