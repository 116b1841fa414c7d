"""Guidance: exact on mixtures of Gaussians, where Bayes' rule says what it must be, and equal to diffusers'."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor, nn

from samplers import (
    Autoguidance,
    ClassifierFreeGuidance,
    GuidanceInterval,
    RescaledGuidance,
    sample,
)
from scoremodels.analytic import GaussianModel, MixtureModel
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM, DiscreteVP, NoiseSchedule, RectifiedFlow

MEANS = torch.tensor([[-1.0, 0.5], [0.8, 0.3], [0.1, -1.2]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64)
SHARES = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
SCHEDULES = [(EDM(), 1.7), (DiscreteVP.linear(), 400.0), (RectifiedFlow(), 0.6)]


class Components(nn.Module):
    """Exact denoiser of one component of a mixture, or for label 3 of the whole of it; counts its calls."""

    any_dtype = True

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            MixtureModel(MEANS[k : k + 1], STDS[k : k + 1], [1.0], schedule) for k in range(len(MEANS)))
        self.parts.append(MixtureModel(MEANS, STDS, SHARES, schedule))
        self.batches: list[int] = []

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.batches.append(len(x))
        labels = torch.full((len(x),), 3) if condition is None else condition
        return torch.stack([self.parts[k].network(row[None], time[None], None)[0]
                            for row, time, k in zip(x, t, labels.tolist(), strict=True)])


def labelled(schedule: NoiseSchedule) -> ScoreModel:
    return ScoreModel(Components(schedule), schedule, "sample", (2,), num_classes=3)


def states(num: int = 6) -> Tensor:
    return torch.randn(num, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def score(model: ScoreModel, x: Tensor, t: float, labels: Tensor | None = None) -> Tensor:
    a, b = model.schedule.conversion(model.prediction, "score", t)
    return a * x + b * model(x, t, labels)


def log_density(x: Tensor, schedule: NoiseSchedule, t: float, components: slice = slice(None)) -> Tensor:
    """Of noisy states under the mixture, or under some of its components with their shares."""
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    variances = (alpha * STDS[components]) ** 2 + sigma**2
    distances = (x[:, None] - alpha * MEANS[components]).square().sum(-1)
    return torch.logsumexp(SHARES[components].log() - variances.log() - distances / (2 * variances), 1)


@pytest.mark.parametrize(("schedule", "t"), SCHEDULES)
def test_classifier_free_guidance_sharpens_the_posterior_as_bayes_says(schedule: NoiseSchedule, t: float) -> None:
    """score + w ∇ log p(label | x) with the exact classifier of the mixture."""
    labels, scale = torch.tensor([0, 1, 2, 0, 1, 2]), 2.5
    x = states().requires_grad_()
    joint = torch.cat([log_density(x, schedule, t, slice(k, k + 1))[i : i + 1] for i, k in enumerate(labels.tolist())])
    whole = log_density(x, schedule, t)
    wanted = torch.autograd.grad((whole + scale * (joint - whole)).sum(), x)[0]
    guided = ClassifierFreeGuidance(labelled(schedule), scale)
    torch.testing.assert_close(score(guided, x.detach(), t, labels), wanted, rtol=1e-9, atol=1e-9)


def test_autoguidance_of_gaussians_follows_the_sharper_gaussian() -> None:
    """Of N(0, s²) and N(0, r²) the guided score is -x (w/(s²+σ²) - (w-1)/(r²+σ²))."""
    good, worse = (GaussianModel(torch.zeros(2), s * s * torch.eye(2), EDM()) for s in (0.6, 1.1))
    x, sigma, w = states(), 0.7, 1.8
    wanted = -x * (w / (0.36 + sigma**2) - (w - 1) / (1.21 + sigma**2))
    torch.testing.assert_close(score(Autoguidance(good, worse, w), x, sigma), wanted)


def test_the_worse_model_of_autoguidance_may_predict_another_kind() -> None:
    schedule = DiscreteVP.linear()
    good, same = (GaussianModel(torch.zeros(2), s * s * torch.eye(2), schedule) for s in (0.6, 1.1))

    def epsilon(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        return same.noise(x, t)

    other = ScoreModel(epsilon, schedule, "epsilon", (2,))
    times = torch.linspace(100, 900, 6, dtype=torch.float64)
    for t in (300.0, times):
        wanted = Autoguidance(good, same, 2.0)(states(), t)
        torch.testing.assert_close(Autoguidance(good, other, 2.0)(states(), t), wanted)


def test_autoguidance_spends_one_evaluation_of_each_network_unless_it_is_idle() -> None:
    for scale, expected in ((2.0, 3), (1.0, 0)):
        good, worse = labelled(EDM()), labelled(EDM())
        sample(Autoguidance(good, worse, scale), num=2, nfe=3, condition=1)
        assert good.network.batches == [2] * 3 and worse.network.batches == [2] * expected


@pytest.mark.parametrize("rescale", [0.0, 0.3, 0.7, 1.0])
def test_rescaling_is_that_of_diffusers(rescale: float) -> None:
    model, labels = labelled(EDM()), torch.tensor([0, 1, 2, 0, 1, 2])
    guided = ClassifierFreeGuidance(model, 4.0)
    wanted = rescale_noise_cfg(guided(states(), 1.0, labels), model(states(), 1.0, labels), rescale)
    torch.testing.assert_close(RescaledGuidance(guided, rescale)(states(), 1.0, labels), wanted)


def test_full_rescaling_gives_each_sample_the_spread_of_its_conditional_prediction() -> None:
    model, labels = labelled(EDM()), torch.tensor([0, 1, 2, 0, 1, 2])
    rescaled = RescaledGuidance(ClassifierFreeGuidance(model, 5.0), 1.0)(states(), 1.0, labels)
    torch.testing.assert_close(rescaled.std(1), model(states(), 1.0, labels).std(1))


def test_rescaling_spends_no_evaluation_of_its_own() -> None:
    model = labelled(EDM())
    assert sample(RescaledGuidance(ClassifierFreeGuidance(model, 3.0)), num=2, nfe=4, condition=1).nfe == 4
    assert model.network.batches == [4] * 4


def test_an_interval_guides_within_its_noise_levels_alone() -> None:
    model = labelled(EDM())
    guided = ClassifierFreeGuidance(model, 3.0)
    limited, labels = GuidanceInterval(guided, 0.3, 2.0), torch.tensor([0, 1, 2, 0, 1, 2])
    for sigma, expected in ((0.2, model), (0.3, model), (0.31, guided), (2.0, guided), (2.1, model)):
        assert torch.equal(limited(states(), sigma, labels), expected(states(), sigma, labels))


def test_an_interval_treats_each_sample_by_its_own_time() -> None:
    model = labelled(EDM())
    guided = ClassifierFreeGuidance(model, 3.0)
    times, labels = torch.tensor([0.1, 1.0, 5.0, 0.5, 2.0, 80.0]), torch.tensor([0, 1, 2, 0, 1, 2])
    result = GuidanceInterval(guided, 0.3, 2.0)(states(), times, labels)
    inside = torch.tensor([False, True, False, True, True, False])
    wanted = torch.where(inside[:, None], guided(states(), times, labels), model(states(), times, labels))
    torch.testing.assert_close(result, wanted)


def test_an_interval_is_in_units_of_the_noise_to_signal_ratio() -> None:
    schedule = RectifiedFlow()
    model, labels = labelled(schedule), torch.tensor([0, 1, 2, 0, 1, 2])
    limited = GuidanceInterval(ClassifierFreeGuidance(model, 3.0), 0.5, 2.0)
    low, high = (float(schedule.time_of_ratio(r)) for r in (0.5, 2.0))
    for t, guided in ((low - 0.01, False), (low + 0.01, True), (high - 0.01, True), (high + 0.01, False)):
        assert torch.equal(limited(states(), t, labels), model(states(), t, labels)) is not guided


def test_outside_the_interval_no_second_branch_is_evaluated() -> None:
    model = labelled(EDM())
    wrapped = GuidanceInterval(RescaledGuidance(ClassifierFreeGuidance(model, 3.0)), 0.3, 2.0)
    plan = sample(wrapped, num=2, nfe=8, condition=1).plan
    assert plan is not None
    assert model.network.batches == [4 if 0.3 < row.t <= 2.0 else 2 for row in plan.rows]
    assert {2, 4} == set(model.network.batches)


def test_an_interval_of_all_levels_is_the_guidance_itself() -> None:
    guided = ClassifierFreeGuidance(labelled(DiscreteVP.linear()), 2.0)
    whole = sample(GuidanceInterval(guided, 0.0), num=3, nfe=5, condition=2).samples
    assert torch.equal(whole, sample(guided, num=3, nfe=5, condition=2).samples)


@pytest.mark.parametrize(("make", "message"), [
    (lambda m: Autoguidance(m, labelled(DiscreteVP.linear()), 2.0), "worse has schedule"),
    (lambda m: Autoguidance(m, GaussianModel(torch.zeros(2), torch.eye(2), EDM()), 2.0), "worse has num_classes=0"),
    (lambda m: Autoguidance(m, m, float("inf")), "scale=inf"),
    (lambda m: RescaledGuidance(m), "needs the better of two"),
    (lambda m: RescaledGuidance(ClassifierFreeGuidance(m, 2.0), 1.5), "rescale=1.5"),
    (lambda m: GuidanceInterval(m, 0.1, 2.0), "guidance around it"),
    (lambda m: GuidanceInterval(ClassifierFreeGuidance(m, 2.0), 2.0, 1.0), "low=2.0, high=1.0"),
    (lambda m: GuidanceInterval(ClassifierFreeGuidance(m, 2.0), -1.0), "low=-1.0"),
])
def test_guidance_that_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(labelled(EDM()))


def test_the_labels_of_the_test_model_are_told_apart() -> None:
    model = labelled(EDM())
    results = [sample(model, num=64, nfe=12, condition=k).samples.double().mean(0).numpy() for k in range(3)]
    np.testing.assert_allclose(results, MEANS.numpy(), atol=0.25)
