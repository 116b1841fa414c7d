"""Times that are moved: never worse, and as good as a search of the same times by brute force."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from odecore.plan import Plan
from samplers import compile_plan
from samplers.candidates import compiled_on
from samplers.converged import converged
from samplers.halving import Entrant, Trial
from samplers.lockstep import start_plan
from samplers.refine import BENDS, DAMPING, bent, refine
from scoremodels.analytic import MixtureModel
from scoremodels.loaders import load
from scoremodels.schedule import EDM, NoiseSchedule, RectifiedFlow


def trial(schedule: NoiseSchedule) -> Trial:
    means = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(3))
    model = MixtureModel(means, torch.full((5,), 0.2), torch.ones(5), schedule)
    return Trial(model, 50, converged(model, 16, 50).samples)


def times_of(solver: str, schedule: NoiseSchedule, nfe: int) -> np.ndarray:
    return np.asarray(compile_plan(solver, schedule, nfe=nfe, prediction="sample").about["times"])


@pytest.mark.parametrize("schedule", [EDM(), RectifiedFlow()], ids=lambda s: s.kind)
@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++-2m", "dpm-solver++-2s", "ipndm-2+afs"])
def test_moving_the_times_never_harms(schedule: NoiseSchedule, solver: str) -> None:
    contest = trial(schedule)
    times = times_of(solver, schedule, 5)
    found = refine(contest, partial(compiled_on, contest.model, solver, 5), times)
    assert found.plan.nfe == 5 and 0.0 <= found.gain < 1.0
    entrant = Entrant((), start_plan(contest.model, found.plan))
    contest.run([entrant], 16, "")
    assert entrant.rms == pytest.approx(found.rms)


def test_a_single_free_time_ends_where_brute_force_finds_it() -> None:
    contest = trial(EDM())
    compiled = partial(compiled_on, contest.model, "ddim", 2)
    found = refine(contest, compiled, np.array([80.0, 5.0, 0.0]), rounds=20)
    field = [Entrant((f"{s}",), start_plan(contest.model, compiled(np.array([80.0, s, 0.0]))))
             for s in np.geomspace(0.01, 70.0, 300)]
    contest.run(field, 16, "")
    assert found.rms <= 1.001 * min(entrant.rms for entrant in field)


def test_it_costs_at_most_a_run_for_each_bend_and_damping() -> None:
    contest = trial(EDM())
    refine(contest, partial(compiled_on, contest.model, "ddim", 12), times_of("ddim", EDM(), 12), rounds=1)
    assert 16 * (1 + BENDS) < contest.states <= 16 * (1 + BENDS + len(DAMPING))


def test_a_grid_without_free_times_stays() -> None:
    contest = trial(EDM())
    found = refine(contest, partial(compiled_on, contest.model, "ddim", 1), np.array([80.0, 0.0]))
    assert found.gain == 0.0 and found.plan.about["times"] == [80.0, 0.0]


def test_bends_keep_the_order_and_the_ends_of_the_times() -> None:
    schedule = EDM()
    times = np.array([80.0, 10.0, 1.0, 0.002, 0.0])
    assert bent(schedule, times, np.array([0.1, 0.1, -1.0]))[-2:] == pytest.approx([0.002, 0.0])
    assert bent(schedule, times, np.array([3.0, 0.0, 0.0])) is None, "beyond the noisiest time"
    assert bent(schedule, times, np.array([-3.0, 0.0, 0.0])) is None, "times that change places"


def test_a_network_that_diverges_is_left_where_it_is() -> None:
    model = load("fashion-mnist-flow")
    contest = Trial(model, 0, torch.zeros(2, *model.shape, dtype=torch.float64))
    model.forward = lambda x, t, condition=None: torch.full_like(x, torch.nan)  # type: ignore[method-assign]
    found = refine(contest, partial(compiled_on, model, "euler", 3), np.array([1.0, 0.7, 0.4, 0.0]))
    assert isinstance(found.plan, Plan) and found.plan.about["times"] == [1.0, 0.7, 0.4, 0.0]
