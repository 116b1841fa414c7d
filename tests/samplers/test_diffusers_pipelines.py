"""Stock pipelines of diffusers, with tiny random networks, run our scheduler unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import Tensor, nn

from samplers.diffusers import FewStepScheduler

SOLVERS = ("euler", "ddim", "ddpm", "dpm-solver-1", "dpm-solver-2", "dpm-solver-3", "dpm-solver-2m", "dpm-solver-3m",
           "dpm-solver++-2s", "dpm-solver++-2m", "dpm-solver++-3m", "edm-heun")
ROOT = Path(__file__).parents[2]


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


def ddpm_pipeline() -> DDPMPipeline:
    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
                       layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    pipe = DDPMPipeline(unet, DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8).eval()


def dit_pipeline() -> DiTPipeline:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8,
                                        num_layers=1, sample_size=8, patch_size=2, num_embeds_ada_norm=1000,
                                        norm_num_groups=4).eval()
    for parameter in transformer.parameters():
        nn.init.normal_(parameter, std=0.1)
    pipe = DiTPipeline(transformer, autoencoder(), DDPMScheduler(variance_type="learned_range"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_parts(tmp_path: Path) -> dict[str, object]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=16)
    encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1)).eval()
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, cross_attention_dim=8,
        attention_head_dim=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")).eval()
    return {"vae": autoencoder(), "text_encoder": encoder, "tokenizer": tokenizer, "unet": unet,
            "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def stable_diffusion_scheduler() -> PNDMScheduler:
    """The scheduler of Stable Diffusion 1.5's own config."""
    return PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
                         steps_offset=1, set_alpha_to_one=False)


@pytest.mark.parametrize("solver", SOLVERS)
def test_ddpm_pipeline_spends_the_evaluations_asked_for_at_the_timesteps_of_the_plan(solver: str) -> None:
    pipe = ddpm_pipeline()
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
    calls = Calls(pipe.unet)
    images = pipe(batch_size=2, num_inference_steps=7, generator=torch.Generator().manual_seed(0), output_type="np")
    assert calls.count == 7
    assert calls.timesteps == pytest.approx([row.t for row in pipe.scheduler.plan.rows], rel=1e-6)
    assert torch.isfinite(torch.as_tensor(images.images)).all()


def test_ddpm_pipeline_runs_its_default_of_a_thousand_steps() -> None:
    pipe = ddpm_pipeline()
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config)
    calls = Calls(pipe.unet)
    pipe(output_type="np", generator=torch.Generator().manual_seed(0))
    assert calls.timesteps == list(range(999, -1, -1))


def test_ancestral_sampling_equals_that_of_diffusers() -> None:
    pipe = ddpm_pipeline()
    pipe.scheduler = DDPMScheduler(clip_sample=False)
    theirs = pipe(batch_size=2, num_inference_steps=10, generator=torch.Generator().manual_seed(1), output_type="pt")
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="ddpm")
    ours = pipe(batch_size=2, num_inference_steps=10, generator=torch.Generator().manual_seed(1), output_type="pt")
    torch.testing.assert_close(ours.images, theirs.images, rtol=0, atol=1e-5)


def test_a_stochastic_sample_does_not_depend_on_its_batch_when_each_has_its_generator() -> None:
    pipe = ddpm_pipeline()
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="ddpm")

    def run(seeds: list[int]) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(batch_size=len(seeds), num_inference_steps=5, generator=generators, output_type="pt").images

    torch.testing.assert_close(run([3, 4, 5])[1:2], run([4]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("guidance", (1.0, 4.0))
def test_dit_pipeline_with_learned_variance_equals_diffusers_multistep(guidance: float) -> None:
    pipe = dit_pipeline()
    ours = FewStepScheduler.from_config(
        pipe.scheduler.config, weights="midpoint", conventions="DPMSolverMultistepScheduler")
    # Theirs would cut the four channels of a latent to three, had it the config's learned variance.
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, variance_type=None, timestep_spacing="leading")

    def run() -> Tensor:
        return torch.as_tensor(pipe(class_labels=[1, 207], guidance_scale=guidance, num_inference_steps=6,
                                    generator=torch.Generator().manual_seed(0), output_type="np").images)

    theirs = run()
    pipe.scheduler = ours
    torch.testing.assert_close(run(), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_dit_pipeline_runs_every_solver(solver: str) -> None:
    pipe = dit_pipeline()
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
    calls = Calls(pipe.transformer)
    images = pipe(class_labels=[1], guidance_scale=2.0, num_inference_steps=5, output_type="np",
                  generator=torch.Generator().manual_seed(0)).images
    assert calls.count == 5
    assert torch.isfinite(torch.as_tensor(images)).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_stable_diffusion_runs_every_solver_with_guidance(tmp_path: Path, solver: str) -> None:
    pipe = StableDiffusionPipeline(**stable_diffusion_parts(tmp_path), scheduler=stable_diffusion_scheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
    calls = Calls(pipe.unet)
    images = pipe("a bag", num_inference_steps=5, guidance_scale=5.0, eta=0.5, output_type="np",
                  generator=torch.Generator().manual_seed(0)).images
    assert calls.count == 5
    assert torch.isfinite(torch.as_tensor(images)).all()


def test_stable_diffusion_equals_diffusers_multistep(tmp_path: Path) -> None:
    pipe = StableDiffusionPipeline(**stable_diffusion_parts(tmp_path), scheduler=stable_diffusion_scheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

    def run() -> Tensor:
        return torch.as_tensor(pipe("a bag", num_inference_steps=8, guidance_scale=5.0, output_type="np",
                                    generator=torch.Generator().manual_seed(0)).images)

    theirs = run()
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, weights="midpoint")
    torch.testing.assert_close(run(), theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("solver", ("dpm-solver++-2m", "dpm-solver-3", "edm-heun"))
def test_image_to_image_spends_its_share_of_the_evaluations(tmp_path: Path, solver: str) -> None:
    parts = stable_diffusion_parts(tmp_path)
    pipe = StableDiffusionImg2ImgPipeline(**parts, scheduler=stable_diffusion_scheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver=solver)
    calls = Calls(pipe.unet)
    images = pipe("a bag", image=torch.rand(1, 3, 8, 8), strength=0.6, num_inference_steps=10, output_type="np",
                  generator=torch.Generator().manual_seed(0)).images
    assert calls.count == 6
    assert torch.isfinite(torch.as_tensor(images)).all()


@pytest.mark.parametrize("strength", (1.0, 0.6))
def test_inpainting_equals_diffusers_multistep_and_keeps_what_is_not_masked(tmp_path: Path, strength: float) -> None:
    pipe = StableDiffusionInpaintPipeline(**stable_diffusion_parts(tmp_path), scheduler=stable_diffusion_scheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    calls = Calls(pipe.unet)
    image, mask = torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1.0

    def run(mask: Tensor) -> Tensor:
        return pipe("a bag", image=image, mask_image=mask, height=8, width=8, strength=strength, guidance_scale=5.0,
                    num_inference_steps=10, output_type="latent", generator=torch.Generator().manual_seed(0)).images

    theirs = run(mask)
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, weights="midpoint")
    calls.count = 0
    ours = run(mask)
    assert calls.count == round(10 * strength)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    kept = run(torch.zeros_like(mask))  # nothing is masked: the image's own latents come back
    assert torch.equal(ours[..., 4:], kept[..., 4:])
    assert not torch.allclose(ours[..., :4], kept[..., :4])


def test_a_saved_pipeline_reloads_in_a_fresh_process_and_gives_the_same_images(tmp_path: Path) -> None:
    pipe = ddpm_pipeline()
    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="dpm-solver-3")
    expected = pipe(num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="pt").images
    pipe.save_pretrained(tmp_path / "pipe")
    script = f"""
import torch
import samplers.diffusers  # diffusers imports no module only because a folder names it
from diffusers import DDPMPipeline
pipe = DDPMPipeline.from_pretrained({str(tmp_path / "pipe")!r})
pipe.set_progress_bar_config(disable=True)
assert type(pipe.scheduler).__module__ == "samplers.diffusers", type(pipe.scheduler)
assert pipe.scheduler.config.solver == "dpm-solver-3"
images = pipe(num_inference_steps=5, generator=torch.Generator().manual_seed(0), output_type="pt").images
torch.save(images, {str(tmp_path / "images.pt")!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "images.pt", weights_only=True), expected)


def test_a_pipeline_switches_back_to_a_scheduler_of_diffusers() -> None:
    original = EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing")
    ours = FewStepScheduler.from_config(original.config)
    back = EulerDiscreteScheduler.from_config(ours.config)
    for scheduler in (original, back):
        scheduler.set_timesteps(8)
    assert torch.equal(back.timesteps, original.timesteps)
    assert torch.equal(back.sigmas, original.sigmas)
