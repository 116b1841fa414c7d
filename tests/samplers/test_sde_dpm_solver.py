"""SDE-DPM-Solver: equality with diffusers and with k-diffusion's formulas on the same noise; exact moments."""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UNet2DModel
from torch import Tensor

from eval.convergence import convergence_order
from eval.order import MixtureProblem, smooth, uniform
from eval.order_weak import moment_errors, weak_order
from odecore.plan import Plan, Registers, execute
from odecore.schemes.variable import Rule
from samplers import Solver, compile_plan
from samplers.diffusers import FewStepScheduler
from samplers.dpm_solver import RULES, with_rule
from samplers.published import solver_with_weights
from samplers.registry import solver_named
from samplers.restart import restart
from samplers.reverse_sde import reverse_multistep
from samplers.sa_solver import SA_SOLVER
from samplers.sde_dpm_solver import DPMPP_SDE, SDE_DPM_SOLVER, dpmpp_sde, sde_dpm_solver
from scoremodels.loaders import load
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

FOLDER = Path(__file__).parents[2] / "scoremodels" / "pretrained" / "fashion-mnist-ddpm"
LINEAR = DiscreteVP.linear()
SINGLE = 1e-5
"""Relative bound in float32."""

ROUNDING_AT_FULL_NOISE = 1e-4
"""Bound for noise prediction from t = 999 in float32: a step divides by α = 1/158 and adds noise of the size of the
state, so that rounding of the state's 6e-8 counts more than a hundredfold; in float64 the bound is that of the cast to
float32 within the scheduler."""

ALGORITHMS = {"data": "sde-dpmsolver++", "noise": "sde-dpmsolver"}
ALL = (*SDE_DPM_SOLVER, *DPMPP_SDE)


@cache
def network(dtype: torch.dtype = torch.float32) -> UNet2DModel:
    return UNet2DModel.from_pretrained(FOLDER, subfolder="unet", torch_dtype=dtype).eval()


def normals(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, 1, 28, 28, generator=generator).to(dtype) for _ in range(count)]


@torch.no_grad()
def run_plan(plan: Plan, model: Callable[[Tensor, float], Tensor], x: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """Run a plan on one draw a row, whether or not the row adds it."""
    registers = Registers(x, plan.depth)
    for row, draw in zip(plan.rows, draws, strict=True):
        registers.advance(row, model(registers.point, row.t), draw)
    return registers.anchor


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def multistep(count: int, **config: Any) -> DPMSolverMultistepScheduler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sde-dpmsolver is deprecated there
        made = DPMSolverMultistepScheduler(**config)
    made.set_timesteps(count)
    return made


@torch.no_grad()
def difference(scheduler: Any, solver: Solver, dtype: torch.dtype) -> float:
    """On equal timesteps, noise and, in float64, noise levels, which the scheduler has in float32."""
    end = LINEAR.t_clean if scheduler.sigmas[-1] == 0 else LINEAR.t_min
    times = np.append(scheduler.timesteps.double().numpy(), end)
    if dtype == torch.float64:
        scheduler.sigmas = torch.from_numpy(LINEAR.ratio(times))
    start, *draws = normals(len(times), dtype)
    plan = compile_plan(solver, LINEAR, nfe=len(times) - 1, grid=times)
    ours = run_plan(plan, lambda x, t: network(dtype)(x, t).sample, start, draws)
    theirs = start
    for t, draw in zip(scheduler.timesteps, draws, strict=True):
        raw = network(dtype)(theirs, t).sample
        theirs = scheduler.step(raw, t, theirs, variance_noise=draw).prev_sample
    return relative(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("order", "weights"), [(1, "midpoint"), (2, "midpoint"), (2, "heun")])
@pytest.mark.parametrize("variable", ["data", "noise"])
def test_multistep_equals_diffusers(variable: str, order: int, weights: str, dtype: torch.dtype) -> None:
    end = "zero" if variable == "data" else "sigma_min"
    theirs = multistep(7, algorithm_type=ALGORITHMS[variable], solver_order=order, solver_type=weights,
                       final_sigmas_type=end)
    loose = variable == "noise" and dtype == torch.float32
    assert difference(theirs, sde_dpm_solver(variable, order, weights), dtype) <= (
        ROUNDING_AT_FULL_NOISE if loose else SINGLE)


@pytest.mark.parametrize("count", [8, 16])
@pytest.mark.parametrize("falls", [True, False])
def test_lower_order_final_is_that_of_diffusers(falls: bool, count: int) -> None:
    """In float64, where all of the 3e-7 is the scheduler's cast; in float32 the short last step leaves 1.4e-5."""
    theirs = multistep(count, algorithm_type="sde-dpmsolver++", solver_order=2, final_sigmas_type="sigma_min",
                       lower_order_final=falls)
    assert difference(theirs, sde_dpm_solver("data", 2, lower_order_final=falls), torch.float64) <= 1e-6


def half_of_it_negative(offsets: Sequence[float], h: float, rate: float) -> tuple[float, ...]:
    """Weigh the second difference as diffusers 0.42 does.

    Its term is ``α ((1 - e^{-z} - z)/z² - 1/2) D2``, z = 2h, D2 being h² times the second divided difference; half of
    the exact one is ``α ((1 - e^{-z} - z)/z² + 1/2) D2``. A step multiplies what is here by ``rate α``.
    """
    half: Any = RULES["multistep-midpoint"](offsets, h, rate)
    if len(offsets) < 3:
        return half
    slopes = [1 / math.prod(u - v for v in offsets if v != u) for u in offsets]
    return tuple(w - s * h**2 / rate for w, s in zip(half, slopes, strict=True))


def wrong_third_order(rule: Rule) -> Solver:
    solver = sde_dpm_solver("data", 3)
    build: Any = solver.build

    def built(path: Any, nfe: int) -> Any:
        times = path.times(nfe)
        rows, _ = build(path, nfe)
        orders = [len(row.anchor) - 2 for row in rows]
        return reverse_multistep(path.variable("data"), times, orders, [1.0] * nfe, rule=rule), times

    return replace(solver, build=built)


def test_the_third_order_of_diffusers_differs_by_the_sign_of_one_half_and_nothing_else() -> None:
    config = dict(algorithm_type="sde-dpmsolver++", solver_order=3, final_sigmas_type="sigma_min")
    right, wrong = sde_dpm_solver("data", 3, "midpoint"), wrong_third_order(half_of_it_negative)
    assert difference(multistep(8, **config), wrong, torch.float64) <= 1e-5
    assert difference(multistep(8, **config), right, torch.float64) > 0.01


def test_the_sign_of_one_half_costs_diffusers_an_order() -> None:
    assert drift_order(wrong_third_order(half_of_it_negative)) == pytest.approx(1.0, abs=0.15)
    assert drift_order(sde_dpm_solver("data", 3, "midpoint")) == pytest.approx(2.0, abs=0.15)


def test_diffusers_has_no_third_order_of_noise_prediction() -> None:
    theirs = multistep(8, algorithm_type="sde-dpmsolver", solver_order=3, final_sigmas_type="sigma_min")
    with pytest.raises(UnboundLocalError):
        difference(theirs, sde_dpm_solver("noise", 3), torch.float32)


class Replayed:
    """Noise of the two stages of a step, in place of a Brownian tree: one draw a row, joined as one path joins them."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self._draws = iter(draws)
        self._stage: tuple[float, Tensor] | None = None

    def __call__(self, sigma: Tensor, sigma_next: Tensor) -> Tensor:
        start, end = float(sigma), float(sigma_next)
        draw = next(self._draws)
        if self._stage is None:
            self._stage = (end, draw)
            return draw
        (middle, first), self._stage = self._stage, None
        share = (middle**-2 - start**-2) / (end**-2 - start**-2)
        return math.sqrt(share) * first + math.sqrt(1 - share) * draw


def two_stage_scheduler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """diffusers' scheduler, whose module imports a package of Brownian trees that is not needed here."""
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))
    module = importlib.import_module("diffusers.schedulers.scheduling_dpmsolver_sde")
    return module.DPMSolverSDEScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)


@torch.no_grad()
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_stages_equal_diffusers(dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is x/α, up to 158 times the normal draws, which in float32 leaves it 1e-4 of the data."""
    scheduler = two_stage_scheduler(monkeypatch)
    scheduler.set_timesteps(count)
    times = np.append(scheduler.timesteps[::2].double().numpy(), LINEAR.t_clean)
    plan = compile_plan(dpmpp_sde(), LINEAR, nfe=2 * count - 1, grid=times)
    start, *draws = normals(2 * count, dtype)
    ours = run_plan(plan, lambda x, t: network(dtype)(x, t).sample, start, draws)
    scheduler.noise_sampler = Replayed(draws)
    if dtype == torch.float64:
        levels = torch.from_numpy(LINEAR.ratio(times))
        scheduler.sigmas = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    told = [float(row.t) for row in plan.rows]
    assert np.abs(np.array(told) - scheduler.timesteps.numpy()).max() < 0.5  # theirs interpolates log σ between steps
    state = start * math.hypot(1.0, float(scheduler.sigmas[0]))
    for t, exact in zip(scheduler.timesteps, told, strict=True):
        raw = network(dtype)(state / math.hypot(1.0, float(LINEAR.ratio(exact))), exact).sample
        state = scheduler.step(raw, t, state).prev_sample
    assert relative(ours, state) <= (2e-4 if dtype == torch.float32 else 1e-10)


@torch.no_grad()
def test_two_stages_equal_the_singlestep_scheduler_of_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stages are points of its grid, here those of ours; it draws for each from the step's start."""
    plan = compile_plan(dpmpp_sde(), LINEAR, nfe=7)
    scheduler = DPMSolverSinglestepScheduler(algorithm_type="sde-dpmsolver++", solver_order=2, final_sigmas_type="zero")
    scheduler.set_timesteps(7)
    levels = [float(LINEAR.ratio(float(row.t))) for row in plan.rows]
    scheduler.sigmas = torch.tensor([*levels, 0.0])
    scheduler.order_list = [1, 2, 1, 2, 1, 2, 1]
    start, *draws = normals(8)
    noise = Replayed(draws)
    starts = [levels[i - i % 2] for i in range(7)]
    ends = [*levels[1:], 0.0]
    given = iter([noise(torch.tensor(a), torch.tensor(b)) for a, b in zip(starts[:6], ends[:6], strict=True)]
                 + [draws[6]])
    monkeypatch.setattr("diffusers.schedulers.scheduling_dpmsolver_singlestep.randn_tensor",
                        lambda *args, **kwargs: next(given))
    ours = run_plan(plan, lambda x, t: network()(x, t).sample, start, draws)
    state = start
    scheduler.set_begin_index(0)
    for row in plan.rows:
        state = scheduler.step(network()(state, row.t).sample, row.t, state).prev_sample
    assert relative(ours, state) <= SINGLE


def k_diffusion(
    denoise: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: Sequence[float], draws: Sequence[Tensor], *,
    order: int, heun: bool, eta: float, s_noise: float,
) -> Tensor:
    """dpmpp_2m_sde and dpmpp_3m_sde, written down from their formulas."""
    history: list[tuple[float, Tensor]] = []  # λ and denoised, newest first
    for sigma, following, draw in zip(sigmas[:-1], sigmas[1:], draws, strict=True):
        denoised = denoise(x, sigma)
        history.insert(0, (-math.log(sigma), denoised))
        if following == 0.0:
            return denoised
        h = math.log(sigma / following)
        total = (1 + eta) * h
        gain = -math.expm1(-total)
        new = math.exp(-total) * x + gain * denoised
        phi_2 = 1 - gain / total
        known = min(order, len(history))
        if known >= 2:
            first = (history[0][1] - history[1][1]) * h / (history[0][0] - history[1][0])
        if known == 2:
            new = new + (phi_2 if heun else gain / 2) * first
        if known == 3:
            r0, r1 = ((history[i][0] - history[i + 1][0]) / h for i in (0, 1))
            second = (history[1][1] - history[2][1]) / r1
            curvature = (first - second) / (r0 + r1)
            new = new + phi_2 * (first + r0 * curvature) - (phi_2 / total - 0.5) * curvature
        x = new + draw * (s_noise * following * math.sqrt(-math.expm1(-2 * eta * h)))
    return x


@torch.no_grad()
@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.5, 1.0), (1.0, 1.007), (0.0, 1.0)])
@pytest.mark.parametrize(("order", "heun"), [(2, False), (2, True), (3, True)])
def test_multistep_equals_k_diffusion(order: int, heun: bool, eta: float, s_noise: float) -> None:
    model = load("fashion-mnist-edm")
    solver = sde_dpm_solver("data", order, "heun" if heun else "midpoint", eta=eta, s_noise=s_noise,
                            lower_order_final=False)
    plan = compile_plan(solver, model.schedule, nfe=7, grid="karras", prediction=model.prediction)
    start, *draws = normals(8, torch.float64)
    x = 80.0 * start
    label = torch.tensor([3])
    to_data = {sigma: model.schedule.conversion(model.prediction, "sample", sigma) for sigma in
               (float(row.t) for row in plan.rows)}

    def raw(state: Tensor, sigma: float) -> Tensor:
        return model(state.float(), sigma, label).double()

    def denoise(state: Tensor, sigma: float) -> Tensor:
        a, b = to_data[sigma]
        return a * state + b * raw(state, sigma)

    sigmas = [*to_data, 0.0]
    theirs = k_diffusion(denoise, x, sigmas, draws, order=order, heun=heun, eta=eta, s_noise=s_noise)
    assert relative(run_plan(plan, raw, x, draws), theirs) <= SINGLE


@pytest.mark.parametrize(("name", "order", "heun"), [
    ("dpmpp-2m-sde", 2, False), ("dpmpp-2m-sde-heun", 2, True), ("dpmpp-3m-sde", 3, True)])
def test_the_names_of_k_diffusion_are_its_solvers(name: str, order: int, heun: bool) -> None:
    solver = solver_named(name)
    assert isinstance(solver, Solver)
    plan = compile_plan(solver, EDM(), nfe=6, grid="karras", prediction="sample")
    draws = list(torch.eye(7, dtype=torch.float64)[1:])
    x = 80.0 * torch.eye(7, dtype=torch.float64)[0]

    def denoise(state: Tensor, sigma: float) -> Tensor:
        return torch.tanh(state / (1 + sigma))

    sigmas = [*(float(row.t) for row in plan.rows), 0.0]
    theirs = k_diffusion(denoise, x, sigmas, draws, order=order, heun=heun, eta=1.0, s_noise=1.0)
    torch.testing.assert_close(run_plan(plan, denoise, x, draws), theirs, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("eta", "s_noise"), [(1.0, 1.0), (0.6, 1.0), (1.0, 1.05), (0.0, 1.0)])
def test_two_stages_equal_k_diffusion(eta: float, s_noise: float) -> None:
    plan = compile_plan(dpmpp_sde(eta=eta, s_noise=s_noise), EDM(), nfe=7, grid="karras", prediction="sample")
    sigmas = plan.about["times"]
    assert isinstance(sigmas, list) and len(sigmas) == 5
    basis = torch.eye(8, dtype=torch.float64)
    start, draws = 80.0 * basis[0], list(basis[1:])

    def denoise(state: Tensor, sigma: float) -> Tensor:
        return torch.tanh(state / (1 + sigma))

    def ancestral(sigma: float, to: float) -> tuple[float, float]:
        up = min(to, eta * math.sqrt(to**2 * (sigma**2 - to**2) / sigma**2))
        return math.sqrt(to**2 - up**2), up

    x = start
    for i, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        denoised = denoise(x, sigma)
        if following == 0.0:
            x = denoised
            continue
        middle = math.sqrt(sigma * following)
        (down, up), (last, last_up) = ancestral(sigma, middle), ancestral(sigma, following)
        stage = down / sigma * x + (1 - down / sigma) * denoised + s_noise * up * draws[2 * i]
        second = denoise(stage, middle)
        # The end's noise, of k-diffusion's variance, is that of the stage gone on and a draw of its own.
        shared = last / down * up
        fresh = math.sqrt(max(0.0, last_up**2 - shared**2))
        x = last / sigma * x + (1 - last / sigma) * second + s_noise * (
            shared * draws[2 * i] + fresh * draws[2 * i + 1])
    torch.testing.assert_close(run_plan(plan, denoise, start, draws), x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("end", ["clean", "minimum"])
@pytest.mark.parametrize("schedule", [LINEAR, ContinuousVP(), EDM()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("weights", ["midpoint", "exact"])
@pytest.mark.parametrize(("variable", "order", "name"), [
    ("noise", 1, "dpm-solver-1"), ("noise", 2, "dpm-solver-2m"), ("noise", 3, "dpm-solver-3m"),
    ("data", 1, "ddim"), ("data", 2, "dpm-solver++-2m"), ("data", 3, "dpm-solver++-3m")])
def test_without_noise_it_is_dpm_solver(
    variable: str, order: int, name: str, weights: str, schedule: NoiseSchedule, end: str
) -> None:
    solver = solver_named(name)
    assert isinstance(solver, Solver)
    if order > 1:
        solver = with_rule(solver, "exact" if weights == "exact" else "multistep-midpoint")
    ours, theirs = (compile_plan(s, schedule, nfe=8, grid="log-snr", end=end)
                    for s in (sde_dpm_solver(variable, order, weights, eta=0.0), solver))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    with torch.no_grad():
        first, second = (execute(plan, lambda y, t: torch.sin(y), x) for plan in (ours, theirs))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nfe", [1, 2, 5, 8])
def test_without_noise_two_stages_are_those_of_dpm_solver(nfe: int) -> None:
    singlestep = with_rule(solver_named("dpm-solver++-2s"), "singlestep-midpoint")  # type: ignore[arg-type]
    ours, theirs = (compile_plan(s, ContinuousVP(), nfe=nfe) for s in (dpmpp_sde(eta=0.0), singlestep))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    with torch.no_grad():
        first, second = (execute(plan, lambda y, t: torch.sin(y), x) for plan in (ours, theirs))
    torch.testing.assert_close(first, second, rtol=1e-12, atol=1e-12)


def test_the_first_order_is_ddpm() -> None:
    for schedule in (LINEAR, EDM(), RectifiedFlow()):
        ours, ddpm = (compile_plan(name, schedule, nfe=6, grid="time", prediction="v_prediction").rows
                      for name in ("sde-dpm-solver++-1", "ddpm"))
        for a, b in zip(ours, ddpm, strict=True):
            assert a.anchor == pytest.approx(b.anchor, rel=1e-9, abs=1e-12)
            assert a.noise == pytest.approx(b.noise, rel=1e-9, abs=1e-12)


@pytest.fixture(scope="module")
def problem() -> MixtureProblem:
    return MixtureProblem(ContinuousVP())


@cache
def with_drift(eta: float) -> MixtureProblem:
    return MixtureProblem(ContinuousVP(), strength=eta)


def drift_order(solver: Solver, eta: float = 1.0, budgets: Sequence[int] = (100, 132, 176, 232)) -> float:
    problem = with_drift(eta)

    def error(nfe: int) -> float:
        plan = compile_plan(solver, problem.schedule, nfe=nfe, grid=problem.grid(smooth),
                            prediction=problem.model.prediction, end=problem.schedule.time_of_log_snr(problem.end))
        quiet = replace(plan, rows=tuple(replace(row, noise=0.0) for row in plan.rows))
        with torch.no_grad():
            return problem.error(execute(quiet, problem.model, torch.from_numpy(problem.x_start)))

    return convergence_order(error, budgets).order


@pytest.mark.parametrize(("order", "weights"), [(1, "exact"), (2, "midpoint"), (2, "heun"), (3, "exact"), (3, "heun")])
@pytest.mark.parametrize("variable", ["data", "noise"])
def test_the_drift_has_the_declared_order_for_any_strength(variable: str, order: int, weights: str) -> None:
    solver = sde_dpm_solver(variable, order, weights, eta=2.0)
    late = 2 if order > solver.order else 1  # the third-order part of the error of half a second difference
    budgets = [late * nfe for nfe in (100, 132, 176, 232)]
    assert drift_order(solver, 2.0, budgets) == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize("solver", ALL, ids=lambda s: s.name)
def test_the_variance_converges_with_order_two_and_one(solver: Solver, problem: MixtureProblem) -> None:
    end = float(problem.schedule.time_of_log_snr(problem.end))
    measured = weak_order(solver, problem.schedule, problem.grid(uniform), end, budgets=(120, 168, 240, 336))
    assert measured.order >= min(solver.order, 2) - 0.15


@pytest.mark.parametrize("end", ["clean", "minimum"])
@pytest.mark.parametrize(("solver", "schedule"), [
    (solver, schedule) for solver in ALL
    for schedule in (LINEAR, ContinuousVP(), EDM(), VE(0.01, 50.0), RectifiedFlow())
    if solver.variable == "data" or not isinstance(schedule, RectifiedFlow)],
    ids=lambda value: getattr(value, "name", type(value).__name__))
def test_mean_and_variance_of_normal_data_are_met(solver: Solver, schedule: NoiseSchedule, end: str) -> None:
    few, many = (moment_errors(compile_plan(solver, schedule, nfe=nfe, prediction="sample", end=end), schedule)
                 for nfe in (40, 160))
    assert abs(many.mean) < 2e-3 and abs(many.variance) < 0.03
    assert abs(many.variance) < abs(few.variance) + 1e-12


def variance(schedule: NoiseSchedule, t: Any) -> float:
    """Of x_t where the data are N(0, 1/4)."""
    return float(schedule.alpha(float(t))) ** 2 / 4 + float(schedule.sigma(float(t))) ** 2


def denoised(schedule: NoiseSchedule, x: Tensor, t: Any) -> Tensor:
    """E[x0 | x] for the same data."""
    return float(schedule.alpha(float(t))) / 4 / variance(schedule, t) * x


@pytest.mark.parametrize("order", [1, 2])
def test_paths_are_met_with_order_one(order: int, problem: MixtureProblem) -> None:
    """For normal data: root mean square of the distance to a run with many steps on the same Brownian path."""
    solver, finest = sde_dpm_solver("data", order, "exact", lower_order_final=False), 2048
    schedule, end = problem.schedule, float(problem.schedule.time_of_log_snr(problem.end))
    basis, model = torch.eye(1 + finest, dtype=torch.float64), partial(denoised, schedule)

    def plan(nfe: int) -> Plan:
        return compile_plan(solver, schedule, nfe=nfe, grid=problem.grid(uniform), prediction="sample", end=end)

    fine = plan(finest)
    target = run_plan(fine, model, basis[0], list(basis[1:]))

    def error(nfe: int) -> float:
        coarse, share, draws = plan(nfe), finest // nfe, []
        for i, row in enumerate(coarse.rows):
            # What the draws of the short steps come to at the end of the long one.
            total = torch.zeros(1 + finest, dtype=torch.float64)
            for j in range(i * share, (i + 1) * share):
                total *= fine.rows[j].anchor[0]
                total[1 + j] += fine.rows[j].noise
            draws.append(total / row.noise)
            assert float(draws[-1].norm()) == pytest.approx(1.0, rel=1e-9)
        return float((run_plan(coarse, model, basis[0], draws) - target).norm())

    assert convergence_order(error, [32, 64, 128, 256]).order == pytest.approx(1.0, abs=0.15)


def test_independent_draws_for_stage_and_end_would_cost_the_variance_an_order(problem: MixtureProblem) -> None:
    end = float(problem.schedule.time_of_log_snr(problem.end))

    def error(nfe: int) -> float:
        plan = compile_plan(dpmpp_sde(), problem.schedule, nfe=nfe, grid=problem.grid(uniform), prediction="sample",
                            end=end)
        model = partial(denoised, problem.schedule)
        basis = torch.eye(1 + nfe, dtype=torch.float64)
        x = basis[0] * math.sqrt(variance(problem.schedule, plan.t_start))
        for i, (stage, last) in enumerate(zip(plan.rows[::2], plan.rows[1::2], strict=True)):
            point = stage.anchor[0] * x + stage.point[2] * model(x, stage.t) + stage.noise * basis[1 + 2 * i]
            whole = math.hypot(last.anchor[0] * stage.noise, last.noise)
            x = (stage.anchor[0] * last.anchor[0] * x + last.anchor[2] * model(point, last.t)
                 + whole * basis[2 + 2 * i])
        return abs(float(x.square().sum()) - variance(problem.schedule, end))

    budgets = [60, 84, 120, 168]
    assert convergence_order(error, budgets).order == pytest.approx(1.0, abs=0.15)
    measured = weak_order(dpmpp_sde(), problem.schedule, problem.grid(uniform), end, budgets=budgets)
    assert measured.order == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("solver", ALL, ids=lambda s: s.name)
@pytest.mark.parametrize("nfe", [1, 2, 3, 9])
def test_pure_noise_is_a_start(solver: Solver, nfe: int) -> None:
    if solver.variable == "noise":
        with pytest.raises(ValueError, match="interpolates the data"):
            compile_plan(solver, RectifiedFlow(), nfe=nfe, prediction="flow")
    else:
        plan = compile_plan(solver, RectifiedFlow(), nfe=nfe, prediction="flow")
        assert plan.nfe == nfe and plan.rows[0].anchor[0] == 0.0
        assert plan.rows[0].noise == pytest.approx(0.0 if nfe == 1 else plan.rows[0].t_next, rel=1e-12)


@pytest.mark.parametrize("begin", range(7))
@pytest.mark.parametrize("solver", [*ALL, *SA_SOLVER], ids=lambda s: s.name)
def test_a_run_from_the_middle_keeps_the_marginals_of_a_point_mass(solver: Solver, begin: int) -> None:
    """Where x0 = c is known, every start gives N(α c, σ²) at the end, also in the middle of a step of two stages."""
    schedule = ContinuousVP()
    plan = compile_plan(solver, schedule, nfe=7, end="minimum", prediction="sample")
    rows = restart(plan, begin, solver, schedule, "sample")
    assert [row.t for row in rows] == [row.t for row in plan.rows[begin:]]
    t = float(rows[0].t)
    basis = torch.eye(2 + len(rows), dtype=torch.float64)
    x = schedule.alpha(t) * basis[0] + schedule.sigma(t) * basis[1]
    end = run_plan(Plan(rows, t), lambda y, t: basis[0], x, list(basis[2:]))
    last = float(rows[-1].t_next)
    assert float(end[0]) == pytest.approx(schedule.alpha(last), rel=1e-9)
    if solver.variable == "data":
        assert float(end[1:].norm()) == pytest.approx(schedule.sigma(last), rel=1e-9)


@pytest.mark.parametrize("weights", ["midpoint", "heun", "exact"])
@pytest.mark.parametrize("name", [s.name for s in SDE_DPM_SOLVER])
def test_the_scheduler_takes_any_weights(name: str, weights: str) -> None:
    solver = solver_with_weights(name, weights)
    wanted = sde_dpm_solver(solver.variable, int(name.rstrip("m")[-1]), weights)
    end = "minimum"
    assert compile_plan(solver, LINEAR, nfe=6, end=end).rows == compile_plan(wanted, LINEAR, nfe=6, end=end).rows


def test_the_scheduler_refuses_custom_times_for_two_stages() -> None:
    scheduler = FewStepScheduler(solver="dpmpp-sde")
    with pytest.raises(ValueError, match="places its own stages"):
        scheduler.set_timesteps(timesteps=[900, 500, 100])


@pytest.mark.parametrize(("arguments", "match"), [
    ({"variable": "plain", "order": 2}, "variable='plain'"), ({"variable": "data", "order": 4}, "order=4"),
    ({"variable": "data", "order": True}, "order=True"), ({"variable": "data", "order": 2, "weights": "bh2"}, "'bh2'"),
    ({"variable": "data", "order": 2, "eta": -0.1}, "eta=-0.1"),
    ({"variable": "data", "order": 2, "s_noise": math.inf}, "s_noise=inf")])
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sde_dpm_solver(**arguments)


@pytest.mark.parametrize(("arguments", "match"), [({"eta": 1.1}, "eta=1.1"), ({"s_noise": -1.0}, "s_noise=-1.0")])
def test_two_stages_refuse_arguments_out_of_range(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        dpmpp_sde(**arguments)
