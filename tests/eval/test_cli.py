"""The command, through typer's runner, on a tiny model in a folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from eval import cli
from eval.arguments import real_distance
from eval.features import CLASSIFIER_FOLDER, fashion_mnist_features
from eval.trajectory import fingerprint
from samplers import ClassifierFreeGuidance, GuidanceInterval, MixedPrecision, sample
from scoremodels.loaders import load, save
from scoremodels.model import ScoreModel
from scoremodels.networks.patch_unet import PatchUNet
from scoremodels.networks.preconditioning import EDMPreconditioned
from scoremodels.schedule import EDM


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny class-conditional model with random weights, and a card."""
    torch.manual_seed(0)
    body = PatchUNet(width=8, width_inner=32, blocks=1, classes=10)
    torch.nn.init.normal_(body.head.weight, std=0.1)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save(ScoreModel(EDMPreconditioned(body), EDM(), "sample", (1, 28, 28), num_classes=10, name="tiny"), folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\nA tiny model.\n")
    return str(folder)


def run(*arguments: object) -> Result:
    """Run the command."""
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], env={"COLUMNS": "100"})


@pytest.fixture(scope="module")
def swept(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished sweep."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    result = run("sweep", "--model", model, "--solvers", "ddim,dpm-solver++-2m", "--nfe", "3,5", "--num", 12,
                 "--batch", 5, "--compared", 4, "--reference-nfe", 12, "--guidance", 1.5, "--out", out)
    assert result.exit_code == 0, result.output
    assert "Fréchet distance (fashion-mnist-classifier)" in result.output
    assert "FID" not in result.output
    return out


def test_a_sweep_writes_one_csv_line_a_cell(swept: Path) -> None:
    rows = list(csv.DictReader((swept / "results.csv").open()))
    assert [(r["solver"], r["nfe"]) for r in rows] == [
        ("ddim", "3"), ("ddim", "5"), ("dpm-solver++-2m", "3"), ("dpm-solver++-2m", "5")]
    assert all(float(r["distance"]) > 0 and float(r["trajectory_rms"]) > 0 for r in rows)


def test_a_sweep_writes_json_with_all_that_repeats_it(swept: Path, model: str) -> None:
    data = json.loads((swept / "results.json").read_text())
    assert data["num"] == 12 and data["seed"] == 0 and data["guidance"] == 1.5 and data["batch"] == 5
    assert data["model"]["sha256"] == fingerprint(load(model))
    assert data["labels"] == "sample i has label i mod 10"
    assert data["metric"] == "Fréchet distance (fashion-mnist-classifier)"
    assert data["features"]["sha256"] and data["reference"]["count"] == 60_000
    assert data["torch"] == torch.__version__ and data["processor"] and data["threads"]
    assert data["trajectory"]["nfe"] == 12 and data["trajectory"]["convergence"]
    assert len(data["times"]["dpm-solver++-2m/karras/5"]) == 6
    assert [c["nfe"] for c in data["cells"]] == [3, 5, 3, 5]


def test_a_sweep_draws_plots_and_a_picture_a_cell(swept: Path) -> None:
    assert Image.open(swept / "distance.png").size[0] > 600
    assert Image.open(swept / "trajectory.png").size[0] > 600
    assert sorted(p.name for p in (swept / "samples").iterdir()) == [
        "ddim-nfe003.png", "ddim-nfe005.png", "dpm-solver++-2m-nfe003.png", "dpm-solver++-2m-nfe005.png"]


def test_a_sweep_without_features_measures_trajectories_alone(model: str, tmp_path: Path) -> None:
    result = run("sweep", "-m", model, "--solvers", "ddim", "--nfe", "3", "--num", 2, "--features", "none",
                 "--compared", 2, "--reference-nfe", 8, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "distance.png").exists() and (tmp_path / "trajectory.png").exists()


def test_a_sweep_takes_reference_statistics_from_a_file(model: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", mu=np.zeros(128), sigma=np.eye(128))
    result = run("sweep", "-m", model, "--solvers", "ddim", "--nfe", "3", "--num", 4, "--compared", 0,
                 "--reference", tmp_path / "own.npz", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out/results.json").read_text())["reference"]["file"].endswith("own.npz")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--solvers", "dimm"], "did you mean 'ddim'"),
    (["--solvers", "ddim,,edm-heun"], "separated by commas"),
    (["--grid", "karass"], "did you mean 'karras'"),
    (["--nfe", "0"], "nfe=0"),
    (["--nfe", "five"], "whole numbers"),
    (["--num", "1"], "num=1"),
    (["--seed", "-1"], "seed=-1"),
    (["--batch", "0"], "batch=0"),
    (["--features", "clip"], "features='clip' is unknown"),
    (["--features", "inception", "--inception", "/nowhere.pth"], "/nowhere.pth"),
    (["--inception", "/nowhere.pth"], "goes with --features inception"),
    (["--reference", "/nowhere.npz"], "do not exist"),
    (["--device", "abacus"], "device='abacus'"),
    (["--out", __file__], "is a file"),
    (["--model", "no-such-model"], "no-such-model"),
])
def test_wrong_arguments_of_a_sweep_end_in_one_line_and_code_2(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(PatchUNet, "forward", lambda *_: pytest.fail("the network was evaluated"))
    defaults = {"--model": model, "--out": str(tmp_path / "out")}
    given = [part for pair in defaults.items() if pair[0] not in arguments for part in pair]
    result = run("sweep", *given, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_samples_are_the_images_of_their_seeds(model: str, tmp_path: Path) -> None:
    result = run("sample", "-m", model, "--solver", "ddim", "--nfe", 4, "--num", 5, "--seed", 11, "--batch", 2,
                 "--label", 3, "--out", tmp_path / "images")
    assert result.exit_code == 0, result.output
    assert "4 NFE each" in result.output
    expected = sample(load(model), num=1, solver="ddim", nfe=4, seed=14, condition=3).samples[0, 0]
    pixels = np.asarray(Image.open(tmp_path / "images" / "00003.png"))
    assert np.abs(pixels / 127.5 - 1 - expected.clamp(-1, 1).numpy()).max() < 0.51 / 127.5
    assert (tmp_path / "images" / "grid.png").exists()


def test_a_png_file_takes_the_grid_alone(model: str, tmp_path: Path) -> None:
    result = run("sample", "-m", model, "--nfe", 3, "--num", 4, "--out", tmp_path / "grid.png")
    assert result.exit_code == 0, result.output
    assert [p.name for p in tmp_path.iterdir()] == ["grid.png"]


def test_guidance_interval_precision_and_memory_limit_are_those_of_the_library(model: str, tmp_path: Path) -> None:
    result = run("sample", "-m", model, "--solver", "ddim", "--nfe", 4, "--num", 3, "--guidance", 2, "--label", 3,
                 "--guidance-interval", "0.3,inf", "--precision", "bfloat16", "--memory-limit", "1M", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    wrapped = MixedPrecision(GuidanceInterval(ClassifierFreeGuidance(load(model), 2.0), 0.3))
    expected = sample(wrapped, num=3, solver="ddim", nfe=4, condition=3).samples[2, 0]
    pixels = np.asarray(Image.open(tmp_path / "00002.png"))
    assert np.abs(pixels / 127.5 - 1 - expected.clamp(-1, 1).numpy()).max() < 3 / 127.5


def test_a_sweep_tells_interval_precision_and_the_batch_that_fits(model: str, tmp_path: Path) -> None:
    result = run("sweep", "-m", model, "--solvers", "ddim", "--nfe", 3, "--num", 4, "--compared", 0,
                 "--features", "none", "--guidance", 2, "--guidance-interval", "0.3,5", "--precision", "bfloat16",
                 "--memory-limit", "1.5 MiB", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "results.json").read_text())
    assert (about["guidance_interval"], about["precision"]) == ("0.3,5", "bfloat16") and 1 <= about["batch"] < 250


@pytest.mark.parametrize(("arguments", "message"), [
    (["--guidance-interval", "0.3,5"], "give --guidance too"),
    (["--guidance", "2", "--guidance-interval", "0.3"], "two noise-to-signal ratios"),
    (["--guidance", "2", "--guidance-interval", "5,0.3"], "low=5.0, high=0.3"),
    (["--precision", "int4"], "precision='int4' is unknown"),
    (["--memory-limit", "much"], "memory-limit='much'"),
    (["--memory-limit", "1K"], "one sample takes"),
    (["--label", "10"], "between 0 and 9"),
    (["--label", "shirt"], "give a number from 0 to 9"),
    (["--label", "none", "--guidance", "2"], "leaves nothing"),
    (["--num", "0"], "num=0"),
    (["--solver", "heun"], "solver='heun' is unknown"),
    (["--nfe", "-3"], "nfe=-3"),
])
def test_wrong_arguments_of_sample_end_in_one_line_and_code_2(
    model: str, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = run("sample", "-m", model, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_info_tells_schedule_parameters_and_card(model: str) -> None:
    result = run("info", model)
    assert result.exit_code == 0, result.output
    for part in ("1 × 28 × 28", "sample", '"sigma_max": 80.0', "A tiny model.", fingerprint(load(model))):
        assert part in result.output
    assert f"{sum(p.numel() for p in load(model).parameters()):,}" in result.output


def test_info_without_a_model_lists_solvers_and_grids() -> None:
    result = run("info")
    assert result.exit_code == 0
    for part in ("dpm-solver++-2m", "edm-heun", "log-snr", "karras"):
        assert part in result.output


def test_info_on_an_unknown_model_ends_with_code_2() -> None:
    result = run("info", "no-such-model")
    assert result.exit_code == 2 and "no-such-model" in result.stderr


def test_the_version_is_printed() -> None:
    result = run("--version")
    assert result.exit_code == 0 and result.output.startswith("fewstep ")


def test_the_level_of_real_images_is_the_measured_one_and_falls_in_between() -> None:
    extractor = fashion_mnist_features()
    known = json.loads((CLASSIFIER_FOLDER / "config.json").read_text())["real_distances"]
    at = {n: real_distance(extractor, n) for n in (1000, 1500, 2000)}
    assert at[1000] == (pytest.approx(known["1000"]), "1,000 real test images")
    assert at[1000][0] > at[1500][0] > at[2000][0]
    assert real_distance(extractor, 100) is None
