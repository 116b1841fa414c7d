from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from odecore.torus import coefficients, resampled
from samplers import sample
from scoremodels.loaders import load, save
from scoremodels.model import ScoreModel
from scoremodels.networks.preconditioning import EDMPreconditioned
from scoremodels.networks.spectral import (
    SpectralConvolution,
    SpectralDenoiser,
    function_noise,
    noise_spectrum,
)
from scoremodels.schedule import EDM


def denoiser() -> SpectralDenoiser:
    network = SpectralDenoiser(width=8, blocks=2).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.7 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def smooth(points: int) -> Tensor:
    """A function with wave numbers up to 3."""
    return resampled(resampled(function_noise([0, 1], 15).double(), 7, 2), points, 2)


def test_a_coarse_grid_sees_the_projection_of_the_noise_of_a_fine_one() -> None:
    coarse, fine = function_noise([3, 4], 15, channels=2), function_noise([3, 4], 60, channels=2)
    assert torch.allclose(resampled(fine, 15, 2), coarse, atol=1e-5)
    assert torch.allclose(function_noise([4], 15, channels=2), coarse[1:], atol=1e-6)


def test_the_variance_of_the_noise_has_a_limit() -> None:
    def variance(modes: int) -> float:
        square = noise_spectrum(modes).square()
        return (2 * square[:, 1:].sum() + square[:, 0].sum()).item()

    assert 0.3 < variance(13) < variance(100) < variance(300) < 1.0
    assert variance(300) - variance(100) < 0.7 * (variance(100) - variance(33))
    assert function_noise(range(200), 28).var().item() == pytest.approx(variance(13), rel=0.05)


def test_convolutions_are_the_same_on_every_grid() -> None:
    convolution = SpectralConvolution(1).double()
    coarse, fine = convolution(smooth(15)), convolution(smooth(32))
    assert torch.allclose(resampled(fine, 15, 2), coarse, atol=1e-6)


def test_the_denoiser_tends_to_one_operator_as_the_grid_is_refined() -> None:
    network, level = denoiser(), torch.tensor([0.1, -0.2]).double()
    with torch.no_grad():
        exact = coefficients(network(smooth(127), level), 3, 2)
        found = [coefficients(network(smooth(n), level), 3, 2) for n in (9, 13, 17, 33)]
    errors = [(one - exact).abs().max().item() for one in found]
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.05 * errors[0]
    assert errors[3] < 1e-3 * exact.abs().max()


def test_samples_of_one_seed_are_one_picture_on_every_grid() -> None:
    network = EDMPreconditioned(denoiser().float())
    with torch.no_grad():
        network.body.head.weight.mul_(0.1)
    found = {}
    for points in (16, 32):
        model = ScoreModel(network, EDM(), "sample", (1, points, points))
        found[points] = sample(model, x_T=80 * function_noise([5, 6], points), solver="dpm-solver++-2m", nfe=6).samples
    difference = (resampled(found[32], 16, 2) - resampled(found[16], 16, 2)).norm() / found[16].norm()
    assert difference < 0.05


def test_a_folder_holds_the_denoiser(tmp_path: Path) -> None:
    network = EDMPreconditioned(denoiser().float())
    save(ScoreModel(network, EDM(), "sample", (1, 16, 16)), tmp_path / "model")
    x, sigma = function_noise([1], 16), torch.tensor([0.7])
    assert torch.equal(load(tmp_path / "model").network(x, sigma), network(x, sigma))


@pytest.mark.parametrize(("call", "name"), [
    (lambda: noise_spectrum(3, decay=1.0), "decay"), (lambda: noise_spectrum(3, corner=0.0), "corner"),
    (lambda: SpectralDenoiser(width=4, blocks=1)(torch.zeros(1, 1, 8, 9), torch.zeros(1)), "x has shape")])
def test_a_wrong_argument_is_named(call: object, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call()  # type: ignore[operator]
