"""Learned plans: they begin as their solver, stay consistent, and end nearer to the solution on fresh noises."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odecore.gradients.checkpoint import optimal_advances
from odecore.gradients.checkpointed import execute_checkpointed
from odecore.learn.fit import adam
from odecore.plan import Plan, execute
from samplers import SOLVERS, ClassifierFreeGuidance, compile_plan, sample
from samplers.candidates import VARIANTS
from samplers.fit_plan import fit_plan
from samplers.learn import FREE, LearnedPlan
from samplers.objectives import Energy, Features, Huber, Squared, Weighted
from samplers.plans import FOLDER, fitted
from samplers.teacher_path import TeacherPath, along
from scoremodels.analytic import MixtureModel
from scoremodels.follow import followed
from scoremodels.loaders import load
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM, DiscreteVP, NoiseSchedule, RectifiedFlow

NAMES = ["ddim", "dpm-solver++-2s", "dpm-solver++-3m", "unipc-3", "deis-3", "ipndm-3", "edm-heun", "ipndm-2+afs"]
SCHEDULES = [EDM(), RectifiedFlow(), DiscreteVP.linear()]


def mixture(schedule: NoiseSchedule) -> ScoreModel:
    means = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(3))
    return MixtureModel(means, torch.full((5,), 0.2), torch.ones(5), schedule)


def plan_of(model: ScoreModel, name: str, nfe: int = 5) -> Plan:
    plan = compile_plan(VARIANTS.get(name) or SOLVERS[name], model.schedule, nfe=nfe, prediction=model.prediction)
    return replace(plan, about={**plan.about, "solver": name})


def numbers(plan: Plan) -> list[float]:
    return [float(w) for row in plan.rows for w in (row.t, row.t_next, *row.to_prediction, *row.anchor, *row.point)]


def noises(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", NAMES)
def test_it_begins_as_the_solver_s_plan(name: str, schedule: NoiseSchedule) -> None:
    model = mixture(schedule)
    start = plan_of(model, name)
    learned = LearnedPlan(model, start, free=FREE)
    assert numbers(learned.plan()) == pytest.approx(numbers(start), rel=1e-12, abs=1e-14)
    x = noises() * schedule.prior_scale(schedule.t_max)
    assert torch.allclose(execute(learned(), model, x), execute(start, model, x), rtol=1e-12, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(SCHEDULES), st.integers(0, 1000), st.floats(0.01, 1.5))
def test_a_plan_of_any_parameters_is_consistent_and_survives_json(
    name: str, schedule: NoiseSchedule, seed: int, size: float
) -> None:
    model = mixture(schedule)
    learned = LearnedPlan(model, plan_of(model, name, 4), free=FREE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    plan = learned.plan()  # which checks the exact solution for a constant prediction, and that times decrease
    assert name.endswith("+afs") or plan.exact is not None or schedule.alpha(schedule.t_max) == 0.0
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_its_gradients_are_those_of_finite_differences(schedule: NoiseSchedule) -> None:
    model = mixture(schedule)
    learned = LearnedPlan(model, plan_of(model, "ipndm-3", 4), free=FREE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learned.parameters():
            parameter -= 0.1 * torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
    x = noises() * schedule.prior_scale(schedule.t_max)

    def loss() -> torch.Tensor:
        return execute_checkpointed(learned(), model, x, states=2).square().mean()

    loss().backward()
    for parameter in (p for p in learned.parameters() if p.requires_grad and p.numel()):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        ends = []
        for sign in (1.0, -1.0):
            with torch.no_grad():
                parameter += sign * 1e-4 * direction
                ends.append(float(loss()))
                parameter -= sign * 1e-4 * direction
        slope = (ends[0] - ends[1]) / 2e-4
        assert float((parameter.grad * direction).sum()) == pytest.approx(slope, rel=2e-3, abs=1e-7)


@pytest.mark.parametrize("options", [{}, {"path": 0.3}, {"ball": 0.05}], ids=["ends", "path", "ball"])
def test_a_fit_at_4_evaluations_halves_the_error_on_fresh_noises(options: dict[str, float]) -> None:
    model = mixture(EDM())
    found = fit_plan(model, nfe=4, start="ipndm-3", steps=60, num=128, validation=64, batch=64, **options)
    exact = sample(model, num=128, seed=9, solver="dpm-solver++-3m", grid="log-snr", nfe=128, end="clean").samples
    before, after = (float((sample(model, num=128, seed=9, **way).samples - exact).square().mean().sqrt())
                     for way in (dict(solver="ipndm-3", nfe=4), dict(plan=found.plan)))
    assert found.improved and found.plan.nfe == 4
    assert after < 0.5 * before
    assert found.after < 0.5 * found.before and found.rms[1] < found.rms[0]
    assert found.evaluations > 60 * 64 * 4 and found.plan.about["fit"]["after"] == found.after


def test_a_fit_that_betters_nothing_says_so_and_returns_the_start() -> None:
    model = mixture(EDM())
    start = plan_of(model, "ipndm-3", 3)
    found = fit_plan(model, nfe=3, start=start, steps=2, num=4, validation=4, batch=4, look=1,
                     optimizer=adam(30.0))
    assert not found.improved and found.before == found.after and found.rms[0] == found.rms[1]
    assert found.plan.rows == start.rows


def test_a_fit_stores_no_more_states_than_it_is_told() -> None:
    model = mixture(EDM())
    learned = LearnedPlan(model, plan_of(model, "ddim", 8))
    calls = {}
    for states in (None, 1):
        calls[states] = 0

        def counting(x: torch.Tensor, t: float, states: int | None = states) -> torch.Tensor:
            calls[states] += 1
            return model(x, t)

        execute_checkpointed(learned(), counting, noises() * 80.0, states=states).sum().backward()
    assert calls[None] == 8 + 8, "a run, and each row once more with its graph"
    assert calls[1] == 8 + 8 + optimal_advances(8, 1) - 7, "from the start again for each row"


def test_the_path_of_the_teacher_itself_is_at_no_distance() -> None:
    model = mixture(RectifiedFlow())
    teacher = TeacherPath.of(model, 4, 0, None)
    fine = compile_plan("dpm-solver++-3m", model.schedule, nfe=60, prediction=model.prediction)
    x = sample(model, num=4, nfe=1, trajectory=True).trajectory.states[0]
    _, parts = along(fine, model, x, teacher, torch.arange(4), Squared(), 1.0)
    assert 0.0 < float(parts["path"]) < 1e-4


def test_objectives_are_zero_where_they_should_be_and_known_elsewhere() -> None:
    x, y = torch.zeros(4, 2, 3), torch.full((4, 2, 3), 0.3)
    assert float(Squared()(x, y)) == pytest.approx(0.09)
    assert float(Huber(0.4)(x, y)) == pytest.approx(0.1)
    assert float(Features(lambda z: 2.0 * z)(x, y)) == pytest.approx(0.36)
    assert float(Weighted(((2.0, Squared()), (1.0, Huber(0.4))))(x, y)) == pytest.approx(0.28)
    assert float(Energy()(x, x)) == pytest.approx(0.0)
    assert float(Energy()(x, y)) == pytest.approx(2.0 * (6 * 0.09) ** 0.5, rel=1e-4)


def test_a_followed_function_has_its_value_and_its_slope() -> None:
    x = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    y = followed(lambda v: v**3, x, 0.5)
    y.sum().backward()
    assert y.tolist() == [0.125, 8.0] and x.grad.tolist() == pytest.approx([0.75, 12.0], rel=1e-4)


def test_plan_files_run_and_are_refused_for_another_model(tmp_path: Path) -> None:
    edm, flow = mixture(EDM()), mixture(RectifiedFlow())
    plan = plan_of(edm, "ipndm-3", 3)
    file = tmp_path / "plan.json"
    file.write_text(plan.to_json())
    assert torch.equal(sample(edm, plan=file).samples, sample(edm, plan=str(file)).samples)
    assert torch.equal(sample(edm, plan=file).samples, sample(edm, plan=plan).samples)
    for brought in (file, plan):
        with pytest.raises(ValueError, match="made for"):
            sample(flow, plan=brought)
    with pytest.raises(ValueError, match="no file"):
        sample(edm, plan=tmp_path / "none.json")
    other = mixture(EDM())
    other.prediction = "epsilon"
    with pytest.raises(ValueError, match="predicts"):
        sample(other, plan=plan)


@pytest.mark.parametrize(("options", "match"), [
    ({"free": ()}, "free"), ({"free": ("all",)}, "free"), ({"reach": 0}, "reach"), ({"steps": 0}, "steps"),
    ({"batch": 65}, "batch"), ({"validation_seed": (1 << 21) + 3}, "share"), ({"ball": -1.0}, "ball"),
    ({"start": "sde-dpm-solver-1"}, "adds noise"), ({"nfe": 1, "start": "ddim", "free": ("weights",)}, "no such")])
def test_what_cannot_be_fitted_is_refused(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        fit_plan(mixture(EDM()), **{"nfe": 3, "start": "ipndm-2", **options})


def test_a_plan_of_another_model_or_a_learned_one_is_no_start() -> None:
    model, other = mixture(EDM()), mixture(EDM(sigma_max=50.0))
    learned = LearnedPlan(model, plan_of(model, "ipndm-3"))
    with torch.no_grad():
        learned.shifts += 0.1
    with pytest.raises(ValueError, match="start"):
        LearnedPlan(model, learned.plan())
    with pytest.raises(ValueError):
        LearnedPlan(mixture(RectifiedFlow()), plan_of(other, "ipndm-3"))


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.json")), ids=lambda p: p.stem)
def test_a_shipped_plan_runs_and_says_what_it_was_fitted_to(file: Path) -> None:
    name, nfe = file.stem.rsplit("-", 1)
    model = load(name)
    plan = fitted(model, int(nfe))
    about = plan.about["fit"]
    assert plan.nfe == int(nfe) and about["improved"] and about["after"] < about["before"]
    assert sample(model, plan=plan, num=2).samples.isfinite().all()
    with pytest.raises(ValueError, match="no fitted plan"):
        fitted(model, 77)


def test_a_guided_model_is_fitted_with_its_guidance_and_labels() -> None:
    model = ClassifierFreeGuidance(load("fashion-mnist-edm"), 2.0)
    found = fit_plan(model, nfe=2, start="dpm-solver++-2m", num=1, validation=1, batch=1, steps=1, look=1,
                     condition=torch.tensor([3]))
    assert found.plan.about["fit"]["labels"] == [3]
    assert found.after <= found.before
    # Two branches each: two solutions; a step, and once more backwards; runs to judge them and the ends.
    assert found.evaluations == 2 * (2 * 128 + 2 * 2 + (2 + found.improved + 1) * 2)
    assert all(parameter.grad is None for parameter in model.parameters())
