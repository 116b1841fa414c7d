"""Compilation: every solver on every schedule and grid spends what it is asked to spend, or says why not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.trajectory import reference_solution, rms
from odecore.plan import Plan, Row, execute
from samplers import GRIDS, SOLVERS, Solver, compile_plan, sample
from samplers.ddim import DDIM
from samplers.dpm_solver import PLUS_PLUS, multistep_orders, singlestep_orders, with_rule
from samplers.registry import solver_named
from scoremodels.loaders import load
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, RectifiedFlow

PLANNED = [name for name, solver in SOLVERS.items() if isinstance(solver, Solver)]
SCHEDULES = {
    "linear": DiscreteVP.linear(), "scaled-linear": DiscreteVP.scaled_linear(), "cosine": DiscreteVP.cosine(1000),
    "zero-snr": DiscreteVP.linear().zero_terminal_snr(), "vp": ContinuousVP(), "ve": VE(0.01, 50.0), "edm": EDM(),
    "flow": RectifiedFlow(),
}
SPECIAL_GRIDS = {"leading", "linspace", "trailing", "skipping", "linear-quadratic"}


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(PLANNED), st.sampled_from(sorted(SCHEDULES)), st.sampled_from(sorted(GRIDS)),
       st.integers(1, 30), st.sampled_from(["clean", "minimum"]),
       st.sampled_from(["epsilon", "v_prediction", "sample"]))
def test_every_combination_spends_its_nfe_or_is_refused(
    solver: str, schedule: str, grid: str, nfe: int, end: str, prediction: str
) -> None:
    try:
        plan = compile_plan(solver, SCHEDULES[schedule], nfe=nfe, grid=grid, end=end, prediction=prediction)
    except ValueError as error:
        assert len(str(error)) > 20
        ordinary = schedule not in ("zero-snr", "flow") and grid not in SPECIAL_GRIDS and prediction != "sample"
        assert not ordinary, error
    else:
        assert plan.nfe == nfe
        assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("schedule", ["zero-snr", "flow"])
@pytest.mark.parametrize("solver", [n for n in PLANNED if SOLVERS[n].variable != "noise"])
def test_all_but_noise_solvers_start_from_pure_noise(schedule: str, solver: str) -> None:
    grid = "time" if schedule == "flow" else "trailing"
    plan = compile_plan(solver, SCHEDULES[schedule], nfe=8, grid=grid, prediction="v_prediction" if
                        schedule == "zero-snr" else "flow")
    assert plan.nfe == 8


@pytest.mark.parametrize("nfe", range(1, 31))
@pytest.mark.parametrize("order", [1, 2, 3])
def test_singlestep_orders_add_up_to_the_budget(nfe: int, order: int) -> None:
    orders = singlestep_orders(nfe, order)
    assert sum(orders) == nfe and max(orders) <= order


def test_the_mixed_orders_are_the_published_ones() -> None:
    assert singlestep_orders(12, 3) == [3, 3, 3, 2, 1]
    assert singlestep_orders(10, 3) == [3, 3, 3, 1]
    assert singlestep_orders(20, 3) == [3] * 6 + [2]


def test_multistep_orders_rise_and_taper() -> None:
    clocks = [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0]
    assert multistep_orders(clocks, 3, taper=True) == [1, 2, 3, 2, 1]
    assert multistep_orders(clocks, 3, taper=False) == [1, 2, 3, 3, 3]
    assert multistep_orders([-math.inf, *clocks[1:], math.inf], 3, taper=False) == [1, 1, 2, 3, 3, 1]


@pytest.mark.parametrize("nfe", [0, -3, 2.5, True, "8"])
def test_impossible_budgets_are_refused(nfe: object) -> None:
    with pytest.raises(ValueError, match="nfe="):
        compile_plan("ddim", SCHEDULES["linear"], nfe=nfe)  # type: ignore[arg-type]


@pytest.mark.parametrize(("argument", "value", "match"), [
    ("solver", "dpm-solver++-2n", "did you mean 'dpm-solver"), ("grid", "karas", "did you mean 'karras'"),
    ("prediction", "eps", "prediction='eps'"), ("end", "dirty", "end='dirty'"), ("end", 2000.0, "end=2000"),
    ("solver", "dpm-solver-12", "chooses its own steps"),
])
def test_unknown_names_are_refused_with_a_remedy(argument: str, value: object, match: str) -> None:
    arguments = {"solver": "ddim", "nfe": 5, argument: value}
    with pytest.raises(ValueError, match=match):
        compile_plan(arguments.pop("solver"), SCHEDULES["linear"], **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("times", "match"), [
    ([999.0, 500.0, math.nan], "finite"), ([999.0, 500.0, 600.0], "decrease"), ([999.0, 999.0, 0.0], "decrease"),
    ([999.0, 0.0], "needs 3"), ([1500.0, 500.0, 0.0], "between"), ([[999.0, 0.0]], "shape"),
])
def test_bad_custom_times_are_refused(times: list, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        compile_plan("ddim", SCHEDULES["linear"], nfe=2, grid=times)


def test_custom_times_are_used_as_they_are() -> None:
    plan = compile_plan("ddim", SCHEDULES["linear"], nfe=3, grid=[900.5, 400.25, 33.0, 0.0])
    assert [row.t for row in plan.rows] == [900.5, 400.25, 33.0] and plan.rows[-1].t_next == 0.0


@pytest.mark.parametrize("solver", [n for n in PLANNED if not SOLVERS[n].stochastic])
@pytest.mark.parametrize("schedule", ["linear", "vp", "edm", "ve"])
def test_a_point_mass_is_sampled_exactly(solver: str, schedule: str) -> None:
    """Where the data are one point c, x0 = c everywhere and each solver must land on it."""
    chosen = SCHEDULES[schedule]
    plan = compile_plan(solver, chosen, nfe=7, prediction="epsilon", end="minimum")
    c = torch.tensor([0.3, -0.7], dtype=torch.float64)
    noise = torch.tensor([1.1, -0.4], dtype=torch.float64)
    x = float(chosen.alpha(plan.t_start)) * c + float(chosen.sigma(plan.t_start)) * noise
    with torch.no_grad():
        result = execute(plan, lambda y, t: (y - float(chosen.alpha(t)) * c) / float(chosen.sigma(t)), x)
    end = plan.rows[-1].t_next
    exact = float(chosen.alpha(end)) * c + float(chosen.sigma(end)) * noise
    torch.testing.assert_close(result, exact, rtol=1e-8, atol=1e-8)


def test_ddim_and_euler_are_one_method() -> None:
    for schedule in SCHEDULES.values():
        a = compile_plan("ddim", schedule, nfe=6, grid="karras", prediction="v_prediction")
        b = compile_plan("euler", schedule, nfe=6, grid="karras", prediction="v_prediction")
        x = torch.linspace(-2, 2, 9, dtype=torch.float64)
        with torch.no_grad():
            first, second = (execute(plan, lambda y, t: torch.sin(y), x) for plan in (a, b))
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


def test_grids_run_from_the_noisiest_time_to_the_end() -> None:
    for name in set(GRIDS) - SPECIAL_GRIDS:
        for schedule in SCHEDULES.values():
            times = GRIDS[name](schedule, 6, schedule.t_clean)
            assert len(times) == 7 and times[0] == schedule.t_max and times[-1] == schedule.t_clean
            assert np.all(np.diff(times) < 0)


@pytest.mark.parametrize(("name", "rule"), [
    ("dpm-solver++-2m", "multistep-midpoint"), ("dpm-solver-2m", "multistep-midpoint"), ("dpm-solver++-3m", "exact"),
    ("dpm-solver-3", "exact"), ("dpm-solver++-2s", "exact")])
def test_second_order_multistep_solvers_take_the_published_weights_and_all_others_exact_quadrature(
    name: str, rule: str
) -> None:
    def rows(solver: Solver) -> tuple[Row, ...]:
        return compile_plan(solver, EDM(), nfe=6).rows

    solver = solver_named(name)
    assert isinstance(solver, Solver) and solver.rule == rule
    assert rows(solver) == rows(with_rule(solver, rule))
    assert (rows(solver) == rows(with_rule(solver, "exact"))) == (rule == "exact")


@pytest.mark.parametrize(("solver", "rule", "match"), [
    (DDIM, "exact", "'ddim' has no rule"), (PLUS_PLUS[0], "trapezoid", "'trapezoid' is unknown")])
def test_rules_that_do_not_exist_are_refused(solver: Solver, rule: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        with_rule(solver, rule)


@pytest.mark.parametrize("nfe", (5, 10))
def test_the_published_weights_err_less_than_exact_ones_with_few_evaluations(nfe: int) -> None:
    model = load("fashion-mnist-edm")
    condition = torch.arange(8)
    reference = reference_solution(model, num=8, condition=condition, nfe=64).end_points[model.schedule.t_clean]

    def error(solver: Solver) -> float:
        return rms(sample(model, num=8, solver=solver, nfe=nfe, condition=condition).samples - reference)

    usual = solver_named("dpm-solver++-2m")
    assert isinstance(usual, Solver)
    assert error(usual) < 0.9 * error(with_rule(usual, "exact"))


def test_third_order_extrapolation_of_the_data_takes_log_snr_times_on_edm_schedules() -> None:
    grids = {name: compile_plan(name, EDM(), nfe=6).about["grid"] for name in ("dpm-solver++-3m", "dpm-solver++-2m")}
    assert grids == {"dpm-solver++-3m": "log-snr", "dpm-solver++-2m": "karras"}
