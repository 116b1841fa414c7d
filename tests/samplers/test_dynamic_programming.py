"""Grids by dynamic programming: as good as trying all of them, on instances that are small enough for that."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from odecore.plan import execute
from samplers import sample
from samplers.candidates import compiled_on, solver_of
from samplers.dynamic_programming import FinePath, Found, best_grids, distinct
from samplers.noise import SampleNoise
from scoremodels.analytic import MixtureModel
from scoremodels.schedule import EDM, NoiseSchedule, RectifiedFlow


def fine_path(schedule: NoiseSchedule, steps: int) -> FinePath:
    means = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(3))
    model = MixtureModel(means, torch.full((5,), 0.2), torch.ones(5), schedule)
    run = sample(model, num=8, solver="dpm-solver++-3m", grid="log-snr", nfe=64, end="clean", trajectory=True)
    assert run.trajectory is not None
    noise = SampleNoise(range(8), model.shape)()
    return FinePath(model, run.trajectory.times.numpy(), run.trajectory.states, noise).thinned(steps)


def error(fine: FinePath, solver: str, places: tuple[int, ...]) -> float:
    """How far a plan on these places ends from the solution, by the plan's own executor."""
    plan = compiled_on(fine.model, solver, len(places) - 1, fine.times[list(places)])
    x = fine.noise * fine.model.schedule.prior_scale(float(plan.t_start))
    end = execute(plan, lambda point, t: fine.model(point, torch.full((8,), t)), x)
    return float((end - fine.states[-1]).square().mean().sqrt())


@pytest.mark.parametrize("schedule", [EDM(), RectifiedFlow()], ids=lambda s: s.kind)
@pytest.mark.parametrize("solver", ["ddim", "ipndm-3", "unipc-2"])
def test_a_wide_search_finds_the_best_of_all_grids(schedule: NoiseSchedule, solver: str) -> None:
    fine = fine_path(schedule, 8)
    found = best_grids(fine, solver_of(solver), 4, width=100)
    ways = [(0, *inner, 8) for inner in combinations(range(1, 8), 3)]
    brute = min(ways, key=lambda way: error(fine, solver, way))
    assert found[0].places == brute and len(found) == len(ways)
    assert found[0].rms == pytest.approx(error(fine, solver, brute), rel=1e-4)


def test_a_run_for_each_time_is_enough_for_a_one_step_solver_to_come_within_a_tenth_of_the_best() -> None:
    fine = fine_path(EDM(), 10)
    (best, *_), exhaustive = (best_grids(fine, solver_of("ddim"), 4, width=w, starts=2) for w in (1, 1000))
    assert exhaustive[0].rms <= best.rms <= 1.1 * exhaustive[0].rms
    assert best.rms == pytest.approx(error(fine, "ddim", best.places), rel=1e-4)


def test_grids_that_begin_later_are_found_among_all() -> None:
    fine = fine_path(EDM(), 8)
    found = best_grids(fine, solver_of("ddim"), 3, width=100, starts=3)
    ways = [(first, *inner, 8) for first in range(3) for inner in combinations(range(first + 1, 8), 2)]
    assert found[0].places == min(ways, key=lambda way: error(fine, "ddim", way))


def test_a_solver_of_several_evaluations_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"solver='dpm-solver-2' takes several evaluations.*Refinement"):
        best_grids(fine_path(EDM(), 8), solver_of("dpm-solver-2"), 4)


def test_too_few_times_are_refused() -> None:
    with pytest.raises(ValueError, match="nfe=8: the fine path has 8 steps.*begins at 2"):
        best_grids(fine_path(EDM(), 8), solver_of("ddim"), 8, starts=2)


def test_neighbouring_grids_count_as_one() -> None:
    grids = [Found((0, 3, 9), 0.1), Found((0, 4, 9), 0.2), Found((0, 5, 9), 0.3), Found((2, 5, 9), 0.4)]
    assert [found.places for found in distinct(grids, 2)] == [(0, 3, 9), (0, 5, 9)]


def test_thinning_keeps_both_ends() -> None:
    fine = fine_path(RectifiedFlow(), 7)
    assert len(fine.times) == len(fine.states) == 8
    assert np.isclose(fine.times[[0, -1]], [1.0, 0.0]).all()
