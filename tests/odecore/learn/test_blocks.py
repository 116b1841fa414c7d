"""ODEs as layers: the same values and gradients whichever way they are integrated and differentiated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from odecore.explicit.embedded import DOP853
from odecore.facade.methods import stepper
from odecore.learn.blocks import Integrator, NeuralODE, OnGrid, WithTime, WithTolerance
from odecore.learn.fields import MLP

TIMES = (0.0, 0.4, 1.0)
INTEGRATORS: dict[str, Integrator] = {
    "grid": OnGrid(stepper("classic_rk4"), 32),
    "grid, stored states": OnGrid(stepper("classic_rk4"), 32, states=3),
    "implicit grid": OnGrid(stepper("gl6"), 8),
    "tolerance": WithTolerance(DOP853, 1e-10, 1e-10),
    "discrete": WithTolerance(DOP853, 1e-10, 1e-10, "discrete", states=4),
    "continuous": WithTolerance(DOP853, 1e-10, 1e-10, "continuous"),
}


class Rotation(nn.Module):
    """dy/dt = w (1 + t) (y_2, -y_1), a rotation by w (t + t²/2)."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(1.3, dtype=torch.float64))

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        return (self.rate * (1 + t.to(y.dtype)))[:, None] * torch.stack([y[:, 1], -y[:, 0]], 1)


def solution(rate: Tensor, y: Tensor, t: float) -> Tensor:
    cosine, sine = (rate * (t + t * t / 2)).cos(), (rate * (t + t * t / 2)).sin()
    return torch.stack([cosine * y[:, 0] + sine * y[:, 1], cosine * y[:, 1] - sine * y[:, 0]], 1)


@pytest.mark.parametrize("name", INTEGRATORS)
def test_every_integrator_gives_the_solution_and_its_gradients(name: str) -> None:
    field = Rotation()
    y0 = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64, requires_grad=True)
    states = INTEGRATORS[name](field, y0, TIMES, parameters=field.parameters())
    wanted = torch.stack([solution(field.rate, y0, t) for t in TIMES])
    torch.testing.assert_close(states, wanted, rtol=1e-7, atol=1e-7)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for actual, expected in zip(torch.autograd.grad((states * weights).sum(), (y0, field.rate)),
                                torch.autograd.grad((wanted * weights).sum(), (y0, field.rate)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", INTEGRATORS)
def test_a_path_may_lead_back(name: str) -> None:
    field, y0 = Rotation(), torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    there = INTEGRATORS[name](field, y0, TIMES)[-1]
    torch.testing.assert_close(INTEGRATORS[name](field, there, TIMES[::-1])[-1], y0, rtol=1e-7, atol=1e-7)


def test_a_layer_returns_the_end_state_of_images_too() -> None:
    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(2, 2, 1, bias=False)

        def forward(self, y: Tensor, t: Tensor) -> Tensor:
            return self.convolution(y)

    layer, x = NeuralODE(Decay(), OnGrid(stepper("classic_rk4"), 8)), torch.randn(3, 2, 4, 4)
    matrix = torch.linalg.matrix_exp(layer.field.convolution.weight[:, :, 0, 0])
    torch.testing.assert_close(layer(x), torch.einsum("oc,bcij->boij", matrix, x), rtol=1e-4, atol=1e-4)
    layer(x).sum().backward()
    assert layer.field.convolution.weight.grad is not None


def test_a_network_sees_the_time_of_each_sample() -> None:
    network = WithTime(MLP((3, 2)))
    y, t = torch.zeros(2, 2), torch.tensor([0.0, 5.0], dtype=torch.float64)
    assert not torch.allclose(*network(y, t))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="steps=0"):
        OnGrid(stepper("euler"), 0)
    with pytest.raises(ValueError, match="gradient='adjoint'"):
        WithTolerance(gradient="adjoint")
