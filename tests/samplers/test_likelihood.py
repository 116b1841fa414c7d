"""Likelihoods through the probability-flow ODE, against densities in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from odecore.divergence import estimated_divergence, exact_divergence
from odecore.explicit.embedded import DOP853
from samplers.likelihood import Bits, Exact, Hutchinson, bits_per_dim, dequantised, log_likelihood
from scoremodels.analytic import GaussianModel, MixtureModel
from scoremodels.loaders import load
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

SCHEDULES: dict[str, NoiseSchedule] = {
    "continuous-vp": ContinuousVP(), "discrete-vp": DiscreteVP.linear(), "ve": VE(), "edm": EDM(),
    "rectified-flow": RectifiedFlow()}
COVARIANCE = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.8]], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]], dtype=torch.float64)
STDS, WEIGHTS = torch.tensor([0.3, 0.2, 0.5]).double(), torch.tensor([0.5, 0.3, 0.2]).double()

TIGHT = {"rtol": 1e-9, "atol": 1e-9, "stepper": DOP853}
Density = Callable[[Tensor], Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian_at(schedule: NoiseSchedule, t: float) -> Density:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    covariance = alpha**2 * COVARIANCE + sigma**2 * torch.eye(3, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(alpha * MEAN, covariance).log_prob


def mixture_at(schedule: NoiseSchedule, t: float) -> Density:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    widths = ((alpha * STDS).square() + sigma**2).sqrt()
    parts = torch.distributions.Independent(
        torch.distributions.Normal(alpha * MEANS, widths[:, None].expand(3, 2)), 1)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(WEIGHTS), parts).log_prob


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_gaussian_has_its_exact_density_on_every_schedule(name: str) -> None:
    schedule = SCHEDULES[name]
    x = MEAN + draw(5, 3) @ torch.linalg.cholesky(COVARIANCE).T
    found = log_likelihood(GaussianModel(MEAN, COVARIANCE, schedule), x, trace=Exact(),
                           prior=gaussian_at(schedule, schedule.t_max), **TIGHT)
    assert torch.allclose(found.log_prob, gaussian_at(schedule, schedule.t_min)(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_mixture_has_its_exact_density_on_every_schedule(name: str) -> None:
    schedule = SCHEDULES[name]
    x = MEANS[[0, 1, 2, 0]] + 0.3 * draw(4, 2, seed=1)
    found = log_likelihood(MixtureModel(MEANS, STDS, WEIGHTS, schedule), x, trace=Exact(chunk=1),
                           prior=mixture_at(schedule, schedule.t_max), **TIGHT)
    assert torch.allclose(found.log_prob, mixture_at(schedule, schedule.t_min)(x), rtol=0, atol=1e-6)


def test_a_flow_from_pure_noise_needs_no_other_prior() -> None:
    schedule = RectifiedFlow()
    x = draw(4, 3)
    found = log_likelihood(GaussianModel(MEAN, COVARIANCE, schedule), x, trace=Exact(), **TIGHT)
    assert torch.allclose(found.log_prob, gaussian_at(schedule, schedule.t_min)(x), rtol=0, atol=1e-6)


def test_a_density_may_be_asked_for_at_any_time() -> None:
    schedule, t, x = EDM(), 0.7, draw(4, 3)
    found = log_likelihood(GaussianModel(MEAN, COVARIANCE, schedule), x, trace=Exact(), t=t,
                           prior=gaussian_at(schedule, schedule.t_max), **TIGHT)
    assert torch.allclose(found.log_prob, gaussian_at(schedule, t)(x), rtol=0, atol=1e-6)


def test_a_fixed_grid_converges_with_the_order_of_its_method() -> None:
    schedule, x = ContinuousVP(), draw(3, 3)
    model, exact = GaussianModel(MEAN, COVARIANCE, schedule), gaussian_at(schedule, schedule.t_min)(x)
    errors, counts = [], (100, 200, 400)
    for steps in counts:
        angles = np.linspace(*np.log([schedule.ratio(schedule.t_min), schedule.ratio(schedule.t_max)]), steps + 1)
        times = schedule.time_of_ratio(np.exp(angles))
        times[[0, -1]] = schedule.t_min, schedule.t_max
        found = log_likelihood(model, x, trace=Exact(), times=times.tolist(),
                               prior=gaussian_at(schedule, schedule.t_max))
        assert found.nfe == 6 * steps + 1
        errors.append((found.log_prob - exact).abs().max().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(5, abs=0.15)


def test_the_estimate_of_many_probes_has_the_exact_mean() -> None:
    schedule, x = EDM(), draw(1, 3).expand(500, 3)
    model = GaussianModel(MEAN, COVARIANCE, schedule)
    prior = gaussian_at(schedule, schedule.t_max)
    exact = gaussian_at(schedule, schedule.t_min)(x[0])
    for distribution in ("rademacher", "gaussian"):
        found = log_likelihood(model, x, trace=Hutchinson(distribution=distribution), prior=prior, rtol=1e-4, atol=1e-4)
        error = found.log_prob.std() / math.sqrt(len(x))
        assert error > 0 and (found.log_prob.mean() - exact).abs() < 4 * error


def test_a_sample_has_the_same_estimate_in_any_batch() -> None:
    model, x = MixtureModel(MEANS, STDS, WEIGHTS, EDM()), draw(6, 2)
    whole = log_likelihood(model, x, trace=Hutchinson(seed=3)).log_prob
    part = log_likelihood(model, x[4:], trace=Hutchinson(seed=7)).log_prob
    assert torch.allclose(whole[4:], part, rtol=0, atol=1e-10)


def test_signs_estimate_a_diagonal_trace_exactly() -> None:
    x = draw(3, 4)
    probes = Hutchinson().draw(x)
    assert set(probes.unique().tolist()) == {-1.0, 1.0} and probes.shape == (3, 1, 4)
    found = estimated_divergence(torch.sin, x, probes)
    assert torch.allclose(found.divergence, torch.cos(x).sum(1)) and torch.equal(found.value, torch.sin(x))


@pytest.mark.parametrize("chunk", [1, 2, 64])
def test_the_exact_divergence_is_the_trace_of_the_jacobian(chunk: int) -> None:
    matrix, x = draw(6, 6), draw(4, 2, 3, seed=2)

    def function(y: Tensor) -> Tensor:
        return torch.tanh(y.flatten(1) @ matrix).reshape(y.shape)

    wanted = torch.stack([torch.func.jacrev(function)(row[None]).reshape(6, 6).trace() for row in x])
    assert torch.allclose(exact_divergence(function, x, chunk=chunk).divergence, wanted)


def test_the_divergence_passes_gradients_to_the_parameters_of_its_function() -> None:
    weight = draw(3, 3).requires_grad_()
    exact_divergence(lambda y: torch.tanh(y @ weight), draw(5, 3)).divergence.sum().backward()
    first = weight.grad.clone()
    step = 1e-6 * torch.eye(3, dtype=torch.float64)

    def total(moved: Tensor) -> Tensor:
        return exact_divergence(lambda y: torch.tanh(y @ moved), draw(5, 3)).divergence.sum()

    with torch.no_grad():
        wanted = (total(weight + step) - total(weight - step)) / 2e-6
    assert torch.allclose(first.trace(), wanted, rtol=1e-6)


def test_bits_of_evenly_spread_bytes_are_eight() -> None:
    images = torch.randint(0, 256, (400, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    x, offset = dequantised(images, (-1.0, 1.0), range(400))
    assert offset == pytest.approx(6.9944, abs=1e-4)
    # The density of evenly spread bytes is 255/512 on an interval of length 512/255.
    assert x.min() >= -1 - 1 / 255 and x.max() <= 1 + 1 / 255
    assert -math.log2(255 / 512) + offset == pytest.approx(8.0)


def test_bits_of_a_gaussian_are_those_of_its_density() -> None:
    model = GaussianModel(torch.zeros(2), 0.25 * torch.eye(2), EDM())
    images = torch.randint(60, 190, (7, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = bits_per_dim(model, images, trace=Exact(), batch=3, rtol=1e-6, atol=1e-6)
    x, offset = dequantised(images, model.value_range, range(7))
    density = torch.distributions.Normal(0.0, 0.5).log_prob(x.double()).sum(1)
    assert torch.allclose(found.values, offset - density / (2 * math.log(2)), atol=2e-4)
    assert found.mean == pytest.approx(found.values.mean().item())
    assert found.standard_error == pytest.approx((found.values.std() / math.sqrt(7)).item())
    assert Bits(found.values[:1], 1).standard_error == math.inf


def test_an_embedded_model_needs_fewer_bits_than_bytes_have_and_fewer_for_clothes_than_for_noise() -> None:
    model = load("fashion-mnist-edm")
    from samplers import sample

    drawn = ((sample(model, num=1, nfe=8, condition=3).samples.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    noise = torch.randint(0, 256, drawn.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = bits_per_dim(model, torch.cat([drawn, noise]), condition=torch.tensor([3, 3]), rtol=1e-2, atol=1e-2).values
    assert found[0] < 6 and found[1] > found[0] + 2


@pytest.mark.parametrize(("arguments", "message"), [
    ({"t": 80.0}, "below 80"), ({"t": 0.0}, "need not exist"), ({"times": [1.0]}, "at least two"),
    ({"times": [2.0, 1.0]}, "in order"), ({"times": [1.0, 2.0], "t": 0.5}, "leave t out")])
def test_wrong_times_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_likelihood(GaussianModel(MEAN, COVARIANCE, EDM()), draw(2, 3), **arguments)


def test_wrong_states_probes_and_images_are_refused() -> None:
    model: ScoreModel = GaussianModel(MEAN, COVARIANCE, EDM())
    with pytest.raises(ValueError, match="x has shape"):
        log_likelihood(model, draw(2, 4))
    with pytest.raises(ValueError, match="probes=0"):
        Hutchinson(probes=0)
    with pytest.raises(ValueError, match="distribution='even'"):
        Hutchinson(distribution="even")
    with pytest.raises(ValueError, match="give bytes"):
        bits_per_dim(model, draw(2, 3))
    with pytest.raises(ValueError, match="batch=0"):
        bits_per_dim(model, torch.zeros(2, 3, dtype=torch.uint8), batch=0)
    with pytest.raises(ValueError, match="chunk=0"):
        exact_divergence(torch.sin, draw(2, 3), chunk=0)
    with pytest.raises(ValueError, match="probes have shape"):
        estimated_divergence(torch.sin, draw(2, 3), draw(2, 3))
