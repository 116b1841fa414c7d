"""Runge–Kutta over ρ and over flow time: equality with diffusers and azula, and the evaluations that they spend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, HeunDiscreteScheduler
from torch import Tensor

from odecore.explicit.tableaus import KUTTA3, MIDPOINT, RK4, Tableau
from odecore.plan import execute
from samplers import SOLVERS, compile_plan
from samplers.registry import solver_named
from scoremodels.loaders import load
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

ENDS = [RectifiedFlow(), DiscreteVP.linear().zero_terminal_snr(), EDM(), ContinuousVP()]
RUNGE_KUTTA = ["edm-heun", "rho-midpoint", "rho-kutta3", "rho-rk4", "flow-heun"]


def noise_predicted(x: Tensor, t: object) -> Tensor:
    """Some ε that depends on state and time."""
    return torch.sin(2 * x) + 0.1 * x + 1e-3 * float(t)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "tableau"), [("rho-midpoint", MIDPOINT), ("rho-kutta3", KUTTA3), ("rho-rk4", RK4)])
def test_a_step_over_rho_is_the_classical_one(name: str, tableau: Tableau) -> None:
    """In EDM's σ, where α = 1, ρ is the time."""
    sigmas = [3.0, 2.0, 1.0, 0.5]
    plan = compile_plan(name, EDM(), nfe=3 * tableau.stages, grid=sigmas)
    x = start = torch.linspace(-9, 9, 7, dtype=torch.float64)
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        h, slopes = sigma_next - sigma, []
        for c, row in zip(tableau.c, tableau.a, strict=True):
            point = x + h * sum((a * k for a, k in zip(row, slopes, strict=True)), start=torch.zeros_like(x))
            slopes.append(noise_predicted(point, sigma + c * h))
        x = x + h * sum(b * k for b, k in zip(tableau.b, slopes, strict=True))
    with torch.no_grad():
        torch.testing.assert_close(execute(plan, noise_predicted, start), x, rtol=1e-12, atol=1e-12)


def test_heun_over_rho_equals_diffusers_on_the_pretrained_model() -> None:
    """In float64: theirs subtracts numbers a hundred times as large as the samples."""
    model = load("fashion-mnist-ddpm").double()
    scheduler = HeunDiscreteScheduler(beta_start=1e-4, beta_end=0.02)
    scheduler.set_timesteps(4)  # all of them whole
    times = scheduler.timesteps.double().numpy()
    scheduler.sigmas = torch.from_numpy(np.append(model.schedule.ratio(times), 0.0))
    grid = np.append(np.unique(times)[::-1], model.schedule.t_clean)
    plan = compile_plan("edm-heun", model.schedule, nfe=len(scheduler.timesteps), grid=grid)
    start = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        x = start * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
        for t in scheduler.timesteps:
            x = scheduler.step(model(scheduler.scale_model_input(x, t), t.item()), t, x).prev_sample
        ours = execute(plan, model, start)
    assert solver_named("rho-heun") is SOLVERS["edm-heun"]
    assert (ours - x).norm() <= 1e-10 * x.norm()


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 3, 6])
def test_heun_over_flow_time_equals_diffusers_on_the_pretrained_model(steps: int, shift: float) -> None:
    model = load("fashion-mnist-flow")
    scheduler = FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double().unique().numpy()[::-1]
    plan = compile_plan("flow-heun", model.schedule, nfe=2 * steps - 1, grid=sigmas, prediction=model.prediction)
    start = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    x, label = start, torch.tensor([3, 7]) if model.num_classes else None
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t.item() / 1000, label), t, x).prev_sample
        ours = execute(plan, lambda y, t: model(y, t, label), start)
    assert (ours - x).norm() <= 1e-5 * x.norm()


@pytest.mark.parametrize("nfe", range(1, 14))
@pytest.mark.parametrize("schedule", ENDS, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", RUNGE_KUTTA)
def test_every_number_of_evaluations_can_be_spent_between_pure_noise_and_the_data(
    name: str, schedule: NoiseSchedule, nfe: int
) -> None:
    plan = compile_plan(name, schedule, nfe=nfe, prediction="v_prediction", end="clean")
    assert plan.nfe == nfe and all(float(schedule.sigma(float(row.t))) > 0.0 for row in plan.rows)
    assert execute(plan, lambda x, t: -x.tanh(), torch.linspace(-2, 2, 5, dtype=torch.float64)).isfinite().all()


def test_what_is_left_over_goes_to_a_step_of_lower_order_before_the_last() -> None:
    plan = compile_plan("rho-rk4", EDM(), nfe=12, end="clean")  # 4 + 4 + 3 + 1
    ends = [i for i, row in enumerate(plan.rows) if row.point == (1.0,)]
    assert ends == [3, 7, 10, 11]


def test_over_flow_time_a_heun_step_may_start_at_pure_noise() -> None:
    plan = compile_plan("flow-heun", RectifiedFlow(), nfe=3, grid=[1.0, 0.5, 0.0], prediction="flow")
    assert plan.rows[0].point != (1.0,) and plan.rows[1].anchor == (1.0, 0.0, -0.25, -0.25)


class AzulaModel:
    """Our schedule and some prediction, with the interface of azula's denoisers."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.ours = schedule

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.ours.alpha(t.numpy()), self.ours.sigma(t.numpy())
        return torch.as_tensor(alpha, dtype=torch.float64), torch.as_tensor(sigma, dtype=torch.float64)

    def __call__(self, x: Tensor, t: Tensor) -> object:
        alpha, sigma = self.schedule(t)
        posterior = type("Posterior", (), {})()
        posterior.mean = (x - sigma * noise_predicted(x, t)) / alpha
        return posterior


@pytest.mark.parametrize(("theirs", "order", "ours", "evaluations"), [
    ("zABSampler", 2, "lms-2", 6), ("zABSampler", 3, "lms-3", 6), ("vABSampler", 2, "flow-ab-2", 6),
    ("vABSampler", 3, "flow-ab-3", 6), ("vABSampler", 4, "flow-ab-4", 6), ("zEABSampler", 3, "deis-log-3", 15),
    ("xEABSampler", 2, "res-2m", 15), ("xEABSampler", 3, "dpm-solver++-3m", 15), ("HeunSampler", 2, "edm-heun", 12)])
def test_azula_has_the_same_methods(theirs: str, order: int, ours: str, evaluations: int) -> None:
    sample = pytest.importorskip("azula.sample")
    steps = evaluations // 2 if theirs == "HeunSampler" else evaluations
    options = {} if theirs == "HeunSampler" else {"order": order}
    sampler = getattr(sample, theirs)(AzulaModel(ContinuousVP()), **options, start=0.95, stop=0.05, steps=steps,
                                      silent=True, dtype=torch.float64)
    grid = np.linspace(0.95, 0.05, steps + 1)
    plan = compile_plan(ours, ContinuousVP(), nfe=evaluations, grid=grid)
    start = torch.linspace(-2, 2, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(execute(plan, noise_predicted, start), sampler(start), rtol=1e-8, atol=1e-8)
