"""Feature extractors: what a Fréchet distance compares images by."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from eval.classifier import FashionClassifier
from eval.fid import Moments, Statistics
from eval.images import from_bytes

CLASSIFIER_FOLDER = Path(__file__).parent / "pretrained" / "fashion-mnist-classifier"
"""Weights, configuration, reference statistics and card of the embedded classifier."""

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth")
"""The InceptionV3 network that FID is defined by, as PyTorch weights; the name ends in the start of their SHA-256."""


class FeatureExtractor(Protocol):
    """A map from images to feature vectors.

    Attributes:
        name: what the extractor is called in tables.
        metric: what the Fréchet distance on its features is called; "FID" for Inception alone.
        dimension: number of features.
        shape: channels, rows and columns that images must have; None where any will do.
        sha256: fingerprint of its weights.
    """

    name: str
    metric: str
    dimension: int
    shape: tuple[int, int, int] | None
    sha256: str

    def __call__(self, images: Float[Tensor, "batch channels rows columns"]) -> Float[Tensor, "batch features"]:
        """Map images in [-1, 1] to features."""
        ...


class _ClassifierFeatures:
    """Penultimate layer of the embedded classifier."""

    name = "fashion-mnist-classifier"
    metric = "Fréchet distance (fashion-mnist-classifier)"
    shape: tuple[int, int, int] | None = (1, 28, 28)

    def __init__(self, net: FashionClassifier, sha256: str) -> None:
        self.net = net.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.dimension = net.head.in_features
        self.sha256 = sha256

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        _check_images(images, self.shape, self.name)
        return self.net.features(images.to(memory_format=torch.channels_last))


class _InceptionFeatures:
    """The 2048 pooled features of torch-fidelity's InceptionV3."""

    name = "inception-v3"
    metric = "FID"
    dimension = 2048
    shape: tuple[int, int, int] | None = None

    def __init__(self, net: nn.Module, sha256: str) -> None:
        self.net = net
        self.sha256 = sha256

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        _check_images(images, self.shape, self.name)
        bytes_ = ((images.float() + 1.0) * 127.5).clamp(0.0, 255.0).round().to(torch.uint8)
        return self.net(bytes_.expand(-1, 3, -1, -1))[0]


def fashion_mnist_features(folder: str | Path = CLASSIFIER_FOLDER) -> FeatureExtractor:
    """Load the embedded classifier's features; it takes images of shape (1, 28, 28).

    Raises:
        ValueError: the weights are missing or damaged.

    Cost: some 5 million multiplications an image; several thousand images a second on one core.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    folder = Path(folder)
    try:
        data = (folder / "model.safetensors").read_bytes()
        net = FashionClassifier(tuple(json.loads((folder / "config.json").read_text())["widths"]))
        net.load_state_dict(load(data))
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise ValueError(f"{folder} holds no classifier ({error}): reinstall the package, or run "
                         "scripts/train/classifier.py") from error
    return _ClassifierFeatures(net, hashlib.sha256(data).hexdigest())


def fashion_mnist_reference(folder: str | Path = CLASSIFIER_FOLDER) -> Moments:
    """Load the moments of the embedded classifier's features over the 60,000 training images."""
    return Moments.load(Path(folder) / "reference.npz")


def inception_features(weights: str | Path | None = None) -> FeatureExtractor:
    """Load the InceptionV3 network that FID is defined by (torch-fidelity's, 2048 features).

    Gray images are repeated over three channels; the network itself resizes to 299 × 299.

    Args:
        weights: file of its weights (``.pth`` or ``.safetensors``). By default the environment variable
            ``FEWSTEP_INCEPTION``, then PyTorch's download cache, then a download of 92 MB.

    Raises:
        ValueError: torch-fidelity is missing, the download fails, or the file is missing, damaged,
            unsafe, or of another network.

    Warns:
        UserWarning: the file is not the published one, so that the FID compares with no published FID.

    Cost: 5.7 billion multiplications an image; about ten images a second on one core.

    Source: Heusel et al. 2017, arXiv:1706.08500; Obukhov et al. 2020, doi:10.5281/zenodo.4957738.
    """
    if find_spec("torch_fidelity") is None:
        raise ValueError("features='inception' takes torch-fidelity: pip install 'fewstep[fid]'")
    weights = weights or os.environ.get("FEWSTEP_INCEPTION") or _download_inception()
    state, sha256 = _read_weights(Path(weights))
    published = Path(INCEPTION_URL).stem.rsplit("-", 1)[1]
    if not sha256.startswith(published):
        warnings.warn(f"{weights} has SHA-256 {sha256[:8]}…, the published InceptionV3 weights {published}…: the FID "
                      "is comparable only with those from this file", stacklevel=2)
    # Imported only now, as it takes seconds that a missing or damaged file need not cost.
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The network unpickles what it is given, so it is given a copy of tensors that were read safely.
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    try:
        net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=copy)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"{weights} is no InceptionV3 weight file of torch-fidelity "
                         f"({str(error).splitlines()[0]}): get {INCEPTION_URL}") from error
    return _InceptionFeatures(net, sha256)


def statistics_of(
    extractor: FeatureExtractor,
    images: UInt8[Tensor, "count channels rows columns"],
    *,
    batch: int = 256,
    progress: Callable[[Iterable[Tensor]], Iterable[Tensor]] | None = None,
) -> Statistics:
    """Sum up the features of 8-bit images.

    Args:
        extractor: the feature extractor.
        images: 8-bit images.
        batch: how many to compute at once.
        progress: wraps the batches, for instance ``tqdm``.
    """
    total = Statistics.empty(extractor.dimension)
    batches = images.split(batch)
    for part in batches if progress is None else progress(batches):
        total = total.merge(Statistics.of(extractor(from_bytes(part))))
    return total


def _check_images(images: Tensor, shape: tuple[int, int, int] | None, name: str) -> None:
    if images.ndim != 4 or (shape is not None and tuple(images.shape[1:]) != shape):
        wanted = "channels, rows, columns" if shape is None else ", ".join(map(str, shape))
        raise ValueError(f"images have shape {tuple(images.shape)}: {name} takes (batch, {wanted})")
    if shape is None and images.shape[1] not in (1, 3):
        raise ValueError(f"images have {images.shape[1]} channels: {name} takes 1 or 3")


def _download_inception() -> Path:
    """Return the weights in PyTorch's cache, downloaded and checked by their hash if need be."""
    target = Path(torch.hub.get_dir()) / "checkpoints" / Path(INCEPTION_URL).name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(INCEPTION_URL, str(target), hash_prefix=target.stem.rsplit("-", 1)[1])
    except (OSError, RuntimeError) as error:
        raise ValueError(f"the InceptionV3 weights cannot be downloaded ({error}): get {INCEPTION_URL} on another "
                         "machine and pass the file as weights= (--inception), or set FEWSTEP_INCEPTION") from error
    return target


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read tensors by name without running any code of the file; also its SHA-256."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"weights={str(path)!r} cannot be read ({error.strerror}): give the file of {INCEPTION_URL}"
                         ) from error
    try:
        if path.suffix == ".safetensors":
            state = load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): get it again") from error
    except Exception as error:  # torch.load raises half a dozen kinds for damaged and unsafe files
        raise ValueError(f"{path} is damaged or would run code ({type(error).__name__}): give plain tensors, "
                         f"as in {INCEPTION_URL}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no tensors by name: give the file of {INCEPTION_URL}")
    return state, hashlib.sha256(data).hexdigest()
