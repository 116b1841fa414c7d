"""Taylor–Lagrange sampling against exact flows, and its training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from odecore.explicit.taylor import total_derivatives
from odecore.learn.fit import adam, fit
from samplers.adaptive import sample_adaptive
from samplers.taylor import (
    Flow,
    OwnSteps,
    Remainder,
    TaylorLagrangeSampler,
    _integral,
    remainder_loss,
    sample_taylor,
)
from scoremodels.loaders import load
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM


class MixtureDenoiser(nn.Module):
    """The exact denoiser of a Gaussian mixture at σ = t, differentiable in the time too."""

    any_dtype = True

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        means = torch.tensor([[1.0, 0.4], [-0.8, 0.9], [0.1, -1.1]], dtype=x.dtype)
        own = torch.tensor([0.5, 0.3, 0.4], dtype=x.dtype).square()
        total = own + t.square().unsqueeze(1)
        away = x.unsqueeze(1) - means
        shares = torch.softmax(-away.square().sum(-1) / (2 * total) - torch.log(total), 1)
        return (shares.unsqueeze(-1) * (means + (own / total).unsqueeze(-1) * away)).sum(1)


MODEL = ScoreModel(MixtureDenoiser(), EDM(), "sample", (2,))
START = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def carried(x: Tensor, first: float, last: float) -> Tensor:
    """Exact end of the flow between two log-SNRs."""
    return sample_adaptive(MODEL, x, order=3, rtol=0.0, atol=1e-7, t_start=math.exp(-first),
                           t_end=math.exp(-last)).samples


@pytest.mark.parametrize("degree", [0, 1])
def test_untrained_steps_have_an_order_of_two_above_their_degree(degree: int) -> None:
    exact = carried(START * math.exp(1.0), -1.0, 1.5)
    counts, errors = [12, 16, 22, 30], []
    for count in counts:
        remainder = Remainder(np.linspace(-1.0, 1.5, count + 1).tolist(), degree, (2,)).double()
        result = sample_taylor(MODEL, START * math.exp(1.0), remainder)
        assert result.nfe == (2 + degree) * count
        errors.append((result.samples - exact).norm().item())
    assert abs(-np.polyfit(np.log(counts), np.log(errors), 1)[0] - (degree + 2)) < 0.15


def test_weights_are_the_integrals_of_the_exponential() -> None:
    h = torch.tensor([0.3, 2.0], dtype=torch.float64)
    u = torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None] * h
    for power in (0, 1, 2):
        torch.testing.assert_close(_integral(h, power), torch.trapezoid(torch.exp(u) * u**power, u, dim=0), rtol=1e-7,
                                   atol=0)


@pytest.mark.parametrize(("name", "tolerance"), [("fashion-mnist-edm", 1e-5), ("fashion-mnist-ddpm", 1e-3)])
def test_the_flow_has_the_derivatives_of_its_differences(name: str, tolerance: float) -> None:
    """Of a discrete schedule too, whose time is linear in pieces and no formula of torch's."""
    model = load(name).double()
    flow = Flow(model.schedule, model.prediction, model)
    y = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    at = torch.tensor([0.4], dtype=torch.float64)
    with torch.no_grad():
        first, second = total_derivatives(flow, y, at, 2)
        d = 1e-4
        after, before = flow(y + d * first, at + d), flow(y - d * first, at - d)
    torch.testing.assert_close(second, (after - before) / (2 * d), rtol=tolerance, atol=tolerance)


GRID = [-1.5, 0.0, 1.5]


def exact_steps() -> OwnSteps:
    """Two large steps of six trajectories."""
    states = [START * math.exp(-GRID[0])]
    for first, last in zip(GRID[:-1], GRID[1:], strict=True):
        states.append(carried(states[-1], first, last))
    scaled = [state * math.exp(value) for state, value in zip(states, GRID, strict=True)]
    return OwnSteps(torch.arange(2).repeat_interleave(6), torch.cat(scaled[:-1]), torch.cat(scaled[1:]))


@pytest.mark.parametrize("degree", [0, 1])
def test_training_brings_large_steps_nearer_to_the_flow(degree: int) -> None:
    steps, remainder = exact_steps(), Remainder(GRID, degree, (2,)).double()
    result = fit(remainder, remainder_loss(MODEL), lambda step: steps, steps=60, optimizer=adam(0.02))
    assert min(result.losses) < 0.9 * result.losses[0]


def test_the_gradients_of_the_points_are_those_of_finite_differences() -> None:
    steps, remainder = exact_steps(), Remainder(GRID, 1, (2,)).double()

    def loss(fractions: Tensor, gains: Tensor) -> Tensor:
        class Given(Remainder):
            def forward(self, steps: Tensor) -> tuple[Tensor, Tensor]:
                return fractions[steps], gains[steps]

        stepper = TaylorLagrangeSampler(MODEL.schedule, MODEL.prediction, Given(GRID, 1, (2,)))
        nodes = torch.tensor(GRID, dtype=torch.float64)
        return stepper.step(MODEL, nodes[steps.number], nodes[steps.number + 1], steps.before, (steps.number,)).y

    assert torch.autograd.gradcheck(loss, tuple(p.detach().requires_grad_() for p in remainder.parameters()),
                                    atol=1e-4, rtol=1e-4)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="degree=2: choose 0 or 1"):
        Remainder([0.0, 1.0], 2, (2,))
    for grid in ([0.0], [1.0, 0.0], [0.0, float("inf")]):
        with pytest.raises(ValueError, match="log_snrs"):
            Remainder(grid, 0, (2,))
    assert isinstance(Remainder([0.0, 1.0], 0, (2,)), nn.Module)
