"""The command `fewstep likelihood`, on a tiny model and a folder of a few images."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from eval import cli
from eval.likelihood import held_out
from samplers.likelihood import Hutchinson, bits_per_dim
from scoremodels.loaders import load, save
from scoremodels.model import ScoreModel
from scoremodels.networks.patch_unet import PatchUNet
from scoremodels.networks.preconditioning import EDMPreconditioned
from scoremodels.schedule import EDM


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = EDMPreconditioned(PatchUNet(width=8, width_inner=32, blocks=1, classes=10))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(ScoreModel(network, EDM(), "sample", (1, 28, 28), num_classes=10, name="tiny"), folder)
    return str(folder)


@pytest.fixture(autouse=True)
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six images in the format of the data set."""
    generator = np.random.default_rng(0)
    for name, data in (("t10k-images-idx3-ubyte", generator.integers(0, 256, (6, 28, 28))),
                       ("t10k-labels-idx1-ubyte", generator.integers(0, 10, 6))):
        header = struct.pack(f">HBB{data.ndim}I", 0, 8, data.ndim, *data.shape)
        (tmp_path / name).write_bytes(header + data.astype(np.uint8).tobytes())
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["likelihood", *map(str, arguments)], env={"COLUMNS": "100"})


def test_the_command_prints_the_mean_of_the_function_and_its_standard_error(model: str) -> None:
    result = run("--model", model, "--num", 3, "--tolerance", 1e-2, "--seed", 5, "--batch", 2)
    assert result.exit_code == 0, result.output
    network = load(model)
    pictures, labels = held_out(network, 3, True)
    wanted = bits_per_dim(network, pictures, condition=labels, trace=Hutchinson(seed=5), seed=5, rtol=1e-2, atol=1e-2)
    mean, error = map(float, re.findall(r"(-?[\d.]+) ± ([\d.]+) bits/dim", result.output)[0])
    assert mean == pytest.approx(wanted.mean, abs=2e-3) and error == pytest.approx(wanted.standard_error, abs=2e-3)
    assert "told their labels" in result.output
    assert "told their labels" not in run("--model", model, "--num", 1, "--tolerance", 0.1, "--no-labels").output


def test_wrong_arguments_end_with_one_line(model: str) -> None:
    for arguments, message in ((("--num", 7), "num=7"), (("--probes", 0), "probes=0"), (("--batch", 0), "batch=0")):
        result = run("--model", model, "--num", 2, *arguments)
        assert result.exit_code == 2 and message in result.output and len(result.output.strip().splitlines()) == 1


def test_a_model_of_other_images_is_refused() -> None:
    other = ScoreModel(lambda x, t, condition: x, EDM(), "sample", (3, 8, 8))
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\)"):
        held_out(other, 1, False)
