"""Guidance by gradients, against closed forms and against classifier-free guidance, which it must equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from eval.features import fashion_mnist_features
from samplers import ClassifierGuidance, DenoisedGuidance, sample
from scoremodels.analytic import GaussianModel, MixtureModel
from scoremodels.loaders import load
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM, DiscreteVP, NoiseSchedule, RectifiedFlow

MEANS = torch.tensor([[-1.0, 0.5], [0.8, 0.3]], dtype=torch.float64)
SHARES = torch.tensor([0.4, 0.6], dtype=torch.float64)
STD = 0.4


def states(num: int = 6) -> Tensor:
    return torch.randn(num, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def mixture(schedule: NoiseSchedule) -> ScoreModel:
    return MixtureModel(MEANS, [STD, STD], SHARES, schedule)


def posterior(schedule: NoiseSchedule) -> Any:
    """log p(label | x_t) of the mixture."""
    def log_prob(x: Tensor, t: float | Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        alpha, sigma = float(schedule.alpha(float(t))), float(schedule.sigma(float(t)))
        distances = (x[:, None] - alpha * MEANS).square().sum(-1)
        logits = SHARES.log() - distances / (2 * ((alpha * STD) ** 2 + sigma**2))
        return logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    return log_prob


@pytest.mark.parametrize(("schedule", "t"), [(EDM(), 1.7), (DiscreteVP.linear(), 400.0), (RectifiedFlow(), 0.6)])
def test_the_exact_classifier_at_scale_one_gives_the_exact_conditional_model(
    schedule: NoiseSchedule, t: float
) -> None:
    guided = ClassifierGuidance(mixture(schedule), posterior(schedule), num_classes=2)
    alone = MixtureModel(MEANS[1:], [STD], [1.0], schedule)
    torch.testing.assert_close(guided(states(), t, torch.ones(6, dtype=torch.long)), alone(states(), t))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow", "score", "sample"])
def test_what_the_model_predicts_makes_no_difference_to_guidance(prediction: str) -> None:
    schedule = DiscreteVP.linear()
    base = mixture(schedule)

    def network(x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        a, b = base.conversion("sample", prediction, x, t)
        return a * x + b * base(x, t)

    other = ScoreModel(network, schedule, prediction, (2,))
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    wanted, got = (ClassifierGuidance(m, posterior(schedule), 2.0, num_classes=2).denoise(states(), 400.0, labels)
                   for m in (base, other))
    torch.testing.assert_close(got, wanted)


def test_an_exactly_guided_sample_is_a_sample_of_its_component() -> None:
    guided = ClassifierGuidance(mixture(EDM()), posterior(EDM()), num_classes=2)
    alone = MixtureModel(MEANS[:1], [STD], [1.0], EDM())
    x = 80 * states().float()
    got, wanted = sample(guided, x_T=x, nfe=12, condition=0).samples, sample(alone, x_T=x, nfe=12).samples
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("t", [0.7, torch.full((6,), 0.7, dtype=torch.float64)])
def test_a_wish_of_the_denoised_sample_is_pulled_through_the_denoiser(t: float | Tensor) -> None:
    """With x0 = g x + const and log p = -|x0 - y|²/2 the gradient in x is -g (x0 - y)."""
    model = GaussianModel(torch.zeros(2), 0.25 * torch.eye(2), EDM())
    y, sigma, scale = torch.tensor([0.3, -0.2], dtype=torch.float64), 0.7, 1.5
    guided = DenoisedGuidance(model, lambda x0, _: -(x0 - y).square().sum(1) / 2, scale)
    gain = 0.25 / (0.25 + sigma**2)
    wanted = gain * states() - scale * sigma**2 * gain * (gain * states() - y)
    torch.testing.assert_close(guided(states(), t), wanted)


def test_without_signal_the_model_is_left_as_it_is() -> None:
    schedule, labels = RectifiedFlow(), torch.ones(6, dtype=torch.long)
    base = mixture(schedule)
    guided = ClassifierGuidance(base, lambda x, t, c: -x.square().sum(1), 2.0, num_classes=2)
    assert torch.equal(guided(states(), 1.0, labels), base(states(), 1.0))
    times = torch.tensor([1.0, 0.5, 0.5, 1.0, 0.5, 0.5], dtype=torch.float64)
    mixed, alone = guided(states(), times, labels), base(states(), times)
    assert torch.equal(mixed[::3], alone[::3])
    torch.testing.assert_close(mixed[1:3], guided(states(), 0.5, labels)[1:3])


def test_scale_zero_and_a_missing_label_leave_the_model_alone_and_ask_no_classifier() -> None:
    model, labels = mixture(EDM()), torch.zeros(6, dtype=torch.long)

    def refuse(*_: object) -> Tensor:
        raise AssertionError("the classifier was asked")

    plain, idle = model(states(), 1.0), ClassifierGuidance(model, refuse, 0.0, num_classes=2)
    assert torch.equal(idle(states(), 1.0, labels), plain)
    assert torch.equal(DenoisedGuidance(model, refuse, 2.0, num_classes=2)(states(), 1.0), plain)


def test_the_embedded_classifier_guides_an_unconditional_model_to_its_labels() -> None:
    classifier = fashion_mnist_features().net  # type: ignore[attr-defined]
    model = load("fashion-mnist-edm")

    def log_prob(x0: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return classifier(x0).log_softmax(1).gather(1, labels[:, None])[:, 0]

    labels = torch.tensor([1, 9, 8, 5])
    wrapped = DenoisedGuidance(model, log_prob, num_classes=10)
    guided = sample(wrapped, num=4, nfe=8, solver="ddim", condition=labels)
    plain = sample(model, num=4, nfe=8, solver="ddim")
    right = [log_prob(result.samples, labels).mean().item() for result in (guided, plain)]
    assert right[0] > right[1] + 1.0 and guided.nfe == 8
    assert not guided.samples.requires_grad


@pytest.mark.parametrize(("log_prob", "message"), [
    (lambda x, t, c: x.sum(), r"shape \(\)"), (lambda x, t, c: torch.zeros(len(x)), "without a gradient"),
])
def test_log_probabilities_that_cannot_guide_are_refused(log_prob: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClassifierGuidance(mixture(EDM()), log_prob)(states(), 1.0)


def test_models_that_need_labels_and_wrong_numbers_are_refused() -> None:
    needs = ScoreModel(lambda x, t, c: x, EDM(), "sample", (2,), num_classes=3, label_dropout=False)
    for make, message in ((lambda: ClassifierGuidance(needs, posterior(EDM())), "with labels only"),
                          (lambda: ClassifierGuidance(mixture(EDM()), posterior(EDM()), float("nan")), "scale=nan"),
                          (lambda: DenoisedGuidance(mixture(EDM()), torch.sum, num_classes=-1), "num_classes=-1")):
        with pytest.raises(ValueError, match=message):
            make()
