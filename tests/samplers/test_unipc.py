"""UniPC: equality with diffusers and with the two-state form of the paper; the corrector on other solvers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from eval.order import MixtureProblem, convergence_order, smooth
from odecore.phi import exponential_weights
from odecore.plan import Registers, execute
from odecore.schemes import exponential_multistep
from odecore.schemes.predictor_corrector import with_corrector
from samplers import Solver, compile_plan
from samplers.ddim import DDIM, DDPM
from samplers.deis import deis
from samplers.dpm_solver import PLUS_PLUS, SINGLESTEP
from samplers.ipndm import ipndm
from samplers.lms import lms
from samplers.unipc import unic, unip, unipc
from samplers.variables import VARIABLES
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

Difference = Callable[..., float]

EXACT = 1e-12
SINGLE = 1e-5
"""Bound in float32, to the data. From t = 999 down to σ_min with rounded coefficients diffusers differs from its own
run in float64 by 2e-5 to 6e-5, so that there the comparison is in float64."""


@pytest.fixture(scope="module")
def problem() -> MixtureProblem:
    return MixtureProblem(ContinuousVP())


def scheduler(count: int, **config: Any) -> UniPCMultistepScheduler:
    made = UniPCMultistepScheduler(**config)
    made.set_timesteps(count)
    return made


@pytest.mark.parametrize("falls", [True, False])
@pytest.mark.parametrize("weights", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variable", ["data", "noise"])
def test_unipc_equals_diffusers(
    variable: str, order: int, weights: str, falls: bool, difference_from_diffusers: Difference
) -> None:
    theirs = scheduler(6, solver_order=order, solver_type=weights, predict_x0=variable == "data",
                       lower_order_final=falls, final_sigmas_type="sigma_min")
    solver = unipc(order, variable, weights, lower_order_final=falls)
    assert difference_from_diffusers(theirs, solver) <= EXACT


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_equals_diffusers_down_to_the_data(
    order: int, dtype: torch.dtype, difference_from_diffusers: Difference
) -> None:
    bound = EXACT if dtype == torch.float64 else SINGLE
    assert difference_from_diffusers(scheduler(7, solver_order=order), unipc(order), dtype) <= bound


@pytest.mark.parametrize("order", [2, 3])
def test_the_predictor_alone_equals_diffusers(order: int, difference_from_diffusers: Difference) -> None:
    theirs = scheduler(7, solver_order=order, disable_corrector=list(range(7)))
    assert difference_from_diffusers(theirs, unip(order)) <= EXACT


@pytest.mark.parametrize("end", ["clean", "minimum"])
@pytest.mark.parametrize("variable", ["data", "noise"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("schedule", [DiscreteVP.linear(), ContinuousVP(), EDM()], ids=lambda s: type(s).__name__)
def test_the_clean_end_is_finite_whether_or_not_the_order_falls(
    schedule: NoiseSchedule, order: int, variable: str, end: str
) -> None:
    """Diffusers gives NaN at σ = 0 without lower_order_final, with noise prediction, and with bh1."""
    for falls, weights in ((True, "bh1"), (False, "bh1"), (False, "bh2")):
        plan = compile_plan(unipc(order, variable, weights, lower_order_final=falls), schedule, nfe=6, end=end)
        result = execute(plan, lambda x, t: x.tanh(), torch.linspace(-2, 2, 5, dtype=torch.float64))
        assert result.isfinite().all()


@pytest.mark.parametrize("schedule", [RectifiedFlow(), DiscreteVP.linear().zero_terminal_snr()])
@pytest.mark.parametrize("nfe", [1, 2, 3, 7])
def test_pure_noise_is_a_start(schedule: NoiseSchedule, nfe: int) -> None:
    plan = compile_plan(unipc(3), schedule, nfe=nfe, grid="time", prediction="v_prediction")
    assert float(schedule.alpha(plan.t_start)) == 0.0 and plan.nfe == nfe


@pytest.mark.parametrize("variable", ["data", "noise", "plain"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_one_combination_a_row_does_what_predictor_and_corrector_do(order: int, variable: str) -> None:
    schedule = ContinuousVP()
    v = VARIABLES[variable](schedule, "epsilon")
    times = [1.0, 0.8, 0.55, 0.4, 0.2, 0.05]
    rows = exponential_multistep(v, times, [min(i + 1, order) for i in range(5)])
    nodes = [v.at_time(t) for t in times]

    def network(x: float, t: float) -> float:
        return math.sin(3 * x) + t

    accepted = point = 0.7
    predictions: list[tuple[float, float]] = []  # clock, prediction
    for i in range(5):
        a, b = v.to_prediction(times[i])
        predictions.append((nodes[i].clock, a * point + b * network(point, times[i])))
        if i > 0:
            accepted = integrate(v, nodes[i - 1], nodes[i], accepted, predictions[-min(i, order) - 1:])
        point = integrate(v, nodes[i], nodes[i + 1], accepted, predictions[-min(i + 1, order):])
    registers = Registers(torch.tensor(0.7, dtype=torch.float64), order)
    for row in with_corrector(v, rows):
        raw = torch.tensor(network(float(registers.point), float(row.t)), dtype=torch.float64)
        registers.advance(row, raw)
    assert float(registers.anchor) == pytest.approx(point, rel=1e-12)


def integrate(v: Any, start: Any, end: Any, x: float, predictions: list[tuple[float, float]]) -> float:
    offsets = [clock - start.clock for clock, _ in predictions]
    weights = exponential_weights(offsets, end.clock - start.clock, v.rate)
    return v.decay(start, end) * x + end.gain * sum(w * m for w, (_, m) in zip(weights, predictions, strict=True))

MULTISTEP_PLUS_PLUS = [solver for solver in PLUS_PLUS if solver.name.endswith("m")]

@pytest.mark.parametrize("solver", [DDIM, lms(2), ipndm(2), deis(2), deis(3), *MULTISTEP_PLUS_PLUS],
                         ids=lambda s: s.name)
def test_the_corrector_raises_the_order_of_any_multistep_solver_by_one(
    solver: Solver, problem: MixtureProblem
) -> None:
    better = unic(solver)
    assert better.order == solver.order + 1

    def error(nfe: int) -> float:
        plan = compile_plan(better, problem.schedule, nfe=nfe, grid=problem.grid(smooth),
                            prediction=problem.model.prediction, end=problem.schedule.time_of_log_snr(problem.end))
        with torch.no_grad():
            return problem.error(execute(plan, problem.model, torch.from_numpy(problem.x_start)))

    assert convergence_order(error, [90, 120, 180, 252]).order == pytest.approx(better.order, abs=0.15)


def test_the_corrector_costs_one_prediction_to_keep_and_no_evaluation() -> None:
    plain, corrected = (compile_plan(s, EDM(), nfe=8) for s in (unip(3), unipc(3)))
    assert [row.t for row in plain.rows] == [row.t for row in corrected.rows]
    assert corrected.depth == plain.depth + 1
    assert all(row.point == (1.0,) for row in corrected.rows)


def test_an_edited_point_stays_edited() -> None:
    """The correction is added to the point; what an inpainting host changed there is not undone."""
    rows = compile_plan(unipc(2), EDM(), nfe=5).rows
    assert all(row.point == (1.0,) and row.anchor[0] != 0.0 for row in rows[:-1])


def test_third_and_higher_orders_do_not_depend_on_b_of_h() -> None:
    first, second, exact = (compile_plan(unip(3, weights=w, lower_order_final=False), EDM(), nfe=8, end="minimum").rows
                            for w in ("bh1", "bh2", "exact"))
    assert first[2:] == second[2:] == exact[2:] and first[1] != second[1] != exact[1]


@pytest.mark.parametrize("solver", [DDPM, unipc(2), unic(DDIM)], ids=lambda s: s.name)
def test_the_corrector_refuses_what_adds_noise_or_has_one(solver: Solver) -> None:
    with pytest.raises(ValueError, match="adds noise or has a corrector"):
        unic(solver)


def test_the_corrector_refuses_inner_stages() -> None:
    with pytest.raises(ValueError, match="no step of a multistep scheme"):
        compile_plan(unic(SINGLESTEP[2]), ContinuousVP(), nfe=6)


@pytest.mark.parametrize(("arguments", "match"), [
    ({"order": 0}, "order=0"), ({"order": 5}, "order=5"), ({"order": True}, "order=True"),
    ({"order": 2, "variable": "plain"}, "variable='plain'"), ({"order": 2, "weights": "bh3"}, "weights='bh3'")])
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        unipc(**arguments)


def test_a_fixed_history_of_predictions_is_enough() -> None:
    depths = [compile_plan(unipc(k), EDM(), nfe=12).depth for k in (1, 2, 3, 4)]
    np.testing.assert_array_equal(depths, [1, 2, 3, 4])
