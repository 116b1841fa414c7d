"""The variables: one exact flow in each, and every solver of them on a pretrained flow model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.trajectory import reference_solution, rms
from odecore.schemes import exact_flow
from samplers import SOLVERS, Solver, sample
from samplers.variables import VARIABLES
from scoremodels.loaders import load
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

FROM_PURE_NOISE = [name for name, solver in SOLVERS.items()
                   if isinstance(solver, Solver) and not solver.stochastic and solver.variable != "noise"]


@pytest.fixture(scope="module")
def solved() -> torch.Tensor:
    model = load("fashion-mnist-flow")
    condition = torch.arange(2) if model.num_classes else None
    return reference_solution(model, num=2, condition=condition, nfe=64).end_points[model.schedule.t_clean]


@pytest.mark.parametrize("schedule", [DiscreteVP.linear(), ContinuousVP(), EDM(), VE(), RectifiedFlow()],
                         ids=lambda s: type(s).__name__)
def test_over_flow_time_a_constant_velocity_is_a_straight_line(schedule: NoiseSchedule) -> None:
    t, s = (float(time) for time in schedule.time_of_ratio(np.array([3.0, 0.2])))
    state, velocity = exact_flow(VARIABLES["flow"](schedule, "epsilon"), t, s)
    total = [float(schedule.alpha(time)) + float(schedule.sigma(time)) for time in (t, s)]
    assert state == pytest.approx(total[1] / total[0], rel=1e-9)
    assert velocity == pytest.approx(total[1] * (0.2 / 1.2 - 3.0 / 4.0), rel=1e-8)


def test_on_a_rectified_flow_the_clock_is_the_time() -> None:
    variable = VARIABLES["flow"](RectifiedFlow(), "flow")
    assert [variable.at_time(t) for t in (1.0, 0.25, 0.0)] == [(t, t, 1.0, 1.0) for t in (1.0, 0.25, 0.0)]
    assert variable.at_clock(0.25).t == pytest.approx(0.25) and variable.to_prediction(1.0) == (0.0, 1.0)


@pytest.mark.parametrize("name", FROM_PURE_NOISE)
def test_every_solver_comes_close_to_the_solution_of_a_pretrained_flow(name: str, solved: torch.Tensor) -> None:
    model = load("fashion-mnist-flow")
    condition = torch.arange(2) if model.num_classes else None
    few, many = (rms(sample(model, num=2, solver=name, nfe=nfe, condition=condition).samples - solved)
                 for nfe in (5, 32))
    assert many < 0.2 and many < few
