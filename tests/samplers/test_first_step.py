"""The analytic first step: equality with the solver whose first evaluation is replaced by the known prediction."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from eval.order import MixtureProblem, convergence_order
from odecore.plan import Plan, execute
from samplers import SOLVERS, Solver, compile_plan, sample
from samplers.first_step import analytic_first_step, known_prediction
from samplers.ipndm import ipndm
from samplers.last_step import denoise_to_zero
from samplers.published import solver_with_weights
from samplers.registry import solver_named
from samplers.solver import Path
from samplers.unipc import unic
from scoremodels.loaders import load
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

DETERMINISTIC = [s for s in SOLVERS.values() if isinstance(s, Solver) and not s.stochastic]
SCHEDULES = [DiscreteVP.linear(), EDM(), RectifiedFlow()]


def network(x: Tensor, t: object) -> Tensor:
    """Some prediction that depends on state and time."""
    return torch.tanh(x / 3.0) + 0.1 * x + 1e-3 * float(t)  # type: ignore[arg-type]


def replaced(plan: Plan, solver: Solver, schedule: NoiseSchedule, prediction: str, x: Tensor) -> Tensor:
    """The result of a plan whose first row meets a network that predicts what is known."""
    path = Path(schedule, prediction, np.asarray(plan.about["times"]), 0.0)
    known = known_prediction(path, solver.variable, float(plan.t_start))
    a, b = (float(w) for w in plan.rows[0].to_prediction)
    count = iter(range(plan.nfe))

    def model(y: Tensor, t: object) -> Tensor:
        return (known * y - a * y) / b if next(count) == 0 else network(y, t)

    return execute(plan, model, x)


@pytest.mark.parametrize("nfe", [1, 2, 8])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("solver", DETERMINISTIC, ids=lambda s: s.name)
def test_the_plan_does_what_the_solver_does_with_the_known_prediction(
    solver: Solver, schedule: NoiseSchedule, nfe: int
) -> None:
    prediction = "flow" if isinstance(schedule, RectifiedFlow) else "v_prediction"
    options = {"prediction": prediction, "grid": "karras"}
    try:
        plain = compile_plan(solver, schedule, nfe=nfe + 1, **options)
    except ValueError:
        pytest.skip("the solver itself refuses this schedule")
    ours = compile_plan(analytic_first_step(solver), schedule, nfe=nfe, **options)
    x = float(schedule.prior_scale(plain.t_start)) * torch.linspace(-2, 2, 5, dtype=torch.float64)
    with torch.no_grad():
        expected = replaced(plain, solver, schedule, prediction, x)
        result = execute(ours, network, x)
    assert ours.nfe == nfe and ours.t_start == plain.t_start
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-9)
    assert Plan.from_json(ours.to_json()) == ours


def test_a_corrector_reads_the_known_prediction_too() -> None:
    for solver in (unic(ipndm(3)), SOLVERS["unipc-3"]):
        assert isinstance(solver, Solver)
        ours = compile_plan(analytic_first_step(solver), EDM(), nfe=6)
        x = 80.0 * torch.linspace(-2, 2, 5, dtype=torch.float64)
        with torch.no_grad():
            expected = replaced(compile_plan(solver, EDM(), nfe=7), solver, EDM(), "epsilon", x)
            torch.testing.assert_close(execute(ours, network, x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [4, 6])
def test_ipndm_with_it_equals_the_loop_of_amed_solver_on_a_pretrained_model(steps: int) -> None:
    """iPNDM of order 4 in σ, with ``d = x / sqrt(1 + t²)`` in place of the first evaluation."""
    model = load("fashion-mnist-edm")
    plan = compile_plan(analytic_first_step(ipndm(4)), model.schedule, nfe=steps - 1, grid="karras", end="minimum",
                        prediction=model.prediction)
    times = plan.about["times"]
    assert isinstance(times, list) and len(times) == steps + 1
    adams = [[1.0], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    label = torch.tensor([3, 7])
    x = start = 80.0 * torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    slopes: list[Tensor] = []
    with torch.no_grad():
        for t, s in zip(times[:-1], times[1:], strict=True):
            d = (x - model.denoise(x, t, label)) / t if slopes else x / math.sqrt(1.0 + t**2)
            slopes = [d, *slopes[:3]]
            x = x + (s - t) * sum(w * k for w, k in zip(adams[len(slopes) - 1], slopes, strict=True))
        ours = execute(plan, lambda y, t: model(y, t, label), start)
    assert plan.nfe == steps - 1
    assert (ours - x).norm() <= 1e-5 * x.norm()


def test_sampling_spends_an_evaluation_less_for_the_same_steps() -> None:
    model = load("fashion-mnist-flow")
    calls: list[float] = []
    solver = analytic_first_step(ipndm(3))
    model.network.register_forward_hook(lambda _module, arguments, _output: calls.append(float(arguments[1][0])))
    result = sample(model, num=2, solver=solver, nfe=4)
    plain = compile_plan(ipndm(3), model.schedule, nfe=5, prediction=model.prediction)
    assert result.nfe == len(calls) == 4 and result.samples.isfinite().all()
    assert calls == pytest.approx([float(row.t) for row in plain.rows[1:]], rel=1e-6)


@pytest.mark.parametrize("schedule", [*SCHEDULES, VE(), DiscreteVP.linear().zero_terminal_snr()],
                         ids=lambda s: type(s).__name__)
def test_the_known_prediction_is_that_of_one_noise_in_every_variable(schedule: NoiseSchedule) -> None:
    t = float(schedule.t_max)
    path = Path(schedule, "epsilon", "time", 0.0)  # type: ignore[arg-type]
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    data, noise, flow = (known_prediction(path, name, t) for name in ("data", "noise", "flow"))
    assert alpha * data + sigma * noise == pytest.approx(1.0, rel=1e-14) and flow == noise - data
    assert noise == pytest.approx(1.0 / math.hypot(alpha, sigma))


def test_it_costs_an_order_but_no_evaluation() -> None:
    problem = MixtureProblem(ContinuousVP())
    solver = analytic_first_step(ipndm(2))
    end = float(problem.schedule.time_of_log_snr(problem.end))

    def error(nfe: int) -> float:
        plan = compile_plan(solver, problem.schedule, nfe=nfe, grid=problem.grid(lambda u: u),
                            prediction=problem.model.prediction, end=end)
        with torch.no_grad():
            return problem.error(execute(plan, problem.model, torch.from_numpy(problem.x_start)))

    assert convergence_order(error, [60, 84, 120, 168]).order == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize("solver", [SOLVERS["ddpm"], analytic_first_step(ipndm(2))], ids=lambda s: s.name)
def test_solvers_that_add_noise_or_have_it_already_are_refused(solver: Solver) -> None:
    with pytest.raises(ValueError, match="choose another"):
        analytic_first_step(solver)


@pytest.mark.parametrize("wrapper", [unic, denoise_to_zero])
def test_it_is_the_last_of_the_wrappers(wrapper: Callable[[Solver], Solver]) -> None:
    with pytest.raises(ValueError, match="afs"):
        wrapper(analytic_first_step(ipndm(2)))


def test_its_name_leads_to_it() -> None:
    named, wrapped = (compile_plan(s, EDM(), nfe=5) for s in ("ipndm-3+afs", analytic_first_step(ipndm(3))))
    assert named == wrapped and solver_named("ipndm-v-3+denoise+afs").name == "lms-3+denoise+afs"
    with pytest.raises(ValueError, match="chooses its own steps"):
        solver_named("dpm-solver-12+afs")
    with pytest.raises(ValueError, match="ipndm-3[+]asf' is unknown"):
        solver_named("ipndm-3+asf")


def test_a_scheduler_refuses_it() -> None:
    with pytest.raises(ValueError, match="leave '[+]afs' out"):
        solver_with_weights("ipndm-3+afs", None)
