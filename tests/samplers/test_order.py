"""Every solver converges at its declared order, in float64, on a problem with an independent reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from eval.order import BUDGETS, MixtureProblem, convergence_order, smooth, solver_order, table, uniform
from samplers.adaptive import EmbeddedDPMSolver
from samplers.registry import SOLVERS
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, RectifiedFlow

LATE = {"ipndm-3", "lms-4", "deis-4", "unipc-2", "flow-ab-4", "sa-solver-1", "dpmpp-3m-sde"}
"""Solvers whose leading error term prevails only with twice the steps."""


@pytest.fixture(scope="module")
def problem() -> MixtureProblem:
    return MixtureProblem(ContinuousVP())


def test_the_reference_is_accurate_to_1e_10(problem: MixtureProblem) -> None:
    implicit = problem.solution("Radau", 1e-12)
    assert np.abs(implicit - problem.reference.numpy()).max() < 1e-11


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_converge_at_their_order(name: str, problem: MixtureProblem) -> None:
    budgets = [nfe * (1 + (name in LATE)) for nfe in BUDGETS]
    assert solver_order(name, problem, budgets=budgets).order == pytest.approx(SOLVERS[name].order, abs=0.15)


@pytest.mark.parametrize("schedule", [DiscreteVP.linear(), EDM(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", ["dpm-solver-3", "dpm-solver++-3m", "edm-heun", "dpm-solver-23"])
def test_orders_hold_on_every_kind_of_schedule(name: str, schedule: object) -> None:
    problem = MixtureProblem(schedule)  # type: ignore[arg-type]
    assert solver_order(name, problem).order == pytest.approx(SOLVERS[name].order, abs=0.15)


def test_a_first_step_of_order_one_costs_a_third_order_method_an_order(problem: MixtureProblem) -> None:
    budgets = (180, 228, 288, 360)
    assert solver_order("dpm-solver++-3m", problem, ramp=smooth, budgets=budgets).order > 2.85
    assert solver_order("dpm-solver++-3m", problem, ramp=uniform, budgets=budgets).order < 2.3


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("variable", ["noise", "data"])
def test_the_estimated_error_shrinks_as_the_stepper_declares(
    order: int, variable: str, problem: MixtureProblem
) -> None:
    stepper = EmbeddedDPMSolver(problem.schedule, problem.model.prediction, order, variable)
    x = torch.from_numpy(problem.x_start)
    start = torch.full((len(x),), problem.start, dtype=torch.float64)

    def estimate(parts: int) -> float:
        return stepper.step(problem.model, start, start + 1 / parts, x, (x,)).error.norm().item()

    assert convergence_order(estimate, [16, 32, 64, 128]).order == pytest.approx(stepper.error_order, abs=0.15)


def test_the_slope_of_a_power_is_its_exponent() -> None:
    measured = convergence_order(lambda n: 3.0 * n**-2.5, [10, 20, 30, 70])
    assert measured.order == pytest.approx(2.5, rel=1e-12) and measured.errors[1] == pytest.approx(3 * 20**-2.5)


@pytest.mark.parametrize("steps", [[1, 2, 3], [4, 3, 2, 1], [2, 2, 3, 4], [0, 1, 2, 3]])
def test_too_few_or_unordered_steps_are_refused(steps: list[int]) -> None:
    with pytest.raises(ValueError, match="at least four increasing"):
        convergence_order(lambda n: 1.0 / n, steps)


@pytest.mark.parametrize("error", [0.0, 1e-14, math.nan, math.inf])
def test_errors_within_rounding_are_refused(error: float) -> None:
    with pytest.raises(ValueError, match="rounding|finite"):
        convergence_order(lambda n: error, [1, 2, 3, 4])


@pytest.mark.slow
def test_the_table_has_a_line_for_every_solver(problem: MixtureProblem) -> None:
    lines = table(problem).splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == list(SOLVERS)
