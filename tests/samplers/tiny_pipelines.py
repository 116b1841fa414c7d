"""Pipelines of diffusers with tiny random networks, and what to call them with.

Text encoders are left out where a pipeline takes embeddings in their place.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    AutoencoderOobleck,
    ControlNetModel,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import Tensor, nn

STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
"""Stable Diffusion's betas."""


class Tiny(NamedTuple):
    """A pipeline ready to be called.

    Attributes:
        pipe: the pipeline with the scheduler that its models are published with.
        arguments: of a call, apart from the generator.
        output: what the result calls its samples.
        network: what is evaluated.
        left_out: components that are None, and must be so on loading.
        steps_of: steps with which its own scheduler spends ``num_inference_steps`` evaluations.
    """

    pipe: Any
    arguments: dict[str, Any]
    output: str
    network: str
    left_out: tuple[str, ...] = ()
    steps_of: Callable[[int], int] = int


class ToldTheExactTime(UniPCMultistepScheduler):
    """On a flow UniPCMultistepScheduler tells the network whole timesteps, up to one beside its noise levels."""

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self.timesteps = self.sigmas[:-1] * self.config.num_train_timesteps


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def silent(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def awake(model: nn.Module) -> nn.Module:
    """Fill weights that start at zero, so that the output depends on time and condition."""
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model.eval()


def autoencoder(channels: int = 4, **config: Any) -> AutoencoderKL:
    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=channels, sample_size=8,
                         **config).eval()


def condition_unet(**config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(**{
        "sample_size": 8, "block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1,
        "cross_attention_dim": 8, "attention_head_dim": 2, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), **config}).eval()


def pixel_unet() -> UNet2DModel:
    return UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), norm_num_groups=4,
                       layers_per_block=1, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)


def ddpm(folder: Path) -> Tiny:
    return Tiny(DDPMPipeline(pixel_unet(), DDPMScheduler()), {"batch_size": 2, "output_type": "np"}, "images", "unet")


def ddim(folder: Path) -> Tiny:
    pipe = DDIMPipeline(pixel_unet(), DDIMScheduler())
    return Tiny(pipe, {"batch_size": 2, "output_type": "np", "eta": 0.5}, "images", "unet")


def dit(folder: Path) -> Tiny:
    """DiT learns a variance, too, which its pipeline cuts off."""
    transformer = awake(DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000, norm_num_groups=4))
    pipe = DiTPipeline(transformer, autoencoder(), DDIMScheduler(clip_sample=False))
    return Tiny(pipe, {"class_labels": [1, 207], "guidance_scale": 3.0, "output_type": "np"}, "images", "transformer")


def stable_diffusion_parts(folder: Path) -> dict[str, Any]:
    """Components of a Stable Diffusion pipeline, a tokenizer of single letters among them."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)
    encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1)).eval()
    return {"vae": autoencoder(), "text_encoder": encoder, "tokenizer": tokenizer, "unet": condition_unet(),
            "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def stable_diffusion_scheduler() -> PNDMScheduler:
    """The scheduler of Stable Diffusion 1.5's own config."""
    return PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **STABLE)


def stable_diffusion(folder: Path) -> Tiny:
    pipe = StableDiffusionPipeline(**stable_diffusion_parts(folder), scheduler=stable_diffusion_scheduler())
    # PNDMScheduler evaluates its second timestep twice.
    return Tiny(pipe, {"prompt": "a bag", "guidance_scale": 5.0, "output_type": "np"}, "images", "unet",
                steps_of=lambda nfe: nfe - 1)


def image_to_image(folder: Path) -> Tiny:
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **STABLE)
    pipe = StableDiffusionImg2ImgPipeline(**stable_diffusion_parts(folder), scheduler=scheduler)
    image = normal(1, 3, 8, 8, seed=3).sigmoid()
    return Tiny(pipe, {"prompt": "a bag", "image": image, "strength": 0.6, "output_type": "np"}, "images", "unet")


def inpainting(folder: Path) -> Tiny:
    pipe = StableDiffusionInpaintPipeline(**stable_diffusion_parts(folder), scheduler=UniPCMultistepScheduler(**STABLE))
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1.0
    arguments = {"prompt": "a bag", "image": normal(1, 3, 8, 8, seed=3).sigmoid(), "mask_image": mask, "height": 8,
                 "width": 8, "strength": 1.0, "output_type": "np"}
    return Tiny(pipe, arguments, "images", "unet")


def controlnet(folder: Path) -> Tiny:
    net = awake(ControlNetModel(
        block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, cross_attention_dim=8, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), conditioning_embedding_out_channels=(8,)))
    pipe = StableDiffusionControlNetPipeline(**stable_diffusion_parts(folder), controlnet=net,
                                             scheduler=DPMSolverMultistepScheduler(solver_order=3, **STABLE))
    arguments = {"prompt": "a bag", "image": normal(1, 3, 8, 8, seed=3).sigmoid(), "height": 8, "width": 8,
                 "output_type": "np"}
    return Tiny(pipe, arguments, "images", "unet")


_NO_TEXT_XL = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")


def _xl_unet(size_of_ids: int) -> UNet2DConditionModel:
    return condition_unet(addition_embed_type="text_time", addition_time_embed_dim=8, use_linear_projection=True,
                          projection_class_embeddings_input_dim=8 * size_of_ids + 8)


def _xl_arguments() -> dict[str, Any]:
    return {"prompt_embeds": normal(1, 5, 8), "pooled_prompt_embeds": normal(1, 8, seed=1),
            "negative_prompt_embeds": normal(1, 5, 8, seed=2), "negative_pooled_prompt_embeds": normal(1, 8, seed=3),
            "guidance_scale": 5.0, "output_type": "latent"}


def stable_diffusion_xl(folder: Path) -> Tiny:
    """The base model, which hands its latents over after 0.6 of the way."""
    scheduler = EulerDiscreteScheduler(timestep_spacing="leading", **STABLE)
    pipe = StableDiffusionXLPipeline(vae=autoencoder(), unet=_xl_unet(6), scheduler=scheduler, add_watermarker=False,
                                     **dict.fromkeys(_NO_TEXT_XL))
    return Tiny(pipe, {**_xl_arguments(), "denoising_end": 0.6, "height": 8, "width": 8}, "images", "unet", _NO_TEXT_XL)


def refiner(folder: Path) -> Tiny:
    """The refiner, which takes latents over; they come from pure noise here."""
    scheduler = EulerDiscreteScheduler(timestep_spacing="leading", **STABLE)
    pipe = StableDiffusionXLImg2ImgPipeline(
        vae=autoencoder(), unet=_xl_unet(5), scheduler=scheduler, add_watermarker=False,
        requires_aesthetics_score=True, **dict.fromkeys(_NO_TEXT_XL))
    arguments = {**_xl_arguments(), "denoising_start": 0.6, "image": normal(1, 4, 8, 8, seed=4)}
    return Tiny(pipe, arguments, "images", "unet", _NO_TEXT_XL)


def stable_diffusion_3(folder: Path) -> Tiny:
    transformer = awake(SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=4,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4))
    absent = (*_NO_TEXT_XL, "text_encoder_3", "tokenizer_3")
    pipe = StableDiffusion3Pipeline(transformer, FlowMatchEulerDiscreteScheduler(shift=3.0),
                                    autoencoder(shift_factor=0.06, scaling_factor=1.5), **dict.fromkeys(absent))
    arguments = {**_xl_arguments(), "output_type": "np", "height": 8, "width": 8}
    return Tiny(pipe, arguments, "images", "transformer", absent)


def flux(folder: Path) -> Tiny:
    """Flux shifts its noise levels by the number of its tokens."""
    transformer = awake(FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8)))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    pipe = FluxPipeline(scheduler, autoencoder(1, shift_factor=0.06, scaling_factor=1.5), transformer=transformer,
                        **dict.fromkeys(_NO_TEXT_XL))
    arguments = {"prompt_embeds": normal(1, 5, 8), "pooled_prompt_embeds": normal(1, 8, seed=1), "height": 16,
                 "width": 16, "guidance_scale": 5.0, "output_type": "np"}
    return Tiny(pipe, arguments, "images", "transformer", _NO_TEXT_XL)


def pixart(folder: Path) -> Tiny:
    transformer = awake(PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=4, num_attention_heads=2, caption_channels=8,
        in_channels=4, cross_attention_dim=8, out_channels=8, norm_num_groups=1))
    absent = ("text_encoder", "tokenizer")
    pipe = PixArtAlphaPipeline(vae=autoencoder(), transformer=transformer, scheduler=DPMSolverMultistepScheduler(),
                               **dict.fromkeys(absent))
    mask = torch.ones(1, 5)
    arguments = {"prompt_embeds": normal(1, 5, 8), "prompt_attention_mask": mask, "negative_prompt": None,
                 "negative_prompt_embeds": normal(1, 5, 8, seed=1), "negative_prompt_attention_mask": mask, "height": 8,
                 "width": 8, "use_resolution_binning": False, "output_type": "np"}
    return Tiny(pipe, arguments, "images", "transformer", absent)


def stable_audio(folder: Path) -> Tiny:
    transformer = awake(StableAudioDiTModel(
        sample_size=4, in_channels=3, num_layers=1, attention_head_dim=4, num_key_value_attention_heads=2,
        out_channels=3, cross_attention_dim=4, time_proj_dim=8, global_states_input_dim=8,
        cross_attention_input_dim=4))
    vae = AutoencoderOobleck(
        encoder_hidden_size=6, downsampling_ratios=[1, 2], decoder_channels=3, decoder_input_channels=3,
        audio_channels=2, channel_multiples=[2, 4], sampling_rate=4).eval()
    projection = StableAudioProjectionModel(text_encoder_dim=4, conditioning_dim=4, min_value=0, max_value=32)
    scheduler = EDMDPMSolverMultistepScheduler(solver_order=2, prediction_type="v_prediction", sigma_data=1.0,
                                               sigma_schedule="exponential")
    absent = ("text_encoder", "tokenizer")
    pipe = StableAudioPipeline(vae=vae, projection_model=projection, transformer=transformer, scheduler=scheduler,
                               **dict.fromkeys(absent))
    arguments = {"prompt_embeds": normal(1, 5, 4), "negative_prompt_embeds": normal(1, 5, 4, seed=1),
                 "attention_mask": torch.ones(1, 5), "negative_attention_mask": torch.ones(1, 5),
                 "audio_end_in_s": 2.0, "guidance_scale": 3.0, "output_type": "latent"}
    return Tiny(pipe, arguments, "audios", "transformer", absent)


def wan(folder: Path) -> Tiny:
    transformer = awake(WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16, out_channels=16,
        text_dim=8, freq_dim=16, ffn_dim=16, num_layers=1, cross_attn_norm=True, qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32))
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
                           temperal_downsample=[False, True, True]).eval()
    scheduler = ToldTheExactTime(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    absent = ("text_encoder", "tokenizer")
    pipe = WanPipeline(vae=vae, transformer=transformer, scheduler=scheduler, **dict.fromkeys(absent))
    arguments = {"prompt_embeds": normal(1, 5, 8), "negative_prompt_embeds": normal(1, 5, 8, seed=1), "height": 16,
                 "width": 16, "num_frames": 5, "guidance_scale": 3.0, "output_type": "latent"}
    return Tiny(pipe, arguments, "frames", "transformer", absent)


def latent_consistency(folder: Path) -> Tiny:
    absent = ("text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    pipe = LatentConsistencyModelPipeline(
        vae=autoencoder(), unet=condition_unet(time_cond_proj_dim=8), scheduler=LCMScheduler(),
        requires_safety_checker=False, **dict.fromkeys(absent))
    arguments = {"prompt_embeds": normal(1, 5, 8), "guidance_scale": 8.5, "height": 8, "width": 8, "output_type": "np"}
    return Tiny(pipe, arguments, "images", "unet", absent)


BUILDERS: dict[str, Callable[[Path], Tiny]] = {builder.__name__: builder for builder in (
    ddpm, ddim, dit, stable_diffusion, image_to_image, inpainting, controlnet, stable_diffusion_xl, refiner,
    stable_diffusion_3, flux, pixart, stable_audio, wan, latent_consistency)}


def build(name: str, folder: Path) -> Tiny:
    """Make a pipeline, the same one every time."""
    torch.manual_seed(0)
    tiny = BUILDERS[name](folder)
    silent(tiny.pipe)
    return tiny


def call(tiny: Tiny, nfe: int) -> Tensor:
    """Run a pipeline; what it returns, as one tensor."""
    result = tiny.pipe(**tiny.arguments, num_inference_steps=nfe, generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(getattr(result, tiny.output))
