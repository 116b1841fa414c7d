"""State dicts of guided-diffusion: their key layout, and the networks that are not read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoremodels.loaders import load, save
from scoremodels.published.guided_diffusion import read_guided_diffusion
from scoremodels.schedule import DiscreteVP
from tests.scoremodels.published_files import (
    LABELS,
    PUBLISHED,
    assert_equal_but_for_rounding,
    named_tensors,
    picked,
    states,
)

CASES = ["guided-new", "guided-legacy"]


def written(case: str, folder: Path, **changes: Tensor) -> Path:
    torch.save({**named_tensors(case), **changes}, folder / "model.pt")
    return folder / "model.pt"


@pytest.mark.parametrize("case", CASES)
def test_a_network_gives_the_noise_that_its_authors_code_gives(case: str, tmp_path: Path) -> None:
    model = load(written(case, tmp_path), settings=PUBLISHED[case]["settings"])
    save(model, tmp_path / "converted")
    labels = LABELS if model.num_classes else None
    assert model.shape == (3, 8, 8) and model.num_classes == (3 if case == "guided-new" else 0)
    assert model.schedule == (DiscreteVP.cosine() if case == "guided-new" else DiscreteVP.linear())
    for t, expected in PUBLISHED[case]["outputs"]:
        output = model(states(model.shape), t, labels)
        assert_equal_but_for_rounding(picked(output), torch.tensor(expected))
        assert torch.equal(load(tmp_path / "converted")(states(model.shape), t, labels), output)


def test_widths_that_were_not_published_need_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tell attention_order, heads, image_size, noise_schedule"):
        load(written("guided-new", tmp_path))


@pytest.mark.parametrize(("changes", "match"), [
    ({"input_blocks.0.0.weight": torch.zeros(64, 6, 3, 3)}, "super-resolution"),
    ({"input_blocks.2.0.op.weight": torch.zeros(64, 64, 3, 3)}, "resblock_updown"),
])
def test_networks_of_another_kind_are_refused(tmp_path: Path, changes: dict[str, Tensor], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        load(written("guided-new", tmp_path, **changes))


def test_a_classifier_is_refused() -> None:
    state = {name: tensor for name, tensor in named_tensors("guided-new").items() if not name.startswith("output")}
    with pytest.raises(ValueError, match="classifier"):
        read_guided_diffusion(state, Path("64x64_classifier.pt"), {})
