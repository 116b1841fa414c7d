"""The reproduction of DPM-Solver, end to end on a small network with random weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scoremodels.loaders import save
from scoremodels.model import ScoreModel
from scoremodels.networks.patch_unet import PatchUNet
from scoremodels.networks.preconditioning import EDMPreconditioned
from scoremodels.schedule import EDM

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """What the script prints and saves."""
    folder = tmp_path_factory.mktemp("reproduction")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = EDMPreconditioned(PatchUNet(width=8, width_inner=32, blocks=1, classes=10), 0.5)
    save(ScoreModel(network, EDM(), "sample", (1, 28, 28), num_classes=10), folder / "model")
    command = [sys.executable, ROOT / "scripts" / "reproduce" / "dpm_solver.py", "--models", folder / "model",
               "--num", "4", "--compared", "2", "--out", folder / "out.json", "--figure", folder / "figure.png"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert (folder / "figure.png").stat().st_size > 10_000
    (report,) = json.loads((folder / "out.json").read_text())["models"].values()
    return done.stdout, report


@pytest.mark.slow
def test_every_figure_stands_beside_the_papers(run: tuple[str, dict]) -> None:
    lines = [line for line in run[0].splitlines() if " equals ddim with " in line]
    assert len(lines) == 8 and all("(paper, other data: 4 to 16)" in line for line in lines)


@pytest.mark.slow
def test_all_samplers_of_the_claim_are_run(run: tuple[str, dict]) -> None:
    cells = {(row["solver"], row["nfe"]) for row in run[1]["distance"]["values"] + run[1]["ancestral"]}
    assert cells >= {("dpm-solver-3", n) for n in (10, 12, 15, 20)} | {("ddim", 10), ("ddim", 200), ("ddpm", 1000)}


@pytest.mark.slow
def test_trajectory_errors_of_ddim_fall_with_the_evaluations(run: tuple[str, dict]) -> None:
    errors = [row["value"] for row in run[1]["trajectory_rms"]["values"] if row["solver"] == "ddim"]
    assert errors == sorted(errors, reverse=True)
