"""DEIS: equality with diffusers, and weights against adaptive quadrature."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from diffusers import DEISMultistepScheduler
from scipy.integrate import quad

from samplers import compile_plan
from samplers.deis import deis, time_weights
from samplers.dpm_solver import TAPER_BELOW
from samplers.lms import lms
from samplers.multistep import ALWAYS
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow


@pytest.mark.parametrize("falls", [True, False])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_polynomials_over_the_logarithm_equal_diffusers(
    order: int, falls: bool, difference_from_diffusers: Callable[..., float]
) -> None:
    theirs = DEISMultistepScheduler(solver_order=order, lower_order_final=falls)
    theirs.set_timesteps(7)
    solver = deis(order, "log-ratio", taper_below=TAPER_BELOW if falls else 0)
    assert difference_from_diffusers(theirs, solver) <= 1e-12


def test_polynomials_over_the_ratio_are_the_linear_multistep_method() -> None:
    assert compile_plan(deis(3, "ratio"), EDM(), nfe=6) == compile_plan(lms(3), EDM(), nfe=6)


def test_the_third_order_over_the_logarithm_is_multistep_dpm_solver() -> None:
    ours = compile_plan(deis(3, "log-ratio", taper_below=TAPER_BELOW), ContinuousVP(), nfe=8)
    assert ours.rows == compile_plan("deis-log-3", ContinuousVP(), nfe=8).rows


def oracle(schedule: NoiseSchedule, end: float, nodes: list[float], points: list[float]) -> list[float]:
    """``∫ ℓ_j dρ`` by adaptive quadrature over t, with ρ' by parts: ``[r ℓ_j] - ∫ r ℓ_j' dt``, r = ρ - ρ(start)."""
    reference, weights = schedule.ratio(nodes[0]), []
    for node in nodes:
        others = [other for other in nodes if other != node]
        basis = np.polynomial.Polynomial.fromroots(others) / np.prod([node - other for other in others])
        slope = basis.deriv()
        integral = quad(lambda t, slope=slope: (schedule.ratio(t) - reference) * slope(t), end, nodes[0],
                        points=points or None, epsabs=1e-13, epsrel=1e-13, limit=500)[0]
        weights.append(basis(end) * (schedule.ratio(end) - reference) + integral)
    return weights


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(("schedule", "end", "nodes", "points"), [
    (ContinuousVP(), 0.3, [0.5, 0.6, 0.8, 1.0], []),
    (ContinuousVP(), 0.0, [1e-3, 0.1, 0.3, 0.6], []),
    (ContinuousVP(), 0.0, [0.4, 0.6, 0.8, 1.0], []),
    (DiscreteVP.linear(), 100.5, [130.25, 200.0, 301.5, 400.0], [float(t) for t in range(101, 131)]),
    (DiscreteVP.linear(), -1.0, [3.0, 8.0, 20.0, 50.0], [0.0, 1.0, 2.0]),
    (VE(), -1.0, [0.2, 0.4, 0.6, 0.9], [0.0]),
    (RectifiedFlow(), 0.0, [0.2, 0.5, 0.8, 0.9], []),
], ids=["vp", "vp-last", "vp-long-last", "discrete", "discrete-last", "ve-last", "flow-last"])
def test_the_weights_are_the_integrals(
    schedule: NoiseSchedule, end: float, nodes: list[float], points: list[float], count: int
) -> None:
    weights = time_weights(schedule, end, nodes[:count])
    np.testing.assert_allclose(weights, oracle(schedule, end, nodes[:count], points), rtol=1e-10, atol=1e-12)
    assert sum(weights) == pytest.approx(schedule.ratio(end) - schedule.ratio(nodes[0]), rel=1e-12)


def test_a_quadratic_in_time_is_integrated_exactly() -> None:
    """With ρ = t/(1 - t): ``∫ t² dρ = t + 2 log(1-t) + 1/(1-t)``."""
    nodes, end = [0.7, 0.8, 0.95], 0.4
    weights = time_weights(RectifiedFlow(), end, nodes)

    def primitive(t: float) -> float:
        return t + 2 * np.log(1 - t) + 1 / (1 - t)

    found = sum(w * t**2 for w, t in zip(weights, nodes, strict=True))
    assert found == pytest.approx(primitive(end) - primitive(nodes[0]), rel=1e-12)


@pytest.mark.parametrize("schedule", [EDM(0.01, 80.0), VE(0.01, 80.0), RectifiedFlow()],
                         ids=lambda s: type(s).__name__)
def test_schedules_that_preserve_no_variance_take_polynomials_over_the_time_of_one_that_does(
    schedule: NoiseSchedule
) -> None:
    process = ContinuousVP()
    ratios = np.array([80.0, 20.0, 6.0, 2.0, 0.5, 0.1])
    one = compile_plan(deis(4), process, nfe=5, grid=process.time_of_ratio(ratios))
    other = compile_plan(deis(4), schedule, nfe=5, grid=schedule.time_of_ratio(ratios))
    for ours, theirs in zip(other.rows, one.rows, strict=True):  # in x/α the weights are the same
        scale = schedule.alpha(float(ours.t_next)) / process.alpha(float(theirs.t_next))
        np.testing.assert_allclose(ours.anchor[2:], np.array(theirs.anchor[2:]) * scale, rtol=1e-8)


@pytest.mark.parametrize("nfe", [1, 2, 3, 8])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), DiscreteVP.linear().zero_terminal_snr(), EDM()])
def test_the_ends_are_finite(schedule: NoiseSchedule, nfe: int) -> None:
    plan = compile_plan(deis(4), schedule, nfe=nfe, grid="time", prediction="v_prediction", end="clean")
    assert plan.nfe == nfe and float(schedule.sigma(plan.rows[-1].t_next)) == 0.0


def test_the_order_falls_if_asked_to() -> None:
    plan = compile_plan(deis(3, taper_below=ALWAYS), ContinuousVP(), nfe=20)
    assert [len(row.anchor) - 2 for row in plan.rows] == [1, 2, *[3] * 16, 2, 1]


@pytest.mark.parametrize(("arguments", "match"), [
    ((0,), "order=0"), ((5, "ratio"), "order=5"), ((2, "logsnr"), "polynomial='logsnr'")])
def test_arguments_out_of_range_are_refused(arguments: tuple, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        deis(*arguments)
