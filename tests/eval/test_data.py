"""Reading Fashion-MNIST's files."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from eval.data import fashion_mnist


def write(folder: Path, *, images: int = 3, missing: int = 0, compressed: bool = True) -> None:
    """Write a training split of counted-up bytes."""
    pixels = bytes(i % 256 for i in range(images * 784 - missing))
    files = {"train-images-idx3-ubyte": struct.pack(">4B3i", 0, 0, 8, 3, images, 28, 28) + pixels,
             "train-labels-idx1-ubyte": struct.pack(">4Bi", 0, 0, 8, 1, images) + bytes(range(images))}
    for name, data in files.items():
        path = folder / (name + (".gz" if compressed else ""))
        path.write_bytes(gzip.compress(data) if compressed else data)


@pytest.mark.parametrize("compressed", [True, False])
def test_images_and_labels_have_the_values_of_the_files(tmp_path: Path, compressed: bool) -> None:
    write(tmp_path, compressed=compressed)
    images, labels = fashion_mnist("train", folder=tmp_path)
    assert images.shape == (3, 1, 28, 28)
    assert images.flatten().tolist() == [i % 256 for i in range(3 * 784)]
    assert labels.tolist() == [0, 1, 2]


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, missing=1)
    with pytest.raises(ValueError, match="truncated"):
        fashion_mnist("train", folder=tmp_path)


def test_missing_files_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="FASHION_MNIST"):
        fashion_mnist("test", folder=tmp_path)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="choose 'train' or 'test'"):
        fashion_mnist("validation")
