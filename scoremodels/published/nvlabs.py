"""EDM and EDM2 checkpoints of NVlabs: pickles of persistent objects, of which only the data are used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scoremodels.model import ScoreModel
from scoremodels.networks.adm_unet import ADMUNet
from scoremodels.networks.edm2_unet import EDM2UNet, unit_magnitude
from scoremodels.networks.preconditioning import EDMPreconditioned, ScaledTime, VEInput
from scoremodels.networks.song_unet import SongUNet
from scoremodels.published.pickles import Persistent, tensors
from scoremodels.published.settings import LATENT_RANGE, renamed, told
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, NoiseSchedule
from scoremodels.weights import assign_weights

_COMMON = {"img_resolution": "resolution", "in_channels": "channels", "out_channels": "channels_out",
           "label_dim": "classes", "model_channels": "width", "channel_mult": "multipliers", "num_blocks": "blocks",
           "attn_resolutions": "attention"}
_SONG = {**_COMMON, "channel_mult_emb": "multiplier_embedding", "channel_mult_noise": "multiplier_noise",
         "encoder_type": "pyramid_in", "decoder_type": "pyramid_out", "resample_filter": "taps"}
_EDM2 = {"img_resolution": "resolution", "img_channels": "channels", "label_dim": "classes", "model_channels": "width",
         "channel_mult": "multipliers", "channel_mult_noise": "multiplier_noise",
         "channel_mult_emb": "multiplier_embedding", "num_blocks": "blocks", "attn_resolutions": "attention",
         "channels_per_head": "head_width", "label_balance": "label_balance", "concat_balance": "skip_balance",
         "res_balance": "balance", "attn_balance": "balance_attention", "clip_act": "clip", "resample_filter": "taps"}
_TRAINING = ("dropout", "label_dropout", "augment_dim")


def is_nvlabs(found: object) -> bool:
    """Say whether a checkpoint holds a persistent network."""
    return isinstance(found, Mapping) and isinstance(found.get("ema"), Persistent)


def read_nvlabs(found: Mapping[str, Any], path: Path, settings: Mapping[str, Any]) -> ScoreModel:
    """Make a model of the averaged network of a checkpoint.

    The preconditionings "EDM", "VP", "VE" and "iDDPM" give the sample at noise level σ (EDM, EDM2) or the noise on
    their own clocks, as :class:`~scoremodels.schedule.NoiseSchedule` has them.

    Raises:
        ValueError: an architecture or a preconditioning that was not published.

    Source: Karras et al. 2022, arXiv:2206.00364, table 1; Karras et al. 2024, arXiv:2312.02696.
    """
    told(settings, {}, path)
    whole = found["ema"]
    given = whole.arguments
    name = "unet" if whole.name == "Precond" else "model"
    part = whole.state.get("_modules", {}).get(name)
    if not isinstance(part, Persistent) or whole.nameless or part.nameless:
        raise ValueError(f"{path} holds a {whole.name} without a persistent network {name!r} that was made with "
                         "named arguments: only EDM's and EDM2's preconditioned networks can be read")
    body = _body(part)
    state = {key: tensor.float() for key, tensor in tensors(part)
             if not key.endswith("resample_filter") and key != "map_augment.weight"}
    assign_weights(body, _folded(state) if isinstance(body, EDM2UNet) else state, path)
    network, schedule, prediction = _preconditioned(whole, body)
    channels, resolution = given["img_channels"], given["img_resolution"]
    return ScoreModel(
        network, schedule, prediction, (channels, resolution, resolution), num_classes=given.get("label_dim", 0),
        label_dropout=part.arguments.get("label_dropout", 0) > 0, name=path.stem,
        value_range=LATENT_RANGE if channels == 4 else (-1.0, 1.0))


def _body(part: Persistent) -> nn.Module:
    arguments = dict(part.arguments)
    match part.name:
        case "SongUNet":
            fourier = arguments.pop("embedding_type", "positional") == "fourier"
            return SongUNet(**renamed(arguments, _SONG, _TRAINING, part.name), fourier=fourier)
        case "DhariwalUNet":
            multiplier = arguments.pop("channel_mult_emb", 4)
            if multiplier != 4:
                raise ValueError(f"DhariwalUNet was made with channel_mult_emb={multiplier}: our ADM network has 4")
            return ADMUNet(**renamed(arguments, _COMMON, _TRAINING, part.name))
        case "UNet":
            return EDM2UNet(**renamed(arguments, _EDM2, _TRAINING, part.name))
    raise ValueError(f"network {part.name} is unknown: SongUNet, DhariwalUNet and EDM2's UNet can be read")


def _preconditioned(whole: Persistent, body: nn.Module) -> tuple[nn.Module, NoiseSchedule, str]:
    given = whole.arguments
    match whole.name:
        case "EDMPrecond" | "Precond":
            sigma_data = float(given.get("sigma_data", 0.5))
            return EDMPreconditioned(body, sigma_data), EDM(sigma_data=sigma_data), "sample"
        case "VPPrecond":
            beta_min, slope = given.get("beta_min", 0.1), given.get("beta_d", 19.9)
            return ScaledTime(body, given.get("M", 1000) - 1), ContinuousVP(beta_min, beta_min + slope), "epsilon"
        case "VEPrecond":
            return VEInput(body), EDM(given.get("sigma_min", 0.02), given.get("sigma_max", 100.0)), "epsilon"
        case "iDDPMPrecond":
            return body, DiscreteVP.cosine(given.get("M", 1000), given.get("C_2", 0.008),
                                           1.0 - given.get("C_1", 0.001)), "epsilon"
    raise ValueError(f"preconditioning {whole.name} is unknown: EDMPrecond, VPPrecond, VEPrecond, iDDPMPrecond and "
                     "EDM2's Precond can be read")


def _folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """EDM2's weights as they act: of unit magnitude, over the square root of the fan-in, times their gains."""
    folded = {}
    for name, tensor in state.items():
        if name.endswith("_gain"):
            continue
        if tensor.ndim >= 2:
            tensor = unit_magnitude(tensor, tuple(range(1, tensor.ndim))) / math.sqrt(tensor[0].numel())
        stem, _, last = name.removesuffix(".weight").rpartition(".")
        gain = {"emb_linear": f"{stem}.emb_gain", "out_conv": "out_gain"}.get(last)
        folded[name.removeprefix("emb_fourier.")] = tensor if gain is None else tensor * state[gain]
    return folded
