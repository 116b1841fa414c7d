"""The feature extractors: the embedded classifier and Inception."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from eval.classifier import FashionClassifier
from eval.features import (
    CLASSIFIER_FOLDER,
    fashion_mnist_features,
    fashion_mnist_reference,
    inception_features,
    statistics_of,
)
from eval.fid import frechet_distance
from eval.images import from_bytes


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the format of the published InceptionV3 file."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Unloaded(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state_dict: object, strict: bool = True, assign: bool = False) -> None:
            """Keep the random weights."""

    path = tmp_path_factory.mktemp("inception") / "random.pth"
    empty = path.with_name("empty.pth")
    torch.save({}, empty)
    torch.manual_seed(0)
    torch.save(Unloaded("random", ["2048"], feature_extractor_weights_path=empty).state_dict(), path)
    return path


def test_folding_batch_normalisation_keeps_the_function() -> None:
    torch.manual_seed(0)
    net = FashionClassifier((4, 8, 8, 16), normalise=True)
    net.train()
    for _ in range(3):
        net(torch.randn(16, 1, 28, 28))
    x = torch.randn(5, 1, 28, 28)
    torch.testing.assert_close(net.folded()(x), net.eval()(x), rtol=1e-5, atol=1e-5)


def test_the_embedded_weights_are_at_most_three_megabytes() -> None:
    assert (CLASSIFIER_FOLDER / "model.safetensors").stat().st_size <= 3_000_000


def test_the_embedded_classifier_claims_at_least_92_percent() -> None:
    config = json.loads((CLASSIFIER_FOLDER / "config.json").read_text())
    assert config["training"]["test_accuracy"] >= 0.92


def test_the_embedded_classifier_has_the_accuracy_of_its_card() -> None:
    from eval.data import fashion_mnist

    images, labels = _or_skip(fashion_mnist, "test")
    extractor = fashion_mnist_features()
    logits = [extractor.net(from_bytes(x)) for x in images.split(1000)]
    accuracy = (torch.cat(logits).argmax(1) == labels).double().mean().item()
    claimed = json.loads((CLASSIFIER_FOLDER / "config.json").read_text())["training"]["test_accuracy"]
    assert accuracy == pytest.approx(claimed, abs=5e-4)


def test_the_reference_is_the_statistics_of_the_training_images() -> None:
    from eval.data import fashion_mnist

    images, _ = _or_skip(fashion_mnist, "train")
    found = statistics_of(fashion_mnist_features(), images[:6000])
    reference = fashion_mnist_reference()
    assert reference.count == 60_000
    assert frechet_distance(found, reference) < 0.01 * reference.covariance.trace().item()


def test_features_do_not_depend_on_the_batch() -> None:
    extractor = fashion_mnist_features()
    x = torch.rand(7, 1, 28, 28) * 2 - 1
    torch.testing.assert_close(torch.cat([extractor(part) for part in x.split(3)]), extractor(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_only_inception_is_called_fid(inception_file: Path) -> None:
    assert fashion_mnist_features().metric == "Fréchet distance (fashion-mnist-classifier)"
    with pytest.warns(UserWarning, match="published"):
        assert inception_features(inception_file).metric == "FID"


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes \(batch, 1, 28, 28\)"):
        fashion_mnist_features()(torch.zeros(2, 3, 28, 28))


def test_a_damaged_classifier_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((CLASSIFIER_FOLDER / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((CLASSIFIER_FOLDER / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="holds no classifier"):
        fashion_mnist_features(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*published")
def test_inception_features_equal_those_of_torchmetrics(inception_file: Path) -> None:
    from torchmetrics.image.fid import NoTrainInceptionV3

    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    other = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(inception_file))
    torch.testing.assert_close(inception_features(inception_file)(from_bytes(images)), other(images))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*published")
def test_a_gray_image_counts_as_three_equal_channels(inception_file: Path) -> None:
    extractor = inception_features(inception_file)
    gray = from_bytes(torch.randint(256, (1, 1, 28, 28), dtype=torch.uint8))
    torch.testing.assert_close(extractor(gray), extractor(gray.repeat(1, 3, 1, 1)))


def test_missing_inception_weights_name_the_remedy() -> None:
    with pytest.raises(ValueError, match="torch-fidelity/releases"):
        inception_features("/nowhere/inception.pth")


def test_a_failed_download_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.delenv("FEWSTEP_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(ValueError, match="no network.*FEWSTEP_INCEPTION"):
        inception_features()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no InceptionV3 weight file"):
        inception_features(tmp_path / "other.safetensors")


def test_an_inception_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("ran",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"weight": Evil()}))
    with pytest.raises(ValueError, match="damaged or would run code"):
        inception_features(tmp_path / "evil.pth")


def _or_skip(load: object, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        return load(split)  # type: ignore[operator]
    except ValueError as error:
        pytest.skip(str(error))
