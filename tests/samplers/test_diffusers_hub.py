"""A pipeline that brings our scheduler along loads in a process that has not imported this library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline

from samplers.diffusers import FewStepScheduler
from samplers.diffusers_hub import bring_scheduler
from tests.samplers.tiny_pipelines import build

ROOT = Path(__file__).parents[2]
RELOAD = """
import sys

import torch
from diffusers import DiffusionPipeline

assert "samplers" not in sys.modules
try:
    DiffusionPipeline.from_pretrained("pipe")
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise AssertionError("diffusers ran the file without leave")
pipe = DiffusionPipeline.from_pretrained("pipe", trust_remote_code=True)
assert pipe.scheduler.config.solver == "unipc-2"
images = pipe(batch_size=1, num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="np").images
torch.save(torch.as_tensor(images), "images.pt")
"""


def saved(folder: Path) -> DDPMPipeline:
    pipe = build("ddpm", folder).pipe
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="unipc-2")
    pipe.save_pretrained(folder / "pipe")
    return pipe


@pytest.mark.slow
def test_a_folder_with_the_file_loads_alone_and_gives_the_same_samples(tmp_path: Path) -> None:
    pipe = saved(tmp_path)
    assert bring_scheduler(tmp_path / "pipe") == tmp_path / "pipe" / "scheduler" / "fewstep_scheduler.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
                   "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", RELOAD], check=True, env=environment, cwd=tmp_path)
    generator = torch.Generator().manual_seed(0)
    images = pipe(batch_size=1, num_inference_steps=5, generator=generator, output_type="np").images
    torch.testing.assert_close(torch.load(tmp_path / "images.pt", weights_only=True), torch.as_tensor(images))


@pytest.mark.slow
def test_a_folder_without_our_scheduler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model_index"):
        bring_scheduler(tmp_path)
    build("ddpm", tmp_path).pipe.save_pretrained(tmp_path / "pipe")
    with pytest.raises(ValueError, match="set pipe.scheduler"):
        bring_scheduler(tmp_path / "pipe")
