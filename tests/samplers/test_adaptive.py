"""DPM-Solver-12 and -23 against their published algorithm, and as samplers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eval.order import MixtureProblem
from odecore.driver.solve import SolveError, Status
from samplers import sample
from samplers.adaptive import sample_adaptive
from scoremodels.analytic import MixtureModel
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

MEANS, STDS, WEIGHTS = [[1.0, 0.4], [-0.8, 0.9], [0.1, -1.1]], [0.5, 0.3, 0.4], [0.5, 0.2, 0.3]


def mixture(schedule: NoiseSchedule) -> MixtureModel:
    return MixtureModel(MEANS, STDS, WEIGHTS, schedule)


def noise(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def published(model: ScoreModel, x: Tensor, order: int, rtol: float, atol: float) -> tuple[Tensor, int]:
    """Algorithms 3 and 4 of the paper for one sample, transcribed with the formulas of algorithms 1 and 2."""
    schedule = model.schedule

    def at(value: float) -> tuple[float, float, float]:
        t = schedule.time_of_log_snr(value)
        return t, float(schedule.alpha(t)), float(schedule.sigma(t))

    lam, lam_end = float(schedule.log_snr(schedule.t_max)), float(schedule.log_snr(schedule.t_min))
    h, x_previous, evaluations = 0.05, x, 0
    while lam < lam_end - 1e-9:
        h = min(h, lam_end - lam)
        t, alpha, sigma = at(lam)
        _, alpha_end, sigma_end = at(lam + h)
        eps = model.noise(x, t)
        low = alpha_end / alpha * x - sigma_end * math.expm1(h) * eps
        if order == 2:
            t1, alpha_1, sigma_1 = at(lam + h / 2)
            eps_1 = model.noise(alpha_1 / alpha * x - sigma_1 * math.expm1(h / 2) * eps, t1)
            high = alpha_end / alpha * x - sigma_end * math.expm1(h) * eps_1
        else:
            r1, r2 = 1 / 3, 2 / 3
            (t1, alpha_1, sigma_1), (t2, alpha_2, sigma_2) = at(lam + r1 * h), at(lam + r2 * h)
            d1 = model.noise(alpha_1 / alpha * x - sigma_1 * math.expm1(r1 * h) * eps, t1) - eps
            u2 = (alpha_2 / alpha * x - sigma_2 * math.expm1(r2 * h) * eps
                  - sigma_2 * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1)
            d2 = model.noise(u2, t2) - eps
            low = low - sigma_end / (2 * r1) * math.expm1(h) * d1
            high = (alpha_end / alpha * x - sigma_end * math.expm1(h) * eps
                    - sigma_end / r2 * (math.expm1(h) / h - 1) * d2)
        delta = torch.maximum(torch.tensor(atol), rtol * torch.maximum(low.abs(), x_previous.abs()))
        error = float(((low - high) / delta).norm()) / math.sqrt(x.numel())
        evaluations += order
        if error <= 1:
            x_previous, x, lam = low, high, lam + h
        h = 0.9 * h * error ** (-1 / order)
    return x, evaluations


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("schedule", [DiscreteVP.linear(), EDM()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("tolerance", [(0.05, 0.0078), (0.001, 0.0005)])
def test_samples_and_evaluations_are_those_of_the_published_algorithm(
    order: int, schedule: NoiseSchedule, tolerance: tuple[float, float]
) -> None:
    model = mixture(schedule)
    x = noise(3) * schedule.prior_scale(schedule.t_max)
    result = sample_adaptive(model, x, order=order, rtol=tolerance[0], atol=tolerance[1])
    for i in range(3):
        wanted, evaluations = published(model, x[i:i + 1], order, *tolerance)
        torch.testing.assert_close(result.samples[i:i + 1], wanted, rtol=1e-8, atol=1e-8)
        steps = result.statistics.accepted[i] + result.statistics.rejected[i]
        assert int(steps) * order == evaluations


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("variable", ["noise", "data"])
def test_tight_tolerances_give_the_exact_flow(order: int, variable: str) -> None:
    problem = MixtureProblem(ContinuousVP())
    t_start, t_end = (float(problem.schedule.time_of_log_snr(v)) for v in (problem.start, problem.end))
    x, atol = torch.from_numpy(problem.x_start), 10.0 ** -(order + 2)
    result = sample_adaptive(problem.model, x, order=order, rtol=0.0, atol=atol, t_start=t_start, t_end=t_end,
                             variable=variable)
    assert problem.error(result.samples) < 5 * atol


@pytest.mark.parametrize("order", [2, 3])
def test_a_sample_takes_the_same_steps_in_any_batch(order: int) -> None:
    model = mixture(ContinuousVP())
    x = noise(6)
    together = sample_adaptive(model, x, order=order)
    alone = [sample_adaptive(model, x[i:i + 1], order=order) for i in range(6)]
    torch.testing.assert_close(together.samples, torch.cat([a.samples for a in alone]), rtol=1e-10, atol=1e-12)
    assert together.statistics.accepted.tolist() == [int(a.statistics.accepted) for a in alone]
    assert together.nfe == max(a.nfe for a in alone)


def test_the_evaluations_reported_are_those_of_the_network() -> None:
    calls = []
    exact = mixture(ContinuousVP())

    def counted(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        calls.append(len(x))
        return exact(x, t)

    model = ScoreModel(counted, exact.schedule, "sample", exact.shape)
    result = sample_adaptive(model, noise(4), order=3)
    assert result.nfe == len(calls) and calls[-1] < 4


def test_labels_stay_with_their_samples() -> None:
    exact = mixture(ContinuousVP())

    def shifted(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None and len(condition) == len(x)
        return exact(x, t) * 0 + condition.reshape(-1, 1).to(x.dtype)

    model = ScoreModel(shifted, exact.schedule, "sample", exact.shape, num_classes=4)
    labels = torch.tensor([3, 0, 2, 1])
    result = sample_adaptive(model, noise(4), order=2, rtol=1e-3, atol=1e-4, condition=labels)
    alpha, sigma = (float(f(model.schedule.t_min)) for f in (model.schedule.alpha, model.schedule.sigma))
    assert (result.samples - alpha * labels.reshape(-1, 1)).abs().max() < 4 * sigma


@pytest.mark.parametrize("schedule", [RectifiedFlow(), DiscreteVP.linear().zero_terminal_snr()],
                         ids=["flow", "zero terminal SNR"])
def test_schedules_that_start_at_pure_noise_cost_one_evaluation_more(schedule: NoiseSchedule) -> None:
    model = mixture(schedule)
    x = noise(4) * schedule.prior_scale(schedule.t_max)
    loose = sample_adaptive(model, x, order=2)
    assert loose.nfe == 1 + 2 * int((loose.statistics.accepted + loose.statistics.rejected).max())
    tight = sample_adaptive(model, x, order=3, rtol=1e-4, atol=1e-4)
    start = float(schedule.time_of_log_snr(-11.0))
    near = sample_adaptive(model, x * float(schedule.sigma(start) / schedule.sigma(schedule.t_max)), order=3, rtol=1e-4,
                           atol=1e-4, t_start=start)
    torch.testing.assert_close(tight.samples, near.samples, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_keep_the_dtype_of_the_start(dtype: torch.dtype) -> None:
    result = sample_adaptive(mixture(ContinuousVP()), noise(3).to(dtype), order=2)
    assert result.samples.dtype == dtype and torch.isfinite(result.samples).all()


def test_sample_runs_the_adaptive_solvers() -> None:
    model = mixture(ContinuousVP())
    x = noise(3)
    result = sample(model, solver="dpm-solver-12", x_T=x)
    torch.testing.assert_close(result.samples, sample_adaptive(model, x, order=2).samples)
    assert result.plan is None and result.nfe > 0


def test_a_network_that_fails_is_reported_with_what_was_reached() -> None:
    exact = mixture(ContinuousVP())

    def failing(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return torch.where(t.reshape(-1, 1) < 0.5, math.nan, exact(x, t))

    model = ScoreModel(failing, exact.schedule, "sample", exact.shape)
    with pytest.raises(SolveError, match="2 of 2 samples met non-finite values") as caught:
        sample_adaptive(model, noise(2), order=2)
    assert caught.value.solution.status.tolist() == [Status.NON_FINITE] * 2
    assert torch.isfinite(caught.value.solution.y).all()


@pytest.mark.parametrize(("changes", "match"), [
    ({"order": 1}, "order=1"), ({"order": 4}, "order=4"), ({"variable": "plain"}, "variable='plain'"),
    ({"t_end": 0.0}, "t_end=0"), ({"t_start": 0.1, "t_end": 0.5}, "noisier time"), ({"rtol": -1.0}, "rtol"),
    ({"max_steps": 0}, "max_steps"),
])
def test_bad_arguments_are_refused_before_any_evaluation(changes: dict, match: str) -> None:
    model = ScoreModel(lambda x, t, c: pytest.fail("the network was evaluated"), ContinuousVP(), "epsilon", (2,))
    with pytest.raises(ValueError, match=match):
        sample_adaptive(model, **{"x": noise(2), "order": 2, **changes})
