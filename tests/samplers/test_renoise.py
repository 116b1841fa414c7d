"""What holds for every sampler that adds noise between steps: exact on a point mass, order two on normal data."""

from __future__ import annotations

import pytest

from eval.order import MixtureProblem, uniform
from eval.order_weak import moment_errors, weak_order
from odecore.plan import Plan, Row
from samplers import Solver, compile_plan
from samplers.ancestral import ANCESTRAL, dpm_2, dpm_solver_plus_plus_2s_ancestral, euler_ancestral
from samplers.churn import CHURN, edm_churn
from samplers.renoise import joined
from samplers.restart import restart
from samplers.restart_sampling import Interval, restart_heun
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

LINEAR = DiscreteVP.linear()
SCHEDULES = [LINEAR, ContinuousVP(), EDM(), VE(0.01, 50.0), RectifiedFlow(), LINEAR.zero_terminal_snr()]
SOLVERS = [*(solver for solver in ANCESTRAL if solver.stochastic), *CHURN, dpm_2(0.5), dpm_2(0.7, "flow"),
           dpm_solver_plus_plus_2s_ancestral(0.5), euler_ancestral(0.5, "flow"), restart_heun(),
           restart_heun(Interval(2.0, 8.0, 1, 1), Interval(0.1, 1.0, 3, 2))]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_a_point_mass_has_its_exact_mean_and_variance_after_any_number_of_evaluations(
    solver: Solver, schedule: NoiseSchedule
) -> None:
    for end in ("clean", "minimum"):
        for nfe in (*range(1, 12), 24):
            plan = compile_plan(solver, schedule, nfe=nfe, prediction="sample", end=end)
            assert plan.nfe == nfe
            assert max(map(abs, moment_errors(plan, schedule, std=1e-9))) < 1e-8


@pytest.mark.parametrize("schedule", SCHEDULES[:5], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.name)
def test_a_run_that_starts_in_the_middle_has_the_marginals_of_its_start(
    solver: Solver, schedule: NoiseSchedule
) -> None:
    plan = compile_plan(solver, schedule, nfe=21, prediction="sample")
    for begin in range(1, plan.nfe):
        rows = restart(plan, begin, solver, schedule, "sample")
        assert [row.t for row in rows] == [row.t for row in plan.rows[begin:]]
        errors = moment_errors(Plan(rows, rows[0].t), schedule, std=1e-9)
        assert max(map(abs, errors)) < 1e-8


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.renoises and s.name != "restart"], ids=lambda s: s.name)
def test_the_variance_of_normal_data_converges_at_the_order_of_the_steps(solver: Solver) -> None:
    problem = MixtureProblem(ContinuousVP())
    end = float(problem.schedule.time_of_log_snr(problem.end))
    measured = weak_order(solver, problem.schedule, problem.grid(uniform), end, budgets=(80, 120, 170, 240))
    assert measured.order == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize("schedule", [EDM(), LINEAR], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", [dpm_2(1.0), edm_churn(), restart_heun()], ids=lambda s: s.name)
def test_normal_data_come_out_on_the_usual_grid(solver: Solver, schedule: NoiseSchedule) -> None:
    plan = compile_plan(solver, schedule, nfe=301, prediction="sample")
    mean, variance = moment_errors(plan, schedule)
    assert abs(mean) < 2e-3 and abs(variance) < 2e-3


def test_noise_is_added_only_where_it_is_missing() -> None:
    legs = [[Row(8.0, 4.0)], [Row(4.0, 1.0)], [Row(2.0, 0.0)]]
    rows = joined(EDM(), legs, 0.0, s_noise=2.0)
    assert [row.t_next for row in rows] == [4.0, 2.0, 0.0]
    assert [row.noise for row in rows] == pytest.approx([0.0, 2.0 * 3.0**0.5, 0.0])
