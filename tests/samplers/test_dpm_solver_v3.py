"""DPM-Solver-v3: the paper's equations by other means, its limits, its order, and how it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from eval.convergence import convergence_order
from eval.order import MixtureProblem, smooth
from odecore.plan import Plan, execute
from samplers.compile import compile_plan
from samplers.dpm_solver import with_rule
from samplers.dpm_solver_v3 import dpm_solver_v3
from samplers.first_step import analytic_first_step
from samplers.last_step import denoise_to_zero
from samplers.model_statistics import ModelStatistics
from samplers.registry import solver_named
from samplers.solver import Solver
from samplers.unipc import unic
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

LINEAR = DiscreteVP.linear()
SCHEDULES = [LINEAR, ContinuousVP(), EDM()]


def wavy(schedule: NoiseSchedule, knots: int = 9, shape: Sequence[int] = (4,)) -> ModelStatistics:
    """Statistics of no model, different for each element, over the finite part of the way."""
    least = max(float(schedule.log_snr(schedule.t_max)), -7.0)
    place = torch.linspace(least, float(schedule.log_snr(schedule.t_min)), knots, dtype=torch.float64)
    phase = torch.arange(math.prod(shape), dtype=torch.float64).reshape(1, *shape)
    at = place.reshape(-1, *[1] * len(shape))
    return ModelStatistics(place, 0.5 + 0.4 * torch.tanh(at / 2 + 0.2 * phase), 0.3 * torch.sin(at / 2 + phase) - 0.4,
                           0.2 * torch.cos(at / 3 + phase))


def network(schedule: NoiseSchedule) -> Callable[[Tensor, float | Tensor], Tensor]:
    return lambda x, t: torch.sin(x) + 0.1 * float(t) / schedule.t_max


def start(schedule: NoiseSchedule, shape: Sequence[int] = (4,)) -> Tensor:
    noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise * schedule.prior_scale(float(schedule.t_max))


class Reference:
    """Algorithm 1 and 2 of the paper for one element, each integral an initial value problem of SciPy."""

    def __init__(self, statistics: ModelStatistics, element: int, schedule: NoiseSchedule) -> None:
        self.knots = statistics.log_snr.numpy()
        self.l, self.s, self.b = (v[:, element].numpy() for v in
                                  (statistics.linear, statistics.slope, statistics.constant))
        self.schedule = schedule

    def integrals(self, start: float, end: float, powers: int) -> np.ndarray:
        """L, S, B at the end, ``∫ E (λ - λ_s)^k`` and ``∫ E B``, with ``E = e^{L+S}``; all relative to the start."""
        def slopes(at: float, y: np.ndarray) -> list[float]:
            linear, s, b = (np.interp(at, self.knots, v) for v in (self.l, self.s, self.b))
            kernel = math.exp(y[0] + y[1])
            return [linear, s, math.exp(-y[1]) * b, *(kernel * (at - start) ** k for k in range(powers)), kernel * y[2]]

        y = np.zeros(4 + powers)
        between = self.knots[(self.knots > min(start, end)) & (self.knots < max(start, end))]
        places = [start, *(between if end > start else between[::-1]), end]
        for a, c in zip(places[:-1], places[1:], strict=True):  # the statistics have corners at the knots
            y = solve_ivp(slopes, (a, c), y, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
        return y

    def step(self, clocks: list[float], f: list[float], x: float, end: float, pseudo: bool) -> float:
        """From x at ``clocks[0]``; f at all of them, one of which may be the end."""
        alpha_s, alpha_t = (self.schedule.alpha(self.schedule.time_of_log_snr(c)) for c in (clocks[0], end))
        order = len(clocks)
        total = self.integrals(clocks[0], end, order)
        relative = [self.integrals(clocks[0], c, 0)[:3] if c != clocks[0] else np.zeros(3) for c in clocks]
        g = [math.exp(-y[1]) * value - y[2] for y, value in zip(relative, f, strict=True)]
        offsets = np.array(clocks) - clocks[0]
        if pseudo:
            table, derivatives = list(g), [g[0]]
            for k in range(1, order):
                table = [(table[j] - table[j + 1]) / (offsets[j] - offsets[j + k]) for j in range(order - k)]
                derivatives.append(table[0] * math.factorial(k))
        else:
            taylor = np.linalg.solve(np.vander(offsets, increasing=True), g)
            derivatives = [t * math.factorial(k) for k, t in enumerate(taylor)]
        shift = sum(d / math.factorial(k) * total[3 + k] for k, d in enumerate(derivatives)) + total[-1]
        return alpha_t * math.exp(-total[0]) * (x / alpha_s - shift)

    def sample(
        self, x: float, times: list[float], order: int, pseudo: bool, corrector: str | None,
        epsilon: Callable[[float, float], float],
    ) -> float:
        clocks = [float(self.schedule.log_snr(t)) for t in times]
        past: list[tuple[float, float, float]] = []  # clock, f, x; newest first
        steps, used = len(times) - 1, 0
        for i in range(steps):
            sigma, alpha = self.schedule.sigma(times[i]), self.schedule.alpha(times[i])
            linear = float(np.interp(clocks[i], self.knots, self.l))
            f = (sigma * epsilon(x, times[i]) - linear * x) / alpha
            count = used + (corrector == "pseudo")
            if corrector is not None and i > 0 and count > 1:
                kept = [past[0], (clocks[i], f, x), *past[1:count - 1]]
                x = self.step([k[0] for k in kept], [k[1] for k in kept], past[0][2], clocks[i], corrector == "pseudo")
            past = [(clocks[i], f, x), *past]
            used = min(order, i + 1, steps - i)
            x = self.step([k[0] for k in past[:used]], [k[1] for k in past[:used]], x, clocks[i + 1], pseudo)
        return x


@pytest.mark.parametrize("corrector", [None, "full", "pseudo"])
@pytest.mark.parametrize(("order", "predictor"), [(1, "full"), (2, "full"), (3, "full"), (3, "pseudo")])
def test_plans_equal_the_equations_of_the_paper(order: int, predictor: str, corrector: str | None) -> None:
    schedule = ContinuousVP()
    statistics = wavy(schedule, shape=(2,))
    plan = compile_plan(dpm_solver_v3(statistics, order, predictor=predictor, corrector=corrector), schedule, nfe=5)
    x = start(schedule, (2,))[:1]
    mine = execute(plan, network(schedule), x)
    times = plan.about["times"]
    assert isinstance(times, list)
    for element in range(2):
        other = Reference(statistics, element, schedule).sample(
            float(x[0, element]), times, order, predictor == "pseudo", corrector,
            lambda y, t: math.sin(y) + 0.1 * t / schedule.t_max)
        assert float(mine[0, element]) == pytest.approx(other, rel=1e-8)


@pytest.mark.parametrize("end", ["minimum", "clean"])
@pytest.mark.parametrize(("order", "name"), [(1, "ddim"), (2, "dpm-solver++-2m"), (3, "dpm-solver++-3m")])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_with_the_data_prediction_it_is_dpm_solver_plus_plus(
    schedule: NoiseSchedule, order: int, name: str, end: str
) -> None:
    statistics = ModelStatistics.of_data_prediction(*(float(schedule.log_snr(t)) for t in
                                                      (schedule.t_max, schedule.t_min)))
    theirs = solver_named(name)
    assert isinstance(theirs, Solver)
    theirs = theirs if order == 1 else with_rule(theirs, "exact")
    plans = [compile_plan(solver, schedule, nfe=8, grid="log-snr", end=end)
             for solver in (dpm_solver_v3(statistics, order, corrector=None), theirs)]
    mine, other = (execute(plan, network(schedule), start(schedule)) for plan in plans)
    assert (mine - other).abs().max() <= 1e-10 * other.abs().max()


@pytest.mark.parametrize(("order", "name"), [(2, "dpm-solver-2m"), (3, "dpm-solver-3m")])
def test_with_the_noise_prediction_it_is_dpm_solver(order: int, name: str) -> None:
    # l = 0 makes f = e^{-λ} ε, and s = -1 takes the kernel out of it.
    data = ModelStatistics.of_data_prediction(*(float(LINEAR.log_snr(t)) for t in (LINEAR.t_max, LINEAR.t_min)))
    statistics = replace(data, linear=0.0 * data.linear, slope=-data.linear)
    theirs = solver_named(name)
    assert isinstance(theirs, Solver)
    plans = [compile_plan(solver, LINEAR, nfe=8, grid="log-snr")
             for solver in (dpm_solver_v3(statistics, order, corrector=None), with_rule(theirs, "exact"))]
    mine, other = (execute(plan, network(LINEAR), start(LINEAR)) for plan in plans)
    assert (mine - other).abs().max() <= 1e-10 * other.abs().max()


def test_one_step_is_exact_for_normally_distributed_data() -> None:
    schedule, mean, variance = ContinuousVP(), torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 2.0]).double()
    place = torch.linspace(float(schedule.log_snr(1.0)), float(schedule.log_snr(1e-3)), 4001, dtype=torch.float64)
    linear = 1 / (1 + variance * torch.exp(2 * place[:, None]))  # σ² / (α² v + σ²)
    change = -2 * linear * (1 - linear)
    statistics = ModelStatistics(place, linear, 0.0 * linear, -change * mean)  # f = -l μ

    def epsilon(x: Tensor, t: float | Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(float(t)), schedule.sigma(float(t))
        return sigma * (x - alpha * mean) / (alpha**2 * variance + sigma**2)

    x = start(schedule, (2,))
    got = execute(compile_plan(dpm_solver_v3(statistics, 1), schedule, nfe=1), epsilon, x)
    spread = [(schedule.alpha(t) ** 2 * variance + schedule.sigma(t) ** 2).sqrt() for t in (1.0, 1e-3)]
    exact = schedule.alpha(1e-3) * mean + spread[1] / spread[0] * (x - schedule.alpha(1.0) * mean)
    torch.testing.assert_close(got, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("order", "corrector", "measured"), [
    (1, None, 1), (2, None, 2), (3, None, 3), (1, "pseudo", 2), (2, "full", 2), (3, "full", 3), (3, "pseudo", 2)])
def test_it_converges_with_its_order_whatever_the_statistics(order: int, corrector: str | None, measured: int) -> None:
    problem = MixtureProblem(ContinuousVP())
    statistics = wavy(problem.schedule, 2, (2,))  # without inner knots f is smooth
    end = float(problem.schedule.time_of_log_snr(problem.end))
    solver = dpm_solver_v3(statistics, order, corrector=corrector)

    def error(steps: int) -> float:
        plan = compile_plan(solver, problem.schedule, nfe=steps, grid=problem.grid(smooth), prediction="sample",
                            end=end)
        with torch.no_grad():
            return problem.error(execute(plan, problem.model, torch.from_numpy(problem.x_start)))

    # The corrected third order comes down to its slope late, with an error a tenth of the predictor's.
    steps = [336, 480, 672, 960] if (order, corrector) == (3, "full") else [60, 84, 120, 168]
    assert convergence_order(error, steps).order == pytest.approx(measured, abs=0.15)


def test_the_plan_survives_json_and_float32() -> None:
    schedule = ContinuousVP()
    plan = compile_plan(dpm_solver_v3(wavy(schedule)), schedule, nfe=6)
    again = Plan.from_json(plan.to_json())
    x = start(schedule)
    assert torch.equal(execute(plan, network(schedule), x), execute(again, network(schedule), x))
    single = execute(plan, network(schedule), x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), execute(plan, network(schedule), x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), LINEAR.zero_terminal_snr()], ids=lambda s: s.kind)
@pytest.mark.parametrize("end", ["minimum", "clean"])
@pytest.mark.parametrize("nfe", [1, 2, 3, 7])
def test_it_starts_from_pure_noise_and_ends_without(schedule: NoiseSchedule, end: str, nfe: int) -> None:
    plan = compile_plan(dpm_solver_v3(wavy(schedule)), schedule, nfe=nfe, end=end, prediction="v_prediction")
    assert plan.nfe == nfe
    assert execute(plan, network(schedule), start(schedule)).isfinite().all()


def test_what_cannot_be_is_refused() -> None:
    statistics = wavy(EDM())
    with pytest.raises(ValueError, match="order=4"):
        dpm_solver_v3(statistics, 4)
    with pytest.raises(ValueError, match="predictor="):
        dpm_solver_v3(statistics, 3, predictor="half")
    with pytest.raises(ValueError, match="corrector="):
        dpm_solver_v3(statistics, 3, corrector="half")
    with pytest.raises(ValueError, match="on the whole way"):
        compile_plan(dpm_solver_v3(statistics), EDM(sigma_max=500.0), nfe=5)
    with pytest.raises(ValueError, match="quantity of its own"):
        analytic_first_step(dpm_solver_v3(statistics))
    for wrapped in (unic, denoise_to_zero):
        with pytest.raises(ValueError, match="cannot be wrapped"):
            compile_plan(wrapped(dpm_solver_v3(statistics)), EDM(), nfe=5)
