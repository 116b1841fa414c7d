"""Images: rounding, grids, PNG files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.images import from_bytes, grid, save_png, to_bytes


def test_bytes_to_floats_and_back_is_the_identity() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_bytes(from_bytes(images)), images)


def test_values_out_of_range_are_clipped() -> None:
    assert to_bytes(torch.tensor([[[[-3.0, 0.0, 7.0]]]])).flatten().tolist() == [0, 128, 255]


def test_another_value_range_is_mapped_to_all_levels() -> None:
    assert to_bytes(torch.tensor([[[[0.0, 1.0]]]]), (0.0, 1.0)).flatten().tolist() == [0, 255]


def test_non_finite_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="diverged"):
        to_bytes(torch.full((1, 1, 2, 2), float("inf")))


def test_a_grid_holds_each_image_at_its_place() -> None:
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 1, 3, 3)
    canvas = grid(images, 2, gap=1)
    assert canvas.shape == (1, 13, 9)
    for index in range(5):
        top, left = 1 + 4 * (index // 2), 1 + 4 * (index % 2)
        assert (canvas[:, top:top + 3, left:left + 3] == index).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_file_reads_back_as_the_same_pixels(tmp_path: Path, channels: int) -> None:
    image = torch.randint(256, (channels, 4, 5), dtype=torch.uint8)
    save_png(image, tmp_path / "i.png", zoom=2)
    read = np.asarray(Image.open(tmp_path / "i.png")).reshape(8, 10, channels)[::2, ::2]
    np.testing.assert_array_equal(read, image.permute(1, 2, 0))


def test_an_image_with_two_channels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 channels"):
        save_png(torch.zeros(2, 3, 3, dtype=torch.uint8), tmp_path / "i.png")
