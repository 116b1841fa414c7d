"""The Fréchet distance against closed forms and independent implementations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from eval.fid import Moments, Statistics, frechet_distance


def features(count: int, dimension: int, seed: int) -> torch.Tensor:
    """Correlated features with a mean."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    return torch.randn(count, dimension, generator=generator, dtype=torch.float64) @ mixing + seed


def test_diagonal_gaussians_have_the_closed_form_distance() -> None:
    mean_a, mean_b = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, -1.0, 2.5])
    std_a, std_b = torch.tensor([1.0, 0.5, 3.0]), torch.tensor([2.0, 0.25, 3.0])
    wanted = ((mean_a - mean_b) ** 2).sum() + ((std_a - std_b) ** 2).sum()
    got = frechet_distance(Moments(mean_a, torch.diag(std_a**2)), Moments(mean_b, torch.diag(std_b**2)))
    assert got == pytest.approx(wanted.item(), rel=1e-12)


def test_distance_to_the_same_gaussian_is_zero() -> None:
    a = Statistics.of(features(500, 20, 1)).moments()
    assert frechet_distance(a, a) <= 1e-9 * a.covariance.trace().item()


def test_distance_is_symmetric() -> None:
    a, b = Statistics.of(features(300, 12, 1)), Statistics.of(features(400, 12, 2))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-11)


def test_distance_equals_the_one_from_a_general_matrix_root() -> None:
    a, b = Statistics.of(features(300, 16, 3)).moments(), Statistics.of(features(300, 16, 4)).moments()
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    wanted = ((a.mean - b.mean) ** 2).sum() + torch.trace(a.covariance + b.covariance) - 2 * np.trace(root)
    assert frechet_distance(a, b) == pytest.approx(wanted.item(), rel=1e-9)


def test_distance_equals_torchmetrics_on_the_same_features() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    metric = FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 2, 2)).set_dtype(torch.float64)
    a, b = features(200, 12, 5).reshape(-1, 3, 2, 2), features(300, 12, 6).reshape(-1, 3, 2, 2)
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert frechet_distance(Statistics.of(a.flatten(1)), Statistics.of(b.flatten(1))) == pytest.approx(
        metric.compute().item(), rel=1e-6)


def test_rank_deficient_covariances_give_the_distance_in_their_subspace() -> None:
    a, b = torch.zeros(40, 40, dtype=torch.float64), torch.zeros(40, 40, dtype=torch.float64)
    direction = torch.nn.functional.normalize(torch.arange(1.0, 41, dtype=torch.float64), dim=0)
    a, b = 4.0 * torch.outer(direction, direction), 9.0 * torch.outer(direction, direction)
    zero = torch.zeros(40, dtype=torch.float64)
    assert frechet_distance(Moments(zero, a), Moments(zero, b)) == pytest.approx(1.0, rel=1e-6)


def test_merged_statistics_equal_those_of_all_samples() -> None:
    f = features(101, 7, 8)
    merged = Statistics.empty(7)
    for part in f.split(13):
        merged = merged.merge(Statistics.of(part))
    moments = merged.moments()
    assert merged.count == 101
    np.testing.assert_allclose(moments.mean, f.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(f.numpy().T), rtol=1e-9, atol=1e-9)


def test_moments_saved_and_loaded_are_the_same_bits(tmp_path: Path) -> None:
    moments = Statistics.of(features(50, 5, 9)).moments()
    moments.save(tmp_path / "m.npz")
    loaded = Moments.load(tmp_path / "m.npz")
    assert torch.equal(loaded.mean, moments.mean) and torch.equal(loaded.covariance, moments.covariance)
    assert loaded.count == 50


def test_one_sample_has_no_covariance() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        Statistics.of(torch.ones(1, 3)).moments()


def test_other_numbers_of_features_are_refused() -> None:
    with pytest.raises(ValueError, match="one extractor"):
        frechet_distance(Statistics.of(features(50, 3, 1)), Statistics.of(features(50, 4, 1)))
    with pytest.raises(ValueError, match="one extractor"):
        Statistics.empty(3).merge(Statistics.empty(4))


def test_non_finite_features_are_refused() -> None:
    with pytest.raises(ValueError, match="non-finite"):
        Statistics.of(torch.tensor([[1.0, float("nan")]]))


def test_few_samples_for_the_dimension_bring_a_warning() -> None:
    with pytest.warns(UserWarning, match="8 samples for 8 features"):
        frechet_distance(Statistics.of(features(8, 8, 1)), Statistics.of(features(100, 8, 2)))


def test_a_damaged_statistics_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match="holds no statistics"):
        Moments.load(tmp_path / "broken.npz")
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    with pytest.raises(ValueError, match="mu and sigma"):
        Moments.load(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="do not exist"):
        Moments.load(tmp_path / "none.npz")


def test_an_asymmetric_covariance_is_refused() -> None:
    with pytest.raises(ValueError, match="not symmetric"):
        Moments(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
