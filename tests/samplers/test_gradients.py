"""Gradients of samples, against autograd through the same plan."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from odecore.plan import execute
from samplers import SOLVERS, ClassifierFreeGuidance, compile_plan, sample
from samplers.first_step import analytic_first_step
from samplers.gradients import differentiable_sample
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM, ContinuousVP, RectifiedFlow


class Labelled(nn.Module):
    """A small network of state, time and label, in float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(4, 5, generator=generator, dtype=torch.float64))
        self.weight = nn.Parameter(torch.randn(5, 5, generator=generator, dtype=torch.float64) / 2)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        label = torch.full((len(x),), 3) if condition is None else condition
        return torch.tanh(x @ self.weight + self.table[label] + 0.1 * torch.log1p(t)[:, None])


def model(schedule: object = None, prediction: str = "sample") -> ScoreModel:
    return ScoreModel(Labelled(), EDM() if schedule is None else schedule, prediction, (5,), num_classes=3)


def noise(scale: float = 80.0) -> Tensor:
    return scale * torch.randn(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


LABELS = torch.tensor([0, 2])


@pytest.mark.parametrize(("solver", "nfe"), [("ddim", 7), ("dpm-solver++-2m", 6), ("unipc-3", 6), ("edm-heun", 7),
                                             ("ipndm-4", 6), ("deis-3", 6)])
def test_samples_are_those_of_the_sampler_and_gradients_those_of_autograd(solver: str, nfe: int) -> None:
    network, x = model(), noise().requires_grad_()
    drawn = differentiable_sample(network, x, solver=solver, nfe=nfe, condition=LABELS, states=2)
    torch.testing.assert_close(drawn, sample(network, x_T=x, solver=solver, nfe=nfe, condition=LABELS).samples,
                               rtol=1e-12, atol=1e-12)
    plan = compile_plan(solver, network.schedule, nfe=nfe, prediction=network.prediction)
    direct = execute(plan, lambda y, t: network(y, t, LABELS), x)
    for actual, expected in zip(torch.autograd.grad(drawn.square().sum(), x),
                                torch.autograd.grad(direct.square().sum(), x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("schedule", "prediction", "solver"), [
    (ContinuousVP(), "epsilon", "dpm-solver-3"), (RectifiedFlow(), "flow", "unipc-2"),
    (RectifiedFlow(), "flow", "ddim")])
def test_other_schedules_have_exact_gradients_too(schedule: object, prediction: str, solver: str) -> None:
    network, x = model(schedule, prediction), noise(1.0).requires_grad_()
    drawn = differentiable_sample(network, x, solver=solver, nfe=6, states=3)
    torch.testing.assert_close(drawn, sample(network, x_T=x, solver=solver, nfe=6).samples, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(drawn.sum(), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    up, down = (sample(network, x_T=x.detach() + s * 1e-6 * direction, solver=solver, nfe=6).samples.sum()
                for s in (1, -1))
    assert torch.allclose((gradient * direction).sum(), (up - down) / 2e-6, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_the_gradient_of_guidance_is_that_of_finite_differences(shape: tuple[int, ...]) -> None:
    network, x = model(), noise()
    weight = torch.full(shape, 1.7, dtype=torch.float64, requires_grad=True)
    drawn = differentiable_sample(network, x, nfe=5, condition=LABELS, guidance=weight, states=2)
    torch.testing.assert_close(drawn, sample(ClassifierFreeGuidance(network, 1.7), x_T=x, nfe=5,
                                             condition=LABELS).samples, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(drawn.square().sum(), weight)
    up, down = (sample(ClassifierFreeGuidance(network, 1.7 + s * 1e-5), x_T=x, nfe=5, condition=LABELS)
                .samples.square().sum() for s in (1, -1))
    assert torch.allclose(gradient.sum(), (up - down) / 2e-5, rtol=1e-6)


def test_weights_of_several_labels_mix_conditions() -> None:
    network, x = model(), noise()
    both = torch.tensor([[0, 1, 2], [0, 1, 2]])
    one_hot = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    mixed = differentiable_sample(network, x, nfe=5, condition=both, guidance=one_hot, states=2)
    torch.testing.assert_close(mixed, differentiable_sample(network, x, nfe=5, condition=LABELS), rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(mixed.sum(), one_hot)
    step = torch.zeros_like(one_hot)
    step[0, 1] = 1e-6
    with torch.no_grad():
        up, down = (differentiable_sample(network, x, nfe=5, condition=both, guidance=one_hot + s * step).sum()
                    for s in (1, -1))
    assert torch.allclose(gradient[0, 1], (up - down) / 2e-6, rtol=1e-6)


def test_a_first_step_in_closed_form_scales_the_noise_gradient_as_well() -> None:
    network, x = model(ContinuousVP(), "epsilon"), noise(1.0).requires_grad_()
    solver = analytic_first_step(SOLVERS["dpm-solver++-2m"])
    drawn = differentiable_sample(network, x, solver=solver, nfe=4, states=2)
    plan = compile_plan(solver, network.schedule, nfe=4, prediction="epsilon")
    direct = execute(plan, network, x)
    assert plan.entry != 1.0
    torch.testing.assert_close(drawn, direct, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(drawn.sum(), x), torch.autograd.grad(direct.sum(), x),
                               rtol=1e-10, atol=1e-12)


def test_only_the_listed_parameters_of_the_model_get_gradients() -> None:
    network, x = model(), noise()
    inner = network.network
    differentiable_sample(network, x, nfe=4, condition=LABELS, states=2, parameters=[inner.weight]).sum().backward()
    assert inner.table.grad is None
    (wanted,) = torch.autograd.grad(execute(compile_plan("dpm-solver++-2m", network.schedule, nfe=4,
                                                         prediction="sample"),
                                            lambda y, t: network(y, t, LABELS), x).sum(), inner.weight)
    torch.testing.assert_close(inner.weight.grad, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"solver": "ddpm"}, "adds noise"), ({"solver": "dpm-solver-23"}, "chooses its own"), ({"states": 0}, "states=0"),
    ({"condition": LABELS[:, None]}, "one label a sample"), ({"guidance": 2.0}, "needs labels"),
    ({"guidance": torch.ones(3), "condition": LABELS}, "broadcast over"),
    ({"guidance": 1.0, "condition": LABELS[:1]}, "give \\(2,\\)")])
def test_wrong_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        differentiable_sample(model(), noise(), **arguments)


def test_wrong_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="x_T has shape"):
        differentiable_sample(model(), torch.zeros(2, 4))
