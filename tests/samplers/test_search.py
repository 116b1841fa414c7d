"""A searched grid: better on fresh noises, never worse where it was validated, and a plan like any other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from odecore.plan import Plan
from samplers import compile_plan, sample
from samplers.candidates import compiled_on
from samplers.dynamic_programming import FinePath
from samplers.fewstep_scheduler import FewStepScheduler
from samplers.search import DynamicProgramming, Refinement, from_noisiest, search_grid
from samplers.solver import Solver
from scoremodels.analytic import MixtureModel
from scoremodels.schedule import EDM, DiscreteVP, NoiseSchedule, RectifiedFlow

QUICK = DynamicProgramming(steps=16, grids=1, rounds=1)


def mixture(schedule: NoiseSchedule) -> MixtureModel:
    means = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(3))
    return MixtureModel(means, torch.full((5,), 0.6), torch.ones(5), schedule)


def error(model: MixtureModel, plan: Plan, seed: int) -> float:
    exact = sample(model, num=64, seed=seed, solver="dpm-solver++-3m", grid="log-snr", nfe=100, end="clean").samples
    return float((sample(model, plan=plan, num=64, seed=seed).samples - exact).square().mean().sqrt())


@pytest.mark.parametrize("schedule", [EDM(), RectifiedFlow()], ids=lambda s: s.kind)
def test_a_searched_grid_beats_the_usual_one_by_a_quarter_on_fresh_noises(schedule: NoiseSchedule) -> None:
    model = mixture(schedule)
    plan = search_grid(model, solver="ipndm-2", nfe=4, num=16, method=QUICK)
    assert plan.nfe == 4 and plan.about["search"]["improved"] and plan.about["grid"] == "searched"
    usual = compile_plan("ipndm-2", schedule, nfe=4, prediction="sample")
    assert error(model, plan, 500) < 0.75 * error(model, usual, 500)


@pytest.mark.parametrize("method", [Refinement(grids=2, rounds=1), QUICK], ids=["refinement", "dynamic-programming"])
@pytest.mark.parametrize("solver", ["ddim", "unipc-2"])
def test_what_is_returned_is_never_worse_on_the_validation(method: Refinement, solver: str) -> None:
    about = search_grid(mixture(EDM()), solver=solver, nfe=4, num=16, method=method).about
    found = about["search"]["validation"]
    assert about["search"]["improved"] == (found["searched"] < found["fixed"])
    assert about["grid"] == ("searched" if about["search"]["improved"] else about["search"]["fixed"])


class Late:
    """A method that begins where nearly all noise is gone."""

    rounds = 1

    def starts(self, fine: FinePath, solver: Solver, fixed: Sequence[Plan], batch: int) -> list[np.ndarray]:
        return [fine.times[[-4, -3, -2, -1]]]


def test_a_search_that_does_not_improve_returns_the_fixed_grid_and_says_so() -> None:
    about = search_grid(mixture(EDM()), solver="ddim", nfe=3, num=8, method=Late()).about
    assert not about["search"]["improved"] and about["grid"] == about["search"]["fixed"]
    assert about["search"]["validation"]["searched"] > about["search"]["validation"]["fixed"]


def test_solvers_of_several_evaluations_a_step_are_refined() -> None:
    plan = search_grid(mixture(EDM()), solver="edm-heun", nfe=5, num=8, method=Refinement(grids=1, rounds=1))
    assert plan.about["search"]["validation"]["searched"] < plan.about["search"]["validation"]["fixed"]


def test_the_same_seed_finds_the_same_grid() -> None:
    first, second = (search_grid(mixture(EDM()), solver="ddim", nfe=4, num=8, method=QUICK) for _ in range(2))
    assert first == second and Plan.from_json(first.to_json()) == first


def test_a_scheduler_runs_a_grid_that_begins_below_the_noisiest_time() -> None:
    model = mixture(DiscreteVP.linear())
    plan = from_noisiest(model, compiled_on(model, "ipndm-2", 4, np.array([700.0, 500.0, 250.0, 60.0, 0.0])))
    assert plan.t_start == model.schedule.t_max and plan.rows[0].t == 700.0
    scheduler = FewStepScheduler(plan=plan.to_json(), prediction_type="sample")
    scheduler.set_timesteps(4)
    noise = torch.randn(3, 3, 2, generator=torch.Generator().manual_seed(1))
    state = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        state = scheduler.step(model(scheduler.scale_model_input(state, t), t.expand(3)), t, state).prev_sample
    ours = sample(model, plan=plan, x_T=noise).samples
    torch.testing.assert_close(state, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(num=5), "num=5: give an even number"), (dict(num=2), "num=2: give an even number"),
    (dict(nfe=0), "nfe=0: solver 'ddim' can spend that on none"), (dict(solver="ddpm"), "solvers has 'ddpm'"),
    (dict(grids=["no such"]), "grid='no such' is unknown"),
    (dict(solver="edm-heun", nfe=5), "takes several evaluations a step"),
])
def test_wrong_input_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_grid(mixture(EDM()), **{"solver": "ddim", "nfe": 4, "num": 4, **arguments})


@pytest.mark.parametrize("build", [
    lambda: DynamicProgramming(width=0), lambda: DynamicProgramming(starts_within=1.0), lambda: Refinement(rounds=0)])
def test_methods_check_their_numbers(build: object) -> None:
    with pytest.raises(ValueError, match="(width|starts_within|rounds)=.*: give a"):
        build()  # type: ignore[operator]
