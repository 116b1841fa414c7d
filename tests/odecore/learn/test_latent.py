"""Latent ODEs: their terms in closed form, and that they learn a path which they go on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from odecore.facade.methods import stepper
from odecore.learn.blocks import OnGrid, WithTime
from odecore.learn.fields import MLP
from odecore.learn.fit import adam, fit
from odecore.learn.latent import LatentODE, Normal

TIMES = tuple(torch.linspace(0, 2, 11).tolist())


def latent(noise: float = 0.1) -> LatentODE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LatentODE(WithTime(MLP((3, 16, 2))), nn.Linear(2, 1), size=1, latent=2, hidden=16, noise=noise,
                         integrator=OnGrid(stepper("classic_rk4"), 1))


def waves(seed: int, count: int, times: tuple[float, ...]) -> Tensor:
    phases = 2 * math.pi * torch.rand(count, 1, generator=torch.Generator().manual_seed(seed))
    return torch.sin(2 * torch.tensor(times) + phases).unsqueeze(2)


def test_the_divergence_is_that_of_normal_distributions() -> None:
    q = Normal(torch.tensor([[0.3, -1.0]]), torch.tensor([[-0.5, 0.2]]))
    ours = torch.distributions.Normal(q.mean, q.log_std.exp())
    wanted = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(q.divergence_from_standard(), wanted)


def test_the_misfit_is_the_negative_log_density_of_the_observations() -> None:
    model, x = latent(0.3), waves(0, 4, TIMES)
    q = model.posterior(x, TIMES)
    start = q.mean + q.log_std.exp() * torch.randn(q.mean.shape, generator=torch.Generator().manual_seed(5))
    wanted = -torch.distributions.Normal(model.decode(start, TIMES), 0.3).log_prob(x).sum((1, 2)).mean()
    torch.testing.assert_close(model.negative_elbo(x, TIMES, 5)["misfit"], wanted)


def test_the_posterior_depends_on_irregular_times() -> None:
    model, x = latent(), waves(0, 2, TIMES)
    moved = (0.0, 0.05, *TIMES[2:])
    assert not torch.allclose(model.posterior(x, TIMES).mean, model.posterior(x, moved).mean)


def test_the_posterior_sees_the_first_observation_last() -> None:
    model, x = latent(), waves(0, 1, TIMES).requires_grad_()
    gradient = torch.autograd.grad(model.posterior(x, TIMES).mean.sum(), x)[0].flatten().abs()
    assert gradient[0] > gradient[-1]


def test_fit_makes_it_follow_waves_and_go_on_beyond_the_observations() -> None:
    model = latent()
    later = (*TIMES, *(2.0 + 0.2 * k for k in range(1, 4)))
    wanted, seen = waves(99, 32, later), waves(99, 32, TIMES)

    def error() -> float:
        with torch.no_grad():
            return (model(seen, TIMES, later) - wanted)[:, len(TIMES):].square().mean().sqrt().item()

    before = error()
    result = fit(model, lambda module, batch: module.negative_elbo(batch[0], TIMES, batch[1]),
                 lambda step: (waves(step, 32, TIMES), step), steps=80, optimizer=adam(2e-2))
    assert set(result.parts) == {"misfit", "divergence"}
    assert error() < 0.7 * before


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="noise=0"):
        LatentODE(nn.Identity(), nn.Identity(), size=1, latent=1, noise=0.0)
    with pytest.raises(ValueError, match="x has shape"):
        latent().posterior(torch.zeros(2, 3, 1), TIMES)
