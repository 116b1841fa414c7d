"""Continuous normalising flows, against densities in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from odecore.explicit.embedded import DOP853
from odecore.facade.methods import stepper
from odecore.learn.blocks import OnGrid, WithTime, WithTolerance
from odecore.learn.fields import MLP
from odecore.learn.fit import adam, fit
from odecore.learn.flows import ContinuousFlow, negative_log_likelihood, signs


class Linear(nn.Module):
    """dy/dt = A y, which carries N(0, I) to N(0, E Eᵀ) with E = exp(A)."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.tensor([[0.5, -1.0], [0.3, -0.2]], dtype=torch.float64))

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        return y @ self.matrix.T


def points(count: int) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def density(field: Linear) -> torch.distributions.MultivariateNormal:
    carried = torch.linalg.matrix_exp(field.matrix)
    return torch.distributions.MultivariateNormal(torch.zeros(2, dtype=torch.float64), carried @ carried.T)


@pytest.mark.parametrize("integrator", [WithTolerance(DOP853, 1e-10, 1e-10), OnGrid(stepper("classic_rk4"), 64),
                                        WithTolerance(DOP853, 1e-10, 1e-10, "discrete", states=4)])
def test_a_linear_field_has_the_density_of_its_gaussian_and_the_gradient(integrator: object) -> None:
    flow = ContinuousFlow(Linear(), 2, integrator)
    x = points(6)
    found, wanted = flow(x), density(flow.field).log_prob(x)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), flow.field.matrix),
                               torch.autograd.grad(wanted.sum(), flow.field.matrix), rtol=1e-6, atol=1e-6)


def test_densities_of_a_nonlinear_flow_integrate_to_one() -> None:
    flow = ContinuousFlow(WithTime(MLP((3, 16, 2), seed=1, dtype=torch.float64)), 2, OnGrid(stepper("classic_rk4"), 10))
    axis = torch.linspace(-7, 7, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        assert flow(grid).exp().sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=1e-5)


def test_hutchinson_has_the_exact_mean_for_signs() -> None:
    flow = ContinuousFlow(Linear(), 2, OnGrid(stepper("classic_rk4"), 20))
    x = points(1).expand(4000, 2)
    with torch.no_grad():
        estimates, exact = flow(x, signs(x, seed=0)), flow(x[:1])
    error = estimates.std() / len(x) ** 0.5
    assert 0 < error < 0.02 and (estimates.mean() - exact).abs() < 4 * error


def test_samples_have_the_covariance_of_the_density() -> None:
    flow = ContinuousFlow(Linear(), 2, OnGrid(stepper("classic_rk4"), 20))
    with torch.no_grad():
        drawn = flow.sample(20_000, seed=3)
    torch.testing.assert_close(drawn.T.cov(), density(flow.field).covariance_matrix.detach(), rtol=0.05, atol=0.02)
    assert torch.equal(drawn[:2], flow.sample(20_000, seed=3)[:2])


@pytest.mark.parametrize("probes", [0, 1])
def test_fit_brings_a_flow_to_the_entropy_of_its_data(probes: int) -> None:
    flow = ContinuousFlow(WithTime(MLP((2, 16, 1), seed=2)), 1, OnGrid(stepper("classic_rk4"), 2))

    def data(step: int) -> tuple[Tensor, int]:
        return 0.5 + 0.25 * torch.randn(256, 1, generator=torch.Generator().manual_seed(step)), step

    losses = fit(flow, negative_log_likelihood(probes), data, steps=60, optimizer=adam(5e-2)).losses
    entropy = 0.5 * torch.log(2 * torch.pi * torch.e * torch.tensor(0.25**2)).item()
    assert sum(losses[-20:]) / 20 == pytest.approx(entropy, abs=0.05)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="x has shape"):
        ContinuousFlow(Linear(), 2)(torch.zeros(3, 3))
