"""RES: equality with its formulas written down anew, with a tableau, and its order conditions."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from odecore.phi import exponential_weights
from odecore.plan import Plan, execute
from odecore.schemes import exponential_runge_kutta
from samplers import SOLVERS, compile_plan
from samplers.dpm_solver import with_rule
from samplers.registry import solver_named
from samplers.res import RES_2S, RES_3S, slopes_in_phi_2
from samplers.solver import Solver
from samplers.variables import VARIABLES
from scoremodels.loaders import load
from scoremodels.schedule import EDM, ContinuousVP, RectifiedFlow


def phi1(z: float) -> float:
    return math.expm1(z) / z


def phi2(z: float) -> float:
    return (math.expm1(z) - z) / z**2


def denoised(x: Tensor, sigma: float) -> Tensor:
    """Some x0 that depends on state and noise."""
    return torch.tanh(x / (1.0 + sigma)) + 0.1 * torch.sin(3.0 * x)


def res_3s(x: Tensor, sigma: float, sigma_next: float, model: Callable[[Tensor, float], Tensor]) -> Tensor:
    """One step in k-diffusion's σ, after the paper's tableau with c = (0, 1/2, 1)."""
    h, gamma = math.log(sigma / sigma_next), 4.0
    middle = sigma * math.exp(-h / 2)
    k1 = model(x, sigma)
    k2 = model(math.exp(-h / 2) * x + h / 2 * phi1(-h / 2) * k1, middle)
    a32 = gamma / 2 * phi2(-h / 2) + 2.0 * phi2(-h)
    k3 = model(math.exp(-h) * x + h * ((phi1(-h) - a32) * k1 + a32 * k2), sigma_next)
    b3 = phi2(-h) / (gamma / 2 + 1)
    return math.exp(-h) * x + h * ((phi1(-h) - (gamma + 1) * b3) * k1 + gamma * b3 * k2 + b3 * k3)


def res_2m(x: Tensor, sigmas: np.ndarray, model: Callable[[Tensor, float], Tensor]) -> Tensor:
    """ComfyUI's ``res_multistep`` without noise, down to its last step, which is Euler's."""
    old, h_old = None, 0.0
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        now = model(x, sigma)
        if sigma_next == 0.0:
            return now
        h = math.log(sigma / sigma_next)
        slope = 0.0 if old is None else phi2(-h) / (h_old / h) * (now - old)
        x, old, h_old = math.exp(-h) * x + h * (phi1(-h) * now + slope), now, h
    return x


def test_the_third_order_singlestep_equals_its_formulas() -> None:
    sigmas = np.array([80.0, 20.0, 5.0, 1.0, 0.2, 0.05])
    start = torch.linspace(-100, 100, 7, dtype=torch.float64)
    x = start
    for step in zip(sigmas[:-1], sigmas[1:], strict=True):
        x = res_3s(x, *step, denoised)
    rows = exponential_runge_kutta(VARIABLES["data"](EDM(), "sample"), sigmas.tolist(), [RES_3S] * 5)
    with torch.no_grad():
        ours = execute(Plan(rows, 80.0), lambda y, t: denoised(y, float(t)), start)
    torch.testing.assert_close(ours, x, rtol=1e-12, atol=1e-12)


def test_the_solver_takes_whole_steps_of_that_tableau() -> None:
    times = [0.9, 0.6, 0.4, 0.2]
    plan = compile_plan("res-3s", ContinuousVP(), nfe=8, grid=times)
    expected = exponential_runge_kutta(VARIABLES["data"](ContinuousVP(), "epsilon"), times, [RES_3S, RES_3S, RES_2S])
    assert plan.rows == expected


@pytest.mark.parametrize("nfe", [2, 5, 8])
def test_the_second_order_multistep_equals_its_formulas_on_a_pretrained_model(nfe: int) -> None:
    model = load("fashion-mnist-edm")
    plan = compile_plan("res-2m", model.schedule, nfe=nfe, prediction=model.prediction)
    times = plan.about["times"]
    assert isinstance(times, list)
    start = 80.0 * torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([3, 7])
    with torch.no_grad():
        x = res_2m(start, np.asarray(times), lambda y, s: model.denoise(y, float(s), label))
        ours = execute(plan, lambda y, t: model(y, t, label), start)
    assert (ours - x).norm() <= 1e-5 * x.norm()


def test_res_2s_and_2m_are_dpm_solver_plus_plus_with_exact_quadrature() -> None:
    grid = [0.9, 0.6, 0.4, 0.2]
    tableau = exponential_runge_kutta(VARIABLES["data"](ContinuousVP(), "epsilon"), grid, [RES_2S] * 3)
    assert solver_named("res-2s") is SOLVERS["dpm-solver++-2s"]
    for ours, theirs in zip(compile_plan("res-2s", ContinuousVP(), nfe=6, grid=grid).rows, tableau, strict=True):
        np.testing.assert_allclose(ours.anchor, theirs.anchor, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(ours.point, theirs.point, rtol=1e-12, atol=1e-15)
    published = SOLVERS["dpm-solver++-2m"]
    assert isinstance(published, Solver)
    assert compile_plan("res-2m", EDM(), nfe=7).rows == compile_plan(with_rule(published, "exact"), EDM(), nfe=7).rows


@pytest.mark.parametrize("rate", [1.0, -1.0])
def test_the_weights_meet_the_order_conditions(rate: float) -> None:
    """The zeroth and first moment exactly, the second one at z = 0: 2 (γ c_2 + c_3) = 3 (γ c_2² + c_3²)."""
    h, offsets = 0.7, (0.0, -0.4, -1.3)
    weights = np.array(slopes_in_phi_2(offsets, h, rate))
    exact = np.array(exponential_weights(offsets, h, rate))
    for power in (0, 1):
        assert weights @ np.power(offsets, power) == pytest.approx(exact @ np.power(offsets, power), rel=1e-12)
    c2, c3, gamma = offsets[1] / h, offsets[2] / h, weights[1] / weights[2]
    assert 2 * (gamma * c2 + c3) == pytest.approx(3 * (gamma * c2**2 + c3**2), rel=1e-12)


@pytest.mark.parametrize("nfe", range(1, 12))
@pytest.mark.parametrize("name", ["res-2s", "res-3s", "res-2m", "res-3m"])
def test_a_flow_is_sampled_from_pure_noise_to_the_data_with_as_many_evaluations_as_asked_for(
    name: str, nfe: int
) -> None:
    plan = compile_plan(name, RectifiedFlow(), nfe=nfe, prediction="flow", end="clean")
    x = execute(plan, lambda y, t: -y.tanh(), torch.linspace(-2, 2, 5, dtype=torch.float64))
    assert plan.nfe == nfe and plan.t_start == 1.0 and plan.rows[-1].t_next == 0.0 and x.isfinite().all()
