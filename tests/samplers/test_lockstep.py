"""Trajectories side by side: the same end points as one by one, from as few evaluations."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers import compile_plan, sample
from samplers.lockstep import run_together, walk_plan
from scoremodels.loaders import load
from scoremodels.model import ScoreModel

SOLVERS = ("ddim", "dpm-solver++-3m", "ipndm-4", "edm-heun", "unipc-3", "deis-2+afs")


class Counting(ScoreModel):
    """A model that keeps the size of each evaluation."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__(model.network, model.schedule, model.prediction, model.shape, num_classes=model.num_classes)
        self.sizes: list[int] = []

    def forward(self, x: Tensor, t: float | Tensor, condition: Tensor | None = None) -> Tensor:
        """Evaluate, and remember how many states there were."""
        self.sizes.append(len(x))
        return super().forward(x, t, condition)


def test_plans_side_by_side_end_where_each_ends_alone() -> None:
    model = Counting(load("fashion-mnist-edm"))
    labels = torch.tensor([3, 8])
    x = 80.0 * torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    plans = [compile_plan(name, model.schedule, nfe=5, prediction="sample") for name in SOLVERS]
    ends = run_together(model, [walk_plan(plan, x) for plan in plans], labels, states=2, batch=8)
    assert model.sizes == [8] * 5 + [4] * 5
    for plan, end in zip(plans, ends, strict=True):
        alone = sample(model, plan=plan, x_T=x, condition=labels).samples
        torch.testing.assert_close(end, alone, rtol=1e-4, atol=1e-4)
