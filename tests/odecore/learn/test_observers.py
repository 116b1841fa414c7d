"""Observers of linear plants, whose maps and errors are known, and what training does."""

from __future__ import annotations

import functools

import pytest
import torch
from scipy.linalg import expm, solve_sylvester
from torch import Tensor, nn

from odecore.learn.filters import Filter, Plant, rewound, settled
from odecore.learn.fit import adam, fit, minibatches
from odecore.learn.observers import KKL, Luenberger, Whitening, autoencoder, between, following, regression

A = torch.tensor([[0.0, 1.0], [-1.3, -0.1]], dtype=torch.float64)
C = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
LINEAR = Plant(lambda x, t: x @ A.T, lambda x: x @ C.T)
POINTS = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
FILTER = Filter.bessel(2, cutoff=0.5)
STEP = 0.05


def sylvester() -> Tensor:
    return torch.from_numpy(solve_sylvester(-FILTER.D.numpy(), A.numpy(), (FILTER.F @ C).numpy()))


def runs(starts: Tensor, times: int) -> Tensor:
    """Exact states of the linear plant."""
    flow = torch.from_numpy(expm(STEP * A.numpy()))
    states = [starts]
    for _ in range(times - 1):
        states.append(states[-1] @ flow.T)
    return torch.stack(states, 1)


class Linear(nn.Module):
    """A linear map as the network of an observer, in its whitened coordinates."""

    def __init__(self, matrix: Tensor, before: Whitening, after: Whitening) -> None:
        super().__init__()
        self.weight = nn.Parameter(after.whiten @ matrix @ before.colour)
        self.bias = nn.Parameter(after.differences(matrix @ before.mean - after.mean))

    def forward(self, v: Tensor) -> Tensor:
        return nn.functional.linear(v, self.weight, self.bias)


def exact_observer() -> KKL:
    """The observer with the maps of the linear plant."""
    pairs = settled(LINEAR, FILTER, rewound(LINEAR, POINTS, FILTER.memory))
    observer, t = KKL(FILTER, pairs), sylvester()
    observer.to_z = Linear(t, observer.of_x, observer.of_z)  # type: ignore[assignment]
    observer.to_x = Linear(torch.linalg.pinv(t), observer.of_z, observer.of_x)  # type: ignore[assignment]
    return observer


def test_whitened_data_have_mean_zero_and_covariance_one_and_come_back() -> None:
    data = POINTS @ torch.tensor([[1.0, 0.5], [0.0, 0.1]], dtype=torch.float64) + 5.0
    whitening = Whitening(data)
    white = whitening(data)
    torch.testing.assert_close(white.mean(0), torch.zeros(2).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(2).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(whitening.inverse(white), data, rtol=1e-12, atol=1e-12)


def test_directions_without_data_are_not_blown_up() -> None:
    whitening = Whitening(POINTS * torch.tensor([1.0, 0.0]), floor=1e-2)
    assert float(whitening.differences(torch.tensor([0.0, 1.0]).double()).norm()) == pytest.approx(
        100 / float(POINTS[:, 0].std()), rel=1e-6)


def test_the_solution_of_sylvesters_equation_has_no_residual() -> None:
    observer = exact_observer()
    assert float(observer.residual(LINEAR, POINTS).detach().abs().max()) < 1e-8
    torch.testing.assert_close(observer.decode(observer.encode(POINTS)), POINTS, rtol=1e-8, atol=1e-8)
    loss = autoencoder(LINEAR)(observer, (POINTS,))
    assert isinstance(loss, dict) and all(float(part) < 1e-15 for part in loss.values())


def test_estimates_of_a_linear_plant_tend_to_its_state_and_from_the_right_start_stay_there() -> None:
    observer, x = exact_observer(), runs(POINTS[:5], 400)
    late = observer.estimate(x[..., :1], STEP) - x
    assert float(late[:, -1].abs().max()) < 1e-3 < float(late[:, 1].abs().max())
    started = observer.estimate(x[..., :1], STEP, start=x[:, 0]) - x
    assert float(started.abs().max()) < 2e-3  # of outputs taken as linear between their times


def test_the_error_by_noise_is_the_predicted_one() -> None:
    observer = exact_observer()
    noise = torch.randn(500, 240, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    error = observer.estimate(noise, STEP)[:, 200:]
    measured = float(error.square().sum(-1).mean().sqrt())
    z = FILTER.states(noise[:10], STEP)[:, -1]
    assert measured == pytest.approx(observer.noise(z, STEP), rel=0.05)


@pytest.mark.parametrize("way", ["regression", "autoencoder"])
def test_training_finds_maps_that_observe(way: str) -> None:
    pairs = settled(LINEAR, FILTER, rewound(LINEAR, POINTS, FILTER.memory))
    observer, x = KKL(FILTER, pairs, hidden=(30,), floor=0.1), runs(POINTS[:20] / 2, 200)
    before = (observer.estimate(x[..., :1], STEP) - x)[:, 150:].square().mean().sqrt()
    loss, data = (regression, pairs) if way == "regression" else (autoencoder(LINEAR), pairs[:1])
    fit(observer, loss, minibatches(*data, size=200), steps=300, optimizer=adam(1e-2))
    after = (observer.estimate(x[..., :1], STEP) - x)[:, 150:].square().mean().sqrt()
    assert float(after) < min(0.3 * float(before), 0.1)


def test_the_error_of_a_luenberger_observer_decays_with_its_gain() -> None:
    gain = torch.tensor([[2.0], [1.0]], dtype=torch.float64)
    observer, x = Luenberger(LINEAR.field, None, LINEAR.output, gain), runs(POINTS[:5], 41)
    estimate = observer.estimate(x[..., :1], STEP, start=torch.zeros(5, 2, dtype=torch.float64)).detach()
    decay = torch.from_numpy(expm(40 * STEP * (A - gain @ C).numpy()))
    torch.testing.assert_close(x[:, -1] - estimate[:, -1], x[:, 0] @ decay.T, rtol=0, atol=2e-3)


def test_a_luenberger_observer_learns_the_unknown_part_and_its_gain() -> None:
    missing = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(missing.weight)
    observer = Luenberger(lambda x, t: x @ A.T * x.new_tensor([1.0, 0.0]), missing, LINEAR.output,
                          torch.ones(2, 1, dtype=torch.float64))
    x = runs(POINTS[:50], 21)
    loss = functools.partial(following, step=STEP)
    first = float(loss(observer, (x, x[..., :1], torch.zeros_like(x[:, 0]))))
    fit(observer, loss, lambda step: (x, x[..., :1], torch.zeros_like(x[:, 0])), steps=25, optimizer=adam(0.1))
    assert float(loss(observer, (x, x[..., :1], torch.zeros_like(x[:, 0])))) < 0.7 * first


def test_values_are_interpolated_linearly() -> None:
    values = torch.tensor([[[0.0], [2.0], [1.0]], [[5.0], [5.0], [6.0]]])
    torch.testing.assert_close(between(values, torch.tensor([0.25, 2.0]).double()), torch.tensor([[0.5], [6.0]]))


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="two different rows"):
        Whitening(torch.ones(5, 2))
    with pytest.raises(ValueError, match="give \\(states, outputs\\)"):
        Luenberger(LINEAR.field, None, LINEAR.output, torch.ones(2))
