"""SA-Solver: equality with diffusers on the same noise, with UniPC without noise; orders and moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import SASolverScheduler, UNet2DModel

from eval.convergence import convergence_order
from eval.order import MixtureProblem, smooth
from eval.order_weak import moment_errors
from odecore.plan import Registers, execute
from odecore.schemes.predictor_corrector import corrected, with_corrector
from samplers import Solver, compile_plan
from samplers.dpm_solver import SINGLESTEP
from samplers.sa_solver import FULL, MIDDLE, Tau, between, constant, sa_solver
from samplers.sde_dpm_solver import sde_dpm_solver
from samplers.solver import Path as Way
from samplers.unipc import unip, unipc
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

FOLDER = Path(__file__).parents[2] / "scoremodels" / "pretrained" / "fashion-mnist-ddpm"
LINEAR = DiscreteVP.linear()
EXACT = 1e-12
SINGLE = 1e-5
"""Relative bound in float32, over data. Noise prediction divides by α = 1/158 at t = 999, and diffusers integrates in
differences of its levels in float32; there the comparison is in float64."""

@cache
def network(dtype: torch.dtype) -> UNet2DModel:
    return UNet2DModel.from_pretrained(FOLDER, subfolder="unet", torch_dtype=dtype).eval()


@torch.no_grad()
def difference(
    solver: Solver, count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, **config: Any
) -> float:
    """On equal timesteps, noise and, in float64, noise levels."""
    scheduler = SASolverScheduler(**config)
    scheduler.set_timesteps(count)
    times = np.append(scheduler.timesteps.double().numpy(), LINEAR.t_min)
    if dtype == torch.float64:
        scheduler.sigmas = torch.from_numpy(LINEAR.ratio(times))
    generator = torch.Generator().manual_seed(0)
    start, *draws = (torch.randn(1, 1, 28, 28, generator=generator).to(dtype) for _ in range(count + 1))
    plan = compile_plan(solver, LINEAR, nfe=count, grid=times)
    registers = Registers(start, plan.depth)
    for row, draw in zip(plan.rows, draws, strict=True):
        registers.advance(row, network(dtype)(registers.point, row.t).sample, draw)
    given, state = iter(draws), start
    monkeypatch.setattr("diffusers.schedulers.scheduling_sasolver.randn_tensor", lambda *args, **kwargs: next(given))
    for t in scheduler.timesteps:
        state = scheduler.step(network(dtype)(state, t).sample, t, state).prev_sample
    return float((registers.anchor - state).abs().max() / state.abs().max())


@pytest.mark.parametrize(("predictor", "corrector"), [(1, 1), (1, 2), (2, 2), (2, 4), (3, 1), (3, 3), (3, 4), (4, 4)])
@pytest.mark.parametrize("variable", ["data", "noise"])
def test_sa_solver_equals_diffusers(
    variable: str, predictor: int, corrector: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = sa_solver(predictor, corrector, variable, tau=MIDDLE)
    assert difference(solver, 8, torch.float64, monkeypatch, predictor_order=predictor, corrector_order=corrector,
                      algorithm_type=f"{variable}_prediction") <= EXACT


@pytest.mark.parametrize(("predictor", "corrector"), [(2, 2), (3, 4)])
def test_sa_solver_equals_diffusers_in_single_precision(
    predictor: int, corrector: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = sa_solver(predictor, corrector, tau=MIDDLE)
    assert difference(solver, 8, torch.float32, monkeypatch, predictor_order=predictor,
                      corrector_order=corrector) <= SINGLE


@pytest.mark.parametrize("variable", ["data", "noise"])
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_sa_solver_equals_diffusers_for_any_tau_without_lower_orders_at_the_end(
    tau: float, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = sa_solver(3, 3, variable, tau=constant(tau), lower_order_final=False)
    assert difference(solver, 8, torch.float64, monkeypatch, predictor_order=3, corrector_order=3,
                      algorithm_type=f"{variable}_prediction", tau_func=lambda t: tau,
                      lower_order_final=False) <= EXACT


@pytest.mark.parametrize("end", ["clean", "minimum"])
@pytest.mark.parametrize("schedule", [LINEAR, ContinuousVP(), EDM()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variable", ["data", "noise"])
def test_without_noise_it_is_unipc(variable: str, order: int, schedule: NoiseSchedule, end: str) -> None:
    weights = "bh1" if variable == "data" else "exact"
    pairs = [(sa_solver(order, order + 1, variable, tau=constant(0.0)), unipc(order, variable, weights)),
             (sa_solver(order, 0, variable, tau=constant(0.0)), unip(order, variable, weights))]
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for pair in pairs:
        plans = [compile_plan(s, schedule, nfe=8, grid="log-snr", end=end) for s in pair]
        with torch.no_grad():
            ours, theirs = (execute(plan, lambda y, t: torch.sin(y), x) for plan in plans)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variable", ["data", "noise"])
def test_the_predictor_alone_with_the_noise_of_the_forward_process_is_sde_dpm_solver(
    variable: str, order: int
) -> None:
    ours = sa_solver(order, 0, variable, tau=FULL, weights="exact", lower_order_final=False)
    theirs = sde_dpm_solver(variable, order, "exact", lower_order_final=False)
    assert compile_plan(ours, EDM(), nfe=7, end="minimum").rows == compile_plan(
        theirs, EDM(), nfe=7, grid=compile_plan(ours, EDM(), nfe=7, end="minimum").about["times"]).rows


@cache
def problem(strength: float) -> MixtureProblem:
    return MixtureProblem(ContinuousVP(), strength=strength)


@pytest.mark.parametrize(("predictor", "corrector", "variable", "tau"), [
    (1, 0, "data", 1.0), (1, 2, "data", 1.0), (2, 0, "noise", 0.5), (2, 2, "data", 1.5), (2, 3, "noise", 1.0),
    (3, 2, "data", 1.0), (3, 4, "data", 0.7), (4, 0, "noise", 0.5), (4, 3, "data", 1.0)])
def test_the_drift_has_the_declared_order(predictor: int, corrector: int, variable: str, tau: float) -> None:
    solver, target = sa_solver(predictor, corrector, variable, tau=constant(tau)), problem(tau**2)

    def error(nfe: int) -> float:
        plan = compile_plan(solver, target.schedule, nfe=nfe, grid=target.grid(smooth), prediction="sample",
                            end=target.schedule.time_of_log_snr(target.end))
        quiet = replace(plan, rows=tuple(replace(row, noise=0.0) for row in plan.rows))
        with torch.no_grad():
            return target.error(execute(quiet, target.model, torch.from_numpy(target.x_start)))

    assert solver.order == (min(corrector, predictor + 1) if corrector else predictor)
    assert convergence_order(error, [120, 160, 220, 300]).order == pytest.approx(solver.order, abs=0.15)


@pytest.mark.parametrize("end", ["clean", "minimum"])
@pytest.mark.parametrize("schedule", [LINEAR, ContinuousVP(), EDM(), VE(0.01, 50.0), RectifiedFlow()],
                         ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("orders", "tau"), [((2, 2), MIDDLE), ((2, 2), lambda ratio: 1 / (1 + ratio)), ((3, 4), FULL)],
                         ids=["middle", "falling", "full"])
def test_mean_and_variance_of_normal_data_are_met(
    orders: tuple[int, int], tau: Tau, schedule: NoiseSchedule, end: str
) -> None:
    plan = compile_plan(sa_solver(*orders, tau=tau), schedule, nfe=120, grid="karras", prediction="sample", end=end)
    errors = moment_errors(plan, schedule)
    assert abs(errors.mean) < 2e-3 and abs(errors.variance) < 5e-3


def test_the_usual_tau_is_that_of_diffusers() -> None:
    for t in np.arange(1000.0):
        assert MIDDLE(float(LINEAR.ratio(float(t)))) == (1.0 if 200 <= t <= 800 else 0.0)


def test_noise_is_added_between_the_levels_alone() -> None:
    plan = compile_plan(sa_solver(tau=between(1.0, 0.5, 5.0)), EDM(), nfe=20, grid="log-snr")
    assert {0.5 <= float(row.t) <= 5.0 for row in plan.rows if row.noise != 0.0} == {True}
    assert all(row.noise != 0.0 for row in plan.rows if 0.5 <= float(row.t) <= 5.0)


@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("orders", list(product((1, 2, 3, 4), (0, 1, 2, 3, 4))))
def test_pure_noise_and_clean_data_are_ends(orders: tuple[int, int], nfe: int) -> None:
    for falls in (True, False):
        plan = compile_plan(sa_solver(*orders, tau=FULL, lower_order_final=falls), RectifiedFlow(), nfe=nfe,
                            prediction="flow")
        assert plan.nfe == nfe and plan.rows[0].anchor[0] == 0.0 and plan.rows[-1].noise == 0.0


def by_two_states(rows: Sequence[Any], correctors: Sequence[Sequence[float]], network: Any, draws: Any) -> float:
    """Predict, evaluate, correct from the state before; the noise of a step is the same in both."""
    accepted = point = 0.7
    predictions: list[float] = []
    for i, row in enumerate(rows):
        predictions.insert(0, network(point, row.t))
        if i > 0 and correctors[i - 1]:
            before, noise = rows[i - 1], rows[i - 1].noise * draws[i - 1]
            start = accepted
            accepted = before.anchor[0] * start + noise + sum(
                w * m for w, m in zip(correctors[i - 1], predictions, strict=False))
        elif i > 0:
            accepted = point
        point = row.anchor[0] * accepted + row.noise * draws[i] + sum(
            w * m for w, m in zip(row.anchor[2:], predictions, strict=False))
    return point


def test_one_combination_a_row_does_what_predictor_and_corrector_do_with_the_same_noise() -> None:
    way = Way(EDM(), "sample", np.array([5.0, 3.0, 2.0, 1.2, 0.7, 0.3]), 0.3)
    rows, _ = sde_dpm_solver("data", 3, "exact", lower_order_final=False).build(way, 5)
    correctors = [[0.2, 0.5], [], [0.1, 0.3, -0.2], [0.4], [0.3, 0.2, 0.1, -0.1, 0.05]][:4]
    draws = [0.3, -1.1, 0.8, 0.4, -0.6]

    def model(x: float, t: float) -> float:
        return float(np.sin(3 * x) + t)

    registers = Registers(torch.tensor(0.7, dtype=torch.float64), 6)
    for row, draw in zip(corrected(rows, correctors), draws, strict=True):
        raw = torch.tensor(model(float(registers.point), float(row.t)), dtype=torch.float64)
        registers.advance(row, raw, torch.tensor(draw, dtype=torch.float64))
    assert float(registers.anchor) == pytest.approx(by_two_states(rows, correctors, model, draws), rel=1e-12)


def test_a_corrector_of_the_ode_refuses_noise_and_any_corrector_refuses_inner_stages() -> None:
    way = Way(EDM(), "sample", np.array([5.0, 3.0, 2.0]), 2.0)
    rows, _ = sde_dpm_solver("data", 2).build(way, 2)
    with pytest.raises(ValueError, match="rows add noise"):
        with_corrector(way.variable("data"), rows)
    staged, _ = SINGLESTEP[1].build(replace(way, grid=np.array([5.0, 2.0])), 2)
    with pytest.raises(ValueError, match="no step of a multistep scheme"):
        corrected(staged, [[0.5, 0.5]])


@pytest.mark.parametrize(("arguments", "match"), [
    ({"predictor": 0}, "order=0"), ({"predictor": 5}, "order=5"), ({"corrector": 5}, "corrector=5"),
    ({"corrector": -1}, "corrector=-1"), ({"corrector": True}, "corrector=True"),
    ({"variable": "plain"}, "variable='plain'"), ({"weights": "bh2"}, "weights='bh2'")])
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sa_solver(**arguments)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_tau_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="τ must be a finite number"):
        compile_plan(sa_solver(tau=constant(value)), EDM(), nfe=4)
