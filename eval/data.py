"""Real images to train on and to compare with."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts its files."""


def _read_idx(path: Path) -> Tensor:
    """Read one idx file of unsigned bytes, gzipped or not."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    dimensions = data[3]
    shape = np.frombuffer(data, ">i4", dimensions, 4)
    if len(data) != 4 + 4 * dimensions + int(np.prod(shape)):
        raise ValueError(f"{path} is truncated: its header promises shape {tuple(shape)}")
    return torch.from_numpy(np.frombuffer(data, np.uint8, -1, 4 + 4 * dimensions).reshape(shape).copy())


def fashion_mnist(split: str = "train", *, folder: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """Load Fashion-MNIST (Xiao et al. 2017, MIT licence).

    Args:
        split: ``"train"`` (60,000 images) or ``"test"`` (10,000).
        folder: where the four idx files lie, gzipped or not. By default the environment variable
            ``FASHION_MNIST``, then the folder of Debian's package ``dataset-fashion-mnist``.

    Returns:
        images, uint8 of shape (N, 1, 28, 28), and labels, int64 of shape (N,).

    Raises:
        ValueError: unknown split, or the files are missing or damaged.
    """
    prefixes = {"train": "train", "test": "t10k"}
    if split not in prefixes:
        raise ValueError(f"split={split!r}: choose 'train' or 'test'")
    root = Path(folder or os.environ.get("FASHION_MNIST") or DEBIAN_FOLDER)
    tensors = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        candidates = [root / f"{prefixes[split]}-{kind}{suffix}" for suffix in (".gz", "")]
        path = next((p for p in candidates if p.exists()), None)
        if path is None:
            raise ValueError(
                f"no {candidates[0].name} in {root}: install Debian's dataset-fashion-mnist, or download the idx "
                "files (torchvision.datasets.FashionMNIST does) and pass folder= or set FASHION_MNIST")
        tensors.append(_read_idx(path))
    return tensors[0][:, None], tensors[1].long()
