"""What the command's arguments stand for: models, labels, feature extractors, real images."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from eval.console import progress_bars, warn
from eval.features import (
    CLASSIFIER_FOLDER,
    FeatureExtractor,
    fashion_mnist_features,
    fashion_mnist_reference,
    inception_features,
    statistics_of,
)
from eval.fid import Moments
from eval.sweep import cycled_labels
from samplers import ClassifierFreeGuidance, GuidanceInterval, MemoryLimit, MixedPrecision
from samplers.precision import PRECISIONS
from scoremodels.loaders import load
from scoremodels.model import ScoreModel


def choose_extractor(name: str, model: ScoreModel, weights: Path | None) -> FeatureExtractor | None:
    """The extractor that ``--features`` names, None for "none"; "auto" takes the one that fits the model.

    Raises:
        ValueError: an unknown name, or an extractor that cannot take the model's images.
    """
    small = tuple(model.shape) == (1, 28, 28)
    if name == "auto":
        if not small:
            raise ValueError(f"features='auto': the model makes images of shape {tuple(model.shape)} and the embedded "
                             "classifier takes (1, 28, 28): choose --features inception or --features none")
        name = "fashion-mnist-classifier"
    if weights is not None and name != "inception":
        raise ValueError(f"inception={str(weights)!r} goes with --features inception")
    if name == "none":
        return None
    if name == "inception":
        if model.shape[0] not in (1, 3):
            raise ValueError(f"features='inception': images have 1 or 3 channels, this model makes {model.shape[0]}: "
                             "choose --features none")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            extractor = inception_features(weights)
        for warning in caught:
            warn(str(warning.message))
        return extractor
    if name != "fashion-mnist-classifier":
        raise ValueError(f"features={name!r} is unknown: choose fashion-mnist-classifier, inception or none")
    if not small:
        raise ValueError(f"features={name!r} takes images of shape (1, 28, 28), the model makes {tuple(model.shape)}: "
                         "choose --features inception or --features none")
    return fashion_mnist_features()


def real_moments(
    extractor: FeatureExtractor | None, reference: Path | None, model: ScoreModel, out: Path, console: Console
) -> tuple[Moments | None, dict[str, object] | None]:
    """Moments of the real images' features, and where they come from."""
    if extractor is None:
        if reference is not None:
            raise ValueError(f"reference={str(reference)!r}, but --features none needs none")
        return None, None
    if reference is not None:
        moments = Moments.load(reference)
        if moments.dimension != extractor.dimension:
            raise ValueError(f"reference={str(reference)!r} has {moments.dimension} features, {extractor.name} "
                             f"{extractor.dimension}: make it with the same extractor")
        return moments, {"file": str(reference), "count": moments.count}
    if extractor.name == "fashion-mnist-classifier":
        moments = fashion_mnist_reference()
        return moments, {"data": "60,000 training images of Fashion-MNIST", "count": moments.count}
    if tuple(model.shape) != (1, 28, 28):
        raise ValueError(f"reference is missing: pass --reference FILE, an npz with mu and sigma of {extractor.name} "
                         "features of the real images")
    from eval.data import fashion_mnist

    images, _ = fashion_mnist("train")
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    with progress_bars(console) as progress:
        task = progress.add_task(f"{extractor.name} of {len(images):,} real images", total=len(images))

        def watched(batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
            for part in batches:
                yield part
                progress.advance(task, len(part))

        moments = statistics_of(extractor, images, batch=50, progress=watched).moments()  # type: ignore[arg-type]
    path = out / f"reference-{extractor.name}.npz"
    moments.save(path)
    return moments, {"data": "60,000 training images of Fashion-MNIST", "file": str(path), "count": moments.count}


def load_model(
    name: str, guidance: float | None, device: str, *, interval: str | None = None, precision: str = "float32"
) -> ScoreModel:
    """Load a model onto a device ("auto" takes a GPU if there is one), guided if a scale is given.

    Args:
        name: name or folder of the model.
        guidance: scale of classifier-free guidance.
        device: where it is to run.
        interval: noise-to-signal ratios "low,high" between which it is guided.
        precision: what the network computes in, one of ``PRECISIONS``.

    Raises:
        ValueError: the model, the guidance, the precision or the device cannot be had.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown: choose one of {', '.join(PRECISIONS)}")
    if interval is not None and guidance is None:
        raise ValueError(f"guidance-interval={interval!r} limits guidance, and there is none: give --guidance too")
    model = load(name)
    if guidance is not None:
        guided = ClassifierFreeGuidance(model, guidance)
        model = guided if interval is None else GuidanceInterval(guided, *_bounds(interval))
    if precision != "float32":
        model = MixedPrecision(model, PRECISIONS[precision])
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device!r} cannot be used ({str(error).splitlines()[0]}): choose cpu or cuda"
                         ) from error


def _bounds(interval: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in interval.split(","))
    except ValueError as error:
        raise ValueError(f"guidance-interval={interval!r}: give two noise-to-signal ratios, such as 0.3,5 or 0.3,inf"
                         ) from error
    return low, high


def fitting_batch(model: ScoreModel, batch: int, limit: str | None) -> int:
    """The largest batch up to ``batch`` that fits into memory of ``limit``, such as "2GB" or "500M"; None for any.

    Raises:
        ValueError: no amount of memory, or one too small for a single sample.
    """
    if limit is None:
        return batch
    amount = re.fullmatch(r"(\d+(?:\.\d*)?) ?([KMGT]?)(?:I?B)?", limit.strip().upper())
    if amount is None:
        raise ValueError(f"memory-limit={limit!r}: give bytes, such as 500M or 2GB")
    many = int(float(amount[1]) * 1024 ** " KMGT".index(amount[2] or " "))
    return min(batch, MemoryLimit(many).batch(model, condition=0 if model.num_classes else None))


def choose_labels(model: ScoreModel, label: str, num: int, guidance: float | None) -> torch.Tensor | None:
    """The labels that ``--label`` asks for: a number for all, "cycle" or "none".

    Raises:
        ValueError: a label that the model does not know.
    """
    if label == "cycle":
        return cycled_labels(model, num)
    if label == "none":
        if guidance is not None:
            raise ValueError(f"label='none' leaves nothing for guidance={guidance} to guide to: give a label")
        if model.num_classes and not model.label_dropout:
            raise ValueError("label='none', but the model knows no 'no label': give a label")
        return None
    if not model.num_classes:
        raise ValueError(f"label={label!r}, but the model is unconditional: leave --label out")
    try:
        number = int(label)
    except ValueError as error:
        raise ValueError(f"label={label!r}: give a number from 0 to {model.num_classes - 1}, cycle or none") from error
    if not 0 <= number < model.num_classes:
        raise ValueError(f"label={number}: labels lie between 0 and {model.num_classes - 1}")
    return torch.full((num,), number)


def names_in(option: str, text: str) -> list[str]:
    """Split names at commas.

    Raises:
        ValueError: an empty name.
    """
    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise ValueError(f"{option}={text!r}: give names separated by commas")
    return names


def numbers_in(option: str, text: str) -> list[int]:
    """Split whole numbers at commas.

    Raises:
        ValueError: something else between the commas.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option}={text!r}: give whole numbers separated by commas") from error


def check_folder(folder: Path) -> None:
    """Refuse a file in the way before any work is done."""
    for part in (folder, *folder.parents):
        if part.exists():
            if not part.is_dir():
                raise ValueError(f"out={str(folder)!r}: {part} is a file; give a folder")
            return


def real_distance(extractor: FeatureExtractor, num: int) -> tuple[float, str] | None:
    """What as many real, unseen images get: the level that perfect samples would reach."""
    if extractor.name != "fashion-mnist-classifier":
        return None
    known = json.loads((CLASSIFIER_FOLDER / "config.json").read_text())["real_distances"]
    counts = sorted(map(int, known))
    if not counts[0] <= num <= counts[-1]:
        return None
    # The bias of the distance goes as one over the count, so between the measured counts it is linear in that.
    inverse = [1 / n for n in reversed(counts)]
    value = float(np.interp(1 / num, inverse, [known[str(n)] for n in reversed(counts)]))
    return value, f"{num:,} real test images"
