from __future__ import annotations

import math

import pytest
import torch

from odecore.analysis.modified import runge_kutta
from odecore.explicit.tableaus import EULER, HEUN, Tableau
from samplers import sample
from samplers.bias import noise_field, ratios, solver_bias
from samplers.grids import karras
from scoremodels.analytic import GaussianModel, MixtureModel
from scoremodels.schedule import EDM, RectifiedFlow
from scoremodels.schedule_base import NoiseSchedule
from scoremodels.schedule_vp import ContinuousVP

SCHEDULES = [EDM(), ContinuousVP()]


def mixture(schedule: NoiseSchedule) -> MixtureModel:
    return MixtureModel([[-1.0, 0.5], [1.0, 0.3], [0.2, -1.0]], [0.3, 0.4, 0.3], [1.0, 1.0, 1.0], schedule)


def start(schedule: NoiseSchedule, count: int = 6) -> torch.Tensor:
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise * schedule.prior_scale(schedule.t_max)


def times(schedule: NoiseSchedule, steps: int) -> list[float]:
    return [float(t) for t in karras(schedule, steps, schedule.t_min)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["edm", "vp"])
def test_euler_in_the_noise_ratio_is_ddim(schedule: NoiseSchedule) -> None:
    model, x = mixture(schedule), start(schedule)
    ours = solver_bias(model, runge_kutta(EULER), x, times(schedule, 8)).computed
    theirs = sample(model, x_T=x, solver="ddim", nfe=8, grid=times(schedule, 8), end="minimum").samples
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("tableau", "order"), [(EULER, 1), (HEUN, 2)], ids=["euler", "heun"])
def test_what_theory_leaves_of_the_bias_shrinks_with_the_step(tableau: Tableau, order: int) -> None:
    schedule = EDM()
    left = [solver_bias(mixture(schedule), runge_kutta(tableau), start(schedule), times(schedule, steps),
                        scheme_order=order).unexplained() for steps in (24, 48)]
    assert left[1] < 0.3
    assert left[0] / left[1] > 1.5


def test_the_corrected_sampler_gains_an_order() -> None:
    schedule = EDM()
    errors = []
    for steps in (24, 48):
        bias = solver_bias(mixture(schedule), runge_kutta(EULER), start(schedule), times(schedule, steps))
        errors.append(((bias.computed - bias.exact).norm().item(), (bias.corrected - bias.exact).norm().item()))
    (plain, better), (plain_finer, better_finer) = errors
    assert math.log2(plain / plain_finer) == pytest.approx(1, abs=0.35)
    assert math.log2(better / better_finer) > 1.5
    assert better_finer < plain_finer / 10


def test_the_field_is_the_noise_of_a_gaussian() -> None:
    model = GaussianModel(torch.zeros(2), torch.eye(2) * 0.25, ContinuousVP())
    y, ratio = (torch.tensor(v, dtype=torch.float64) for v in ([[0.3, -1.0], [2.0, 0.5]], [0.4, 3.0]))
    assert torch.allclose(noise_field(model)(y, ratio), y * (ratio / (0.25 + ratio**2))[:, None], rtol=1e-6)


@pytest.mark.parametrize(("bad", "message"), [
    ([1.0], "at least two"), ([1.0, 2.0], "from noise"), ([1.0, 0.0], "noise left")])
def test_wrong_times_are_refused(bad: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solver_bias(mixture(EDM()), runge_kutta(EULER), start(EDM()), bad)


def test_a_time_without_signal_is_refused() -> None:
    with pytest.raises(ValueError, match="no signal"):
        ratios(RectifiedFlow(), [1.0, 0.5])
