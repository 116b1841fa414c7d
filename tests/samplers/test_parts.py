"""Two runs that meet are one run; trajectories, and what is handed on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from samplers import compile_plan, sample
from samplers.parts import rows_between
from samplers.registry import solver_named
from samplers.solver import AdaptiveSolver
from scoremodels.analytic import MixtureModel
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM, DiscreteVP


def mixture(schedule: Any = None) -> ScoreModel:
    return MixtureModel([[-1.0, 0.4], [0.6, 0.2]], [0.2, 0.3], [0.4, 0.6], schedule or DiscreteVP.linear())


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver-2", "dpm-solver++-2m", "dpm-solver++-3m", "unipc-2", "ipndm-3",
                                    "ddpm", "sde-dpm-solver++-2m", "pndm", "restart"])
@pytest.mark.parametrize("fraction", [0.3, 0.8])
def test_two_runs_that_meet_are_one(solver: str, fraction: float) -> None:
    model, options = mixture(EDM() if solver == "restart" else None), dict(solver=solver, nfe=20, seed=7)
    whole = sample(model, num=5, **options)
    first = sample(model, num=5, denoising_end=fraction, **options)
    second = sample(model, x_T=first, batch=2)
    torch.testing.assert_close(second.samples, whole.samples, rtol=1e-5, atol=1e-6)
    assert first.nfe + second.nfe == whole.nfe == 20
    assert first.handover is not None and second.handover is None and whole.handover is None


def test_three_runs_that_meet_are_one_and_each_can_be_gone_on_with_twice() -> None:
    model = mixture()
    whole = sample(model, num=3, solver="sde-dpm-solver++-2m", nfe=12)
    first = sample(model, num=3, solver="sde-dpm-solver++-2m", nfe=12, denoising_end=0.25)
    second = sample(model, x_T=first, denoising_end=0.75)
    third, again = sample(model, x_T=second), sample(model, x_T=second)
    torch.testing.assert_close(third.samples, whole.samples, rtol=1e-5, atol=1e-6)
    assert torch.equal(third.samples, again.samples)
    assert [r.nfe for r in (first, second, third)] == [3, 6, 3]


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver-2", "euler"])
def test_a_singlestep_solver_goes_on_from_the_samples_alone(solver: str) -> None:
    model, options = mixture(), dict(solver=solver, nfe=10)
    first = sample(model, num=3, denoising_end=0.6, **options).samples
    second = sample(model, x_T=first, denoising_start=0.6, **options)
    torch.testing.assert_close(second.samples, sample(model, num=3, **options).samples, rtol=1e-5, atol=1e-6)
    assert second.nfe == 4


def test_a_second_model_takes_over_at_the_noise_level_where_the_first_stopped() -> None:
    seen: dict[str, list[float]] = {"base": [], "refiner": []}

    def watched(name: str) -> ScoreModel:
        inner = mixture()

        def network(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
            seen[name].append(float(t[0]))
            return inner(x, t)
        return ScoreModel(network, inner.schedule, "sample", (2,))

    first = sample(watched("base"), num=2, nfe=10, grid="time", denoising_end=0.8)
    sample(watched("refiner"), x_T=first)
    plan = compile_plan("dpm-solver++-2m", DiscreteVP.linear(), nfe=10, grid="time", prediction="sample")
    assert [len(seen["base"]), len(seen["refiner"])] == [8, 2]
    assert seen["base"] + seen["refiner"] == pytest.approx([row.t for row in plan.rows])


def test_a_cut_lies_where_a_step_ends() -> None:
    plan = compile_plan("dpm-solver-2", DiscreteVP.linear(), nfe=10)
    assert rows_between(plan, 0.0, 0.5, None) in (range(0, 4), range(0, 6))
    assert rows_between(plan, 0.0, 1.0, None) == range(10)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(denoising_end=0.0), "0 <= start < end"), (dict(denoising_start=0.7, denoising_end=0.3), "0 <= start < end"),
    (dict(denoising_end=0.04), "no evaluation"), (dict(denoising_start=0.5), "x_T=None"),
    (dict(denoising_start=0.5, x_T=torch.ones(1, 2), solver="dpm-solver++-2m"), "reads predictions made"),
    (dict(denoising_end=0.5, solver="dpm-solver-12"), "chooses its own times"),
    (dict(trajectory=True, solver="dpm-solver-12"), "chooses its own times"),
    (dict(denoising_end=0.5, solver="era-4"), "all that it has seen"),
])
def test_parts_that_cannot_be_run_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(mixture(), **{"solver": "ddim", "nfe": 10, **arguments})


def test_a_run_that_has_ended_or_has_another_plan_is_not_gone_on_with() -> None:
    model = mixture()
    with pytest.raises(ValueError, match="has ended"):
        sample(model, x_T=sample(model, num=1, nfe=2))
    first = sample(model, num=1, nfe=4, denoising_end=0.5)
    with pytest.raises(ValueError, match="leave plan out"):
        sample(model, x_T=first, plan=compile_plan("ddim", model.schedule, nfe=4, prediction="sample"))
    with pytest.raises(ValueError, match="leave denoising_start out"):
        sample(model, x_T=first, denoising_start=0.5)


def test_a_trajectory_holds_the_accepted_states_of_all_batches() -> None:
    model = mixture()
    result = sample(model, num=5, solver="ddim", nfe=6, batch=2, trajectory=True)
    path = result.trajectory
    assert path is not None and result.plan is not None and path.states.shape == (7, 5, 2)
    assert path.times.tolist() == [result.plan.t_start, *(row.t_next for row in result.plan.rows)]
    assert torch.equal(path.states[-1], result.samples)
    # Each stretch of it is a run of its own.
    again = sample(model, x_T=path.states[2], solver="ddim", nfe=6, denoising_start=2 / 6, denoising_end=4 / 6).samples
    torch.testing.assert_close(path.states[4], again)
    assert sample(model, num=1, nfe=2).trajectory is None


def test_trajectories_of_parts_put_together_are_that_of_the_whole() -> None:
    model = mixture()
    whole = sample(model, num=2, nfe=8, trajectory=True).trajectory
    first = sample(model, num=2, nfe=8, trajectory=True, denoising_end=0.5)
    second = sample(model, x_T=first, trajectory=True).trajectory
    assert whole is not None and first.trajectory is not None and second is not None
    assert torch.equal(torch.cat([first.trajectory.times, second.times[1:]]), whole.times)
    torch.testing.assert_close(torch.cat([first.trajectory.states, second.states[1:]]), whole.states)


def test_every_solver_can_be_stopped_half_way() -> None:
    from samplers import SOLVERS

    for name in SOLVERS:
        if not isinstance(solver_named(name), AdaptiveSolver):
            result = sample(mixture(EDM()), num=1, solver=name, nfe=13, denoising_end=0.5)
            assert 0 < result.nfe < 13 and result.samples.isfinite().all(), name
