"""STORK-2: equality with the Runge–Kutta–Gegenbauer recurrence run on a polynomial, and its moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from odecore.plan import execute
from samplers import compile_plan
from samplers.stork import gegenbauer, gegenbauer_moments, stork
from scoremodels.loaders import load
from scoremodels.schedule import DiscreteVP, NoiseSchedule, RectifiedFlow


def b(j: int) -> float:
    return {0: 1.0, 1: 1 / 3}.get(j) or 4 * (j - 1) * (j + 4) / (3 * j * (j + 1) * (j + 2) * (j + 3))


def step(x: Tensor, t: float, s: float, nodes: list[float], velocities: list[Tensor], stages: int) -> Tensor:
    """All stages of one step, on states; the velocity between is the polynomial through the newest three."""
    def velocity(time: float) -> Tensor:
        bases = [np.prod([(time - other) / (node - other) for other in nodes if other != node]) for node in nodes]
        return sum(float(basis) * v for basis, v in zip(bases, velocities, strict=True))

    h, w = s - t, 6 / ((stages + 4) * (stages - 1))
    places, states = [0.0, w], [x, x + h * w * velocities[0]]
    for j in range(2, stages + 1):
        mu, nu = (2 * j + 1) * b(j) / (j * b(j - 1)), -(j + 1) * b(j) / (j * b(j - 2))
        gamma = -mu * w * (1 - j * (j + 1) * b(j - 1) / 2)
        states.append(mu * states[-1] + nu * states[-2] + (1 - mu - nu) * x
                      + h * mu * w * velocity(t + places[-1] * h) + h * gamma * velocities[0])
        places.append(mu * places[-1] + nu * places[-2] + mu * w + gamma)
    assert places[-1] == pytest.approx(1.0)
    return states[-1]


@pytest.mark.parametrize("stages", [3, 10, 50])
def test_it_equals_the_stages_run_one_by_one_on_a_pretrained_model(stages: int) -> None:
    model = load("fashion-mnist-flow")
    plan = compile_plan(stork(stages), model.schedule, nfe=5, grid=[1.0, 0.85, 0.6, 0.4, 0.15, 0.0],
                        prediction=model.prediction)
    times = plan.about["times"]
    assert isinstance(times, list)
    label = torch.tensor([3, 7]) if model.num_classes else None
    x = start = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    nodes: list[float] = []
    velocities: list[Tensor] = []
    with torch.no_grad():
        for t, s in zip(times[:-1], times[1:], strict=True):
            nodes, velocities = [t, *nodes[:2]], [model(x, t, label), *velocities[:2]]
            x = step(x, t, s, nodes, velocities, stages)
        ours = execute(plan, lambda y, t: model(y, t, label), start)
    assert (ours - x).norm() <= 1e-5 * x.norm()


@pytest.mark.parametrize("stages", [3, 10, 50, 200])
def test_the_moments_up_to_the_first_are_exact_and_the_second_is_damped(stages: int) -> None:
    zeroth, first, second = gegenbauer_moments(stages, 3)
    assert zeroth == pytest.approx(1.0, rel=1e-11) and first == pytest.approx(0.5, rel=1e-11)
    assert 0.0 <= second < 0.25


def test_with_exact_moments_the_weights_are_those_of_adams_and_bashforth() -> None:
    weights = gegenbauer([0.0, -1.0, -2.0], 1.0, 0.0, moments=[1.0, 1 / 2, 1 / 3])
    np.testing.assert_allclose(weights, [23 / 12, -16 / 12, 5 / 12], rtol=1e-13)


@pytest.mark.parametrize("nfe", [1, 2, 3, 8])
@pytest.mark.parametrize("schedule", [RectifiedFlow(), DiscreteVP.linear().zero_terminal_snr()])
def test_pure_noise_and_the_data_are_its_ends(schedule: NoiseSchedule, nfe: int) -> None:
    plan = compile_plan("stork-2", schedule, nfe=nfe, prediction="v_prediction")
    x = execute(plan, lambda x, t: -x.tanh(), torch.linspace(-2, 2, 5, dtype=torch.float64))
    assert plan.nfe == nfe and float(schedule.sigma(plan.rows[-1].t_next)) == 0.0 and x.isfinite().all()


@pytest.mark.parametrize("stages", [2, 3.0, True])
def test_numbers_of_stages_out_of_range_are_refused(stages: object) -> None:
    with pytest.raises(ValueError, match="stages="):
        stork(stages)  # type: ignore[arg-type]
