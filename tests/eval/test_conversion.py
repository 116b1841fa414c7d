"""The command that converts, and the folder it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from eval import cli
from eval.conversion import read_settings
from scoremodels.loaders import load
from tests.scoremodels.published_files import score_sde_checkpoint


def converted(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["convert", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_a_converted_checkpoint_loads_without_the_original(tmp_path: Path) -> None:
    source, folder = tmp_path / "checkpoint_8.pth", tmp_path / "converted"
    score_sde_checkpoint("score-sde-vp", source)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = load(source, settings={"sde": "vp"})(x, 0.5)
    code, output = converted(source, folder, "--set", "sde=vp")
    assert code == 0 and "epsilon of shape 3 × 32 × 32 on continuous-vp, no classes" in output
    source.unlink()
    assert torch.equal(load(folder)(x, 0.5), before)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "there.txt").write_text("")
    code, output = converted("fashion-mnist-edm", tmp_path)
    assert code == 2 and "not empty" in output


def test_settings_are_pairs() -> None:
    assert read_settings(["sde=vp", "image_size=64"]) == {"sde": "vp", "image_size": 64}
    with pytest.raises(ValueError, match="NAME=VALUE"):
        read_settings(["vp"])
