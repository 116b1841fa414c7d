"""Exporting a training run: weights, configuration, sample grid and card."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import diffusers
import pytest
import torch
from torch import nn

from scoremodels.loaders import load

KINDS = ("edm", "flow", "ddpm")


@pytest.fixture(scope="module")
def export() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "scripts" / "train"))
        return importlib.import_module("export")


@pytest.fixture
def run(export: ModuleType, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The files of a run of the kind that the test asks for, with small random weights."""
    network = export.MODELS[request.param][0]()
    for index, parameter in enumerate(network.parameters()):
        nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(index))
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save(dict(net={}, ema=network.state_dict(), optimizer={}, step=7, seconds=120.0), folder / "checkpoint.pt")
    (folder / "run.json").write_text(json.dumps(dict(
        model=request.param, steps=5, batch=64, images=320, lr=1e-3, ema=0.999, seed=3, seconds=120, init="edm",
        parameters=sum(p.numel() for p in network.parameters()), hardware="x86_64 CPU, 1 thread(s)", torch="2.6")))
    return folder


@pytest.mark.parametrize("run", KINDS, indirect=True)
def test_an_export_holds_a_model_a_grid_and_a_card(export: ModuleType, run: Path, tmp_path: Path) -> None:
    kind = json.loads((run / "run.json").read_text())["model"]
    export.export(kind, run, tmp_path / "out", nfe=1, num=0, quality=None)
    model = load(tmp_path / "out")
    averaged = torch.load(run / "checkpoint.pt", weights_only=True)["ema"].values()
    assert all(torch.equal(a, b) for a, b in zip(averaged, model.state_dict().values(), strict=True))
    card = (tmp_path / "out" / "README.md").read_text()
    for fact in (f"# fashion-mnist-{kind}", "samples.png", "7 steps of 64 images (448 in all)", "MIT", "2 minutes",
                 "x86_64 CPU", "seed 3, started from the averaged weights of the edm run", "not measured"):
        assert fact in card
    assert (tmp_path / "out" / "samples.png").read_bytes().startswith(b"\x89PNG")
    if kind == "ddpm":
        pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
        assert pipe.scheduler.config.clip_sample and pipe.scheduler.config.beta_schedule == "linear"


@pytest.mark.parametrize("run", ["edm"], indirect=True)
def test_a_quality_file_stands_in_the_card(export: ModuleType, run: Path, tmp_path: Path) -> None:
    quality = dict(metric="Fréchet distance (fashion-mnist-classifier)", distance=1.234, num=10000,
                   solver="dpm-solver++-3m", nfe=50, steps=7)
    (run / "quality.json").write_text(json.dumps(quality))
    export.export("edm", run, tmp_path / "out", nfe=1, num=10000, quality=run / "quality.json")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Fréchet distance (fashion-mnist-classifier) 1.23 over 10,000 samples" in card
    assert "as many unseen real images get 0.1" in card


@pytest.mark.parametrize("run", ["edm"], indirect=True)
def test_the_quality_of_another_step_is_refused(export: ModuleType, run: Path, tmp_path: Path) -> None:
    (run / "quality.json").write_text(json.dumps(dict(metric="", distance=1.0, num=1, solver="", nfe=1, steps=6)))
    with pytest.raises(ValueError, match="measure again"):
        export.export("edm", run, tmp_path / "out", nfe=1, num=0, quality=run / "quality.json")


@pytest.mark.parametrize("run", ["edm"], indirect=True)
def test_a_run_of_another_model_is_refused(export: ModuleType, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run of 'edm', not of 'flow'"):
        export.export("flow", run, tmp_path / "out", nfe=1, num=0, quality=None)


def test_a_folder_without_a_run_is_refused(export: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        export.export("edm", tmp_path, tmp_path / "out", nfe=1, num=0, quality=None)


@pytest.mark.parametrize("run", ["edm"], indirect=True)
def test_renewing_a_card_changes_its_grid_and_its_quality_alone(export: ModuleType, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export.export("edm", run, out, nfe=1, num=0, quality=None)
    card, picture = (out / "README.md").read_text(), (out / "samples.png").read_bytes()
    weights = (out / "model.safetensors").read_bytes()
    export.renew(out, nfe=2, num=0)
    assert (out / "README.md").read_text() == card
    assert (out / "samples.png").read_bytes() != picture and (out / "model.safetensors").read_bytes() == weights


def test_a_folder_without_a_card_cannot_be_renewed(export: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no card"):
        export.renew(tmp_path, nfe=1, num=0)
