"""Stock pipelines of diffusers, with tiny random networks, run our scheduler unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn

from samplers.diffusers import FewStepScheduler
from tests.samplers.tiny_pipelines import BUILDERS, STABLE, Tiny, build, call

SOLVERS = ("euler", "ddim", "ddpm", "dpm-solver-1", "dpm-solver-2", "dpm-solver-3", "dpm-solver-2m", "dpm-solver-3m",
           "dpm-solver++-2s", "dpm-solver++-2m", "dpm-solver++-3m", "edm-heun", "unipc-2", "deis-3", "pndm", "dpm-2",
           "dpm-2-ancestral", "sde-dpm-solver++-2m", "sa-solver-2", "edm-churn-heun")
ROOT = Path(__file__).parents[2]
RELATIVE = 1e-6
RELATIVE_OF = {"stable_audio": 2e-4}
"""Where float32 rounds coarser: a step from σ = 80 leaves what 1e-6 of 80 is."""

ALONE = [name for name in BUILDERS if name not in ("stable_diffusion_xl", "refiner")]
"""Pipelines whose samples are finished, and not handed on in the units of their scheduler."""


class Calls:
    """Counts the forward calls of a module and notes the timesteps it was given."""

    def __init__(self, module: nn.Module) -> None:
        self.count = 0
        self.timesteps: list[float] = []
        module.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        self.count += 1
        t = kwargs["timestep"] if "timestep" in kwargs else args[1]
        self.timesteps.append(float(torch.as_tensor(t).flatten()[0]))


def evaluations(name: str) -> int:
    return 4 if name == "latent_consistency" else 8


def with_ours(tiny: Tiny) -> Tiny:
    """Exchange a pipeline's scheduler for ours, with the same solver."""
    own = tiny.pipe.scheduler
    name = next(base.__name__ for base in type(own).__mro__ if base.__module__.startswith("diffusers."))
    tiny.pipe.scheduler = FewStepScheduler.from_config({**own.config, "_class_name": name})
    return tiny


@pytest.mark.parametrize("name", ALONE)
def test_a_pipeline_gives_the_samples_of_its_own_scheduler(name: str, tmp_path: Path) -> None:
    tiny, nfe = build(name, tmp_path), evaluations(name)
    calls = Calls(getattr(tiny.pipe, tiny.network))
    theirs = call(tiny, tiny.steps_of(nfe))
    spent, calls.count = calls.count, 0
    ours = call(with_ours(tiny), nfe)
    assert calls.count == spent
    assert float((ours - theirs).norm() / theirs.norm()) <= RELATIVE_OF.get(name, RELATIVE)


def test_the_refiner_takes_over_from_the_base_model_as_with_their_own_schedulers(tmp_path: Path) -> None:
    base, refiner = build("stable_diffusion_xl", tmp_path), build("refiner", tmp_path)
    calls = [Calls(tiny.pipe.unet) for tiny in (base, refiner)]

    def run() -> Tensor:
        latents = call(base, 10)
        return call(refiner._replace(arguments={**refiner.arguments, "image": latents}), 10)

    theirs = run()
    for tiny in (base, refiner):
        with_ours(tiny)
    ours = run()
    assert [c.count for c in calls] == [12, 8]
    assert float((ours - theirs).norm() / theirs.norm()) <= RELATIVE


RELOAD = """
import sys
from pathlib import Path

import diffusers
import torch

import samplers.diffusers  # diffusers imports no module only because a folder names it

for folder in sorted(Path(sys.argv[1]).iterdir()):
    told = torch.load(folder / "call.pt", weights_only=True)
    pipe = getattr(diffusers, told["class"]).from_pretrained(folder / "pipe", **dict.fromkeys(told["left_out"]))
    pipe.set_progress_bar_config(disable=True)
    # DDIMPipeline makes a DDIMScheduler out of whatever it is given, which then must come to the same.
    assert type(pipe.scheduler).__module__ == "samplers.diffusers" or told["class"] == "DDIMPipeline"
    result = pipe(**told["arguments"], generator=torch.Generator().manual_seed(0))
    torch.save(torch.as_tensor(getattr(result, told["output"])), folder / "samples.pt")
"""


@pytest.mark.slow
def test_saved_pipelines_reload_in_a_fresh_process_and_give_the_same_samples(tmp_path: Path) -> None:
    expected = {}
    for name in BUILDERS:
        tiny, nfe, folder = with_ours(build(name, tmp_path / "text")), evaluations(name), tmp_path / "saved" / name
        expected[name] = call(tiny, nfe)
        tiny.pipe.save_pretrained(folder / "pipe")
        torch.save({"class": type(tiny.pipe).__name__, "left_out": list(tiny.left_out), "output": tiny.output,
                    "arguments": {**tiny.arguments, "num_inference_steps": nfe}}, folder / "call.pt")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", RELOAD, str(tmp_path / "saved")], check=True, env=environment, cwd=tmp_path)
    for name, samples in expected.items():
        again = torch.load(tmp_path / "saved" / name / "samples.pt", weights_only=True)
        torch.testing.assert_close(again, samples, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("solver", SOLVERS)
def test_ddpm_pipeline_spends_the_evaluations_asked_for_at_the_timesteps_of_the_plan(solver: str) -> None:
    pipe = build("ddpm", Path()).pipe
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
    calls = Calls(pipe.unet)
    images = pipe(batch_size=2, num_inference_steps=7, generator=torch.Generator().manual_seed(0), output_type="np")
    assert calls.count == 7
    assert calls.timesteps == pytest.approx([row.t for row in pipe.scheduler.plan.rows], rel=1e-6)
    assert torch.isfinite(torch.as_tensor(images.images)).all()


def test_ddpm_pipeline_runs_its_default_of_a_thousand_steps() -> None:
    pipe = build("ddpm", Path()).pipe
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config)
    calls = Calls(pipe.unet)
    pipe(output_type="np", generator=torch.Generator().manual_seed(0))
    assert calls.timesteps == list(range(999, -1, -1))


def test_a_stochastic_sample_does_not_depend_on_its_batch_when_each_has_its_generator() -> None:
    pipe = build("ddpm", Path()).pipe
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="ddpm")

    def run(seeds: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(batch_size=len(seeds), num_inference_steps=5, generator=generators, output_type="pt").images

    torch.testing.assert_close(run([3, 4, 5])[1:2], run([4]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_dit_pipeline_runs_every_solver(solver: str) -> None:
    pipe = build("dit", Path()).pipe
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
    calls = Calls(pipe.transformer)
    images = pipe(class_labels=[1], guidance_scale=2.0, num_inference_steps=5, output_type="np",
                  generator=torch.Generator().manual_seed(0)).images
    assert calls.count == 5
    assert torch.isfinite(torch.as_tensor(images)).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_stable_diffusion_runs_every_solver_with_guidance(tmp_path: Path, solver: str) -> None:
    pipe = build("stable_diffusion", tmp_path).pipe
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
    calls = Calls(pipe.unet)
    images = pipe("a bag", num_inference_steps=5, guidance_scale=5.0, eta=0.5, output_type="np",
                  generator=torch.Generator().manual_seed(0)).images
    assert calls.count == 5
    assert torch.isfinite(torch.as_tensor(images)).all()


@pytest.mark.parametrize("strength", (1.0, 0.6))
@pytest.mark.parametrize("source", (DPMSolverMultistepScheduler, UniPCMultistepScheduler, DEISMultistepScheduler))
def test_inpainting_equals_that_of_diffusers_and_keeps_what_is_not_masked(
    source: type, strength: float, tmp_path: Path
) -> None:
    tiny = build("inpainting", tmp_path)
    tiny.arguments.update(strength=strength, output_type="latent")
    tiny.pipe.scheduler = source(**STABLE)
    theirs = call(tiny, 10)
    calls = Calls(tiny.pipe.unet)
    ours = call(with_ours(tiny), 10)
    assert calls.count == round(10 * strength)
    # With UniPC theirs corrects the masked state anew from the last one, and ours keeps what the pipeline wrote.
    if source is not UniPCMultistepScheduler:
        assert float((ours - theirs).norm() / theirs.norm()) <= 1e-5
    tiny.arguments["mask_image"] = torch.zeros(1, 1, 8, 8)
    kept = call(tiny, 10)  # nothing is masked: the image's own latents come back
    assert torch.equal(ours[..., 4:], kept[..., 4:])
    assert not torch.allclose(ours[..., :4], kept[..., :4])


@pytest.mark.parametrize("solver", ("dpm-solver++-2m", "dpm-solver-3", "edm-heun"))
def test_image_to_image_spends_its_share_of_the_evaluations(tmp_path: Path, solver: str) -> None:
    pipe = build("image_to_image", tmp_path).pipe
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
    calls = Calls(pipe.unet)
    images = pipe("a bag", image=torch.rand(1, 3, 8, 8), strength=0.6, num_inference_steps=10, output_type="np",
                  generator=torch.Generator().manual_seed(0)).images
    assert calls.count == 6
    assert torch.isfinite(torch.as_tensor(images)).all()


def test_a_pipeline_switches_back_to_a_scheduler_of_diffusers() -> None:
    original = EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing")
    ours = FewStepScheduler.from_config(original.config)
    back = EulerDiscreteScheduler.from_config(ours.config)
    for scheduler in (original, back):
        scheduler.set_timesteps(8)
    assert torch.equal(back.timesteps, original.timesteps)
    assert torch.equal(back.sigmas, original.sigmas)
