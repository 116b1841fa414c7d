"""Estimates equal closed forms where the denoiser is known."""

from __future__ import annotations

import pytest
import torch

from samplers.dpm_solver_v3 import dpm_solver_v3
from samplers.estimate_statistics import estimate_statistics
from samplers.sample import sample
from scoremodels.analytic import GaussianModel, MixtureModel
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

MEAN, VARIANCE = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 2.0]).double()


@pytest.mark.parametrize("schedule", [DiscreteVP.linear(), ContinuousVP(), EDM(), RectifiedFlow()],
                         ids=lambda s: s.kind)
def test_they_are_exact_for_normally_distributed_data(schedule: NoiseSchedule) -> None:
    model = GaussianModel(MEAN, torch.diag(VARIANCE), schedule)
    found = estimate_statistics(model, num=4, knots=40)
    linear = 1 / (1 + VARIANCE * torch.exp(2 * found.log_snr[:, None]))
    torch.testing.assert_close(found.linear, linear, rtol=1e-4, atol=1e-5)
    change = -2 * linear * (1 - linear)
    # All trajectories have one f, up to rounding, so what s and b mean at it is all that is known of them.
    torch.testing.assert_close((found.slope * -linear * MEAN + found.constant)[1:-1], (-change * MEAN)[1:-1],
                               rtol=0.05, atol=0.02)


def test_slope_and_constant_predict_the_change_of_f_along_trajectories() -> None:
    schedule = EDM(0.05, 20.0)
    model = MixtureModel([[1.0, 0.4], [-0.8, 0.9]], [0.5, 0.3], [0.6, 0.4], schedule)
    found = estimate_statistics(model, num=400, knots=24, batch=400)
    starts = torch.randn(400, 2, generator=torch.Generator().manual_seed(5)) * 20.0
    values: list[torch.Tensor] = []
    clocks = torch.linspace(-0.3, 0.3, 3).double()
    for clock in clocks:
        end = float(schedule.time_of_log_snr(float(clock)))
        x = sample(model, x_T=starts, solver="dpm-solver++-3m", nfe=60, grid="log-snr", end=end, batch=400).samples
        (linear,), _, _ = found.at(clock.numpy().reshape(1))
        values.append(end * model.noise(x, end).double() - linear * x.double())
    change = (values[2] - values[0]) / (clocks[2] - clocks[0])
    _, (slope,), (constant,) = found.at(clocks[1:2].numpy())
    left = (change - slope * values[1] - constant).square().mean(0)
    assert (left < change.square().mean(0)).all()
    best = torch.stack([torch.stack([values[1][:, d], torch.ones(400)], 1) for d in range(2)]).double()
    fitted = torch.linalg.lstsq(best, change.T.unsqueeze(2)).solution.squeeze(2)
    torch.testing.assert_close(slope, fitted[:, 0], atol=0.1, rtol=0.1)
    torch.testing.assert_close(constant, fitted[:, 1], atol=0.1, rtol=0.1)


def test_the_solver_errs_less_with_them_than_dpm_solver_plus_plus_on_a_narrow_normal() -> None:
    schedule = EDM(0.01, 50.0)
    model = GaussianModel(MEAN, torch.diag(VARIANCE / 20), schedule)
    found = estimate_statistics(model, num=8, knots=100)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(1)) * 50.0

    def end(solver: object, nfe: int) -> torch.Tensor:
        return sample(model, x_T=x, solver=solver, nfe=nfe, grid="log-snr", end="minimum").samples  # type: ignore[arg-type]

    exact = end("dpm-solver++-3m", 400)
    errors = [(end(solver, 5) - exact).norm() for solver in (dpm_solver_v3(found, 2), "dpm-solver++-3m")]
    assert errors[0] < 0.1 * errors[1]


@pytest.mark.parametrize(("num", "knots"), [(1, 20), (4, 7)])
def test_too_few_samples_or_knots_are_refused(num: int, knots: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        estimate_statistics(GaussianModel(MEAN, torch.diag(VARIANCE), EDM()), num=num, knots=knots)
