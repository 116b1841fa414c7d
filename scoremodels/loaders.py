"""Models by name, from folders and from the Hugging Face hub; nothing that is loaded can run code."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import nn

from scoremodels.diffusers_config import schedule_from_diffusers
from scoremodels.model import ScoreModel
from scoremodels.networks.diffusers_unet import DiffusersUNet
from scoremodels.networks.preconditioning import EDMInput
from scoremodels.networks.registry import build_network, describe_network
from scoremodels.published.checkpoints import load_checkpoint
from scoremodels.schedule import EDM, schedule_from_config
from scoremodels.weights import PICKLES, assign_weights, find_weights, read_weights

_PRETRAINED = Path(__file__).parent / "pretrained"
_FORMAT = 1
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def available() -> tuple[str, ...]:
    """Name the models that come with the package."""
    if not _PRETRAINED.is_dir():
        return ()
    return tuple(sorted(folder.name for folder in _PRETRAINED.iterdir()
                        if (folder / "config.json").is_file() or (folder / "model_index.json").is_file()))


def model_folder(name_or_folder: str | Path) -> Path:
    """Find the folder of a model, for instance to hand a pipeline folder to diffusers.

    Args:
        name_or_folder: a name out of :func:`available`, a folder, or a hub id "owner/name", which is
            downloaded.

    Raises:
        ValueError: nothing of that name.
    """
    given, path = str(name_or_folder), Path(name_or_folder)
    if given in available():
        return _PRETRAINED / given
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(f"{given} is a file: give the folder that holds it and its config.json")
    if _HUB_ID.fullmatch(given):
        return _download(given)
    near = difflib.get_close_matches(given, available(), 1, 0.5)
    meant = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"model {given!r} is unknown: {meant}there are {', '.join(available()) or 'none embedded'}; "
                     "or give a folder, or a hub id 'owner/name'")


def load(name_or_path: str | Path, *, settings: Mapping[str, Any] | None = None) -> ScoreModel:
    """Load a pretrained model, ready for inference: in evaluation mode, and with no gradients for its weights.

    A folder is one that :func:`save` wrote, a diffusers pipeline of a UNet2DModel and a scheduler, or
    a UNet2DModel with its ``scheduler_config.json`` beside it or in ``scheduler/``. A file is a published
    checkpoint of EDM, EDM2, score_sde, guided-diffusion, DiT or SiT, recognised by what is in it; its code,
    if it holds any, is never run.

    Args:
        name_or_path: a name out of :func:`available`, a folder, a hub id "owner/name", or a file.
        settings: what the file of a checkpoint leaves unsaid, such as {"sde": "vp"}; see docs/checkpoints.md.

    Returns:
        The model, on the CPU, its convolutions laid out channels-last.

    Raises:
        ValueError: nothing of that name, a damaged file, weights that do not fit, or a pickle that
            could run code.
    """
    if Path(name_or_path).is_file() and str(name_or_path) not in available():
        return _ready(load_checkpoint(Path(name_or_path), settings or {}))
    if settings:
        raise ValueError(f"settings={dict(settings)}: only the file of a published checkpoint takes settings")
    folder = model_folder(name_or_path)
    name = folder.resolve().name if Path(name_or_path).is_dir() else str(name_or_path)
    if (folder / "model_index.json").is_file():
        model = _load_pipeline(folder, name)
    elif (folder / "config.json").is_file():
        config = _read_json(folder / "config.json")
        bare = config.get("_class_name")
        model = _load_unet(folder, _scheduler_folder(folder), name) if bare else _load_own(folder, config, name)
    else:
        unsafe = next((p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLES), None)
        hint = f"; if {unsafe} is a published checkpoint, give that file itself" if unsafe else ""
        raise ValueError(f"{folder} holds neither config.json nor model_index.json{hint}: give a folder that save() or "
                         "diffusers wrote")
    return _ready(model)


def _ready(model: ScoreModel) -> ScoreModel:
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]


def save(model: ScoreModel, folder: str | Path) -> None:
    """Write ``model.safetensors`` and ``config.json``, from which :func:`load` makes an equal model.

    Raises:
        ValueError: the model is a wrapper, or its network is of a kind that a folder cannot describe.
    """
    if type(model) is not ScoreModel:
        raise ValueError(f"model is a {type(model).__name__}: only a plain ScoreModel can be saved")
    assert isinstance(model.network, nn.Module)
    config = {
        "format": _FORMAT, "prediction": model.prediction, "shape": list(model.shape),
        "num_classes": model.num_classes, "label_dropout": model.label_dropout,
        "value_range": list(model.value_range), "schedule": model.schedule.to_config(),
        "network": describe_network(model.network),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Written here, as safetensors' own save_file makes files that only their owner can read.
    (folder / "model.safetensors").write_bytes(to_safetensors(
        {name: tensor.contiguous() for name, tensor in model.network.state_dict().items()}))
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=[
            "*.json", "*.safetensors", "unet/*.json", "unet/*.safetensors", "scheduler/*.json"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model {hub_id!r} is no folder here, and the hub does not give it ({reason}): check the id "
                         "and the connection, or download it elsewhere and give the folder") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): get the file again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, not an object: get the file again")
    return config


def _load_own(folder: Path, config: Mapping[str, Any], name: str) -> ScoreModel:
    path = folder / "config.json"
    if config.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {config.get('format')!r}, and this version reads format {_FORMAT}: "
                         "use a folder that save() wrote")
    try:
        network = build_network(config["network"])
        model = ScoreModel(
            network, schedule_from_config(config["schedule"]), config["prediction"], tuple(config["shape"]),
            num_classes=config["num_classes"], label_dropout=config["label_dropout"], name=name,
            value_range=tuple(config["value_range"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} lacks or misstates {error}: use a folder that save() wrote") from error
    weights = find_weights(folder, "model")
    assign_weights(network, read_weights(weights), weights)
    return model


def _load_pipeline(folder: Path, name: str) -> ScoreModel:
    index = _read_json(folder / "model_index.json")
    parts = {key: value[-1] for key, value in index.items() if isinstance(value, list) and value and value[-1]}
    if parts.get("unet") != "UNet2DModel" or set(parts) != {"unet", "scheduler"}:
        raise ValueError(f"{folder} is a {index.get('_class_name')} of {parts}: only pipelines of one UNet2DModel and "
                         "a scheduler can be loaded here; run others with samplers.diffusers.FewStepScheduler")
    return _load_unet(folder / "unet", folder / "scheduler", name)


def _scheduler_folder(folder: Path) -> Path:
    if (folder / "scheduler_config.json").is_file():
        return folder
    return folder / "scheduler"


def _load_unet(folder: Path, scheduler: Path, name: str) -> ScoreModel:
    if not (scheduler / "scheduler_config.json").is_file():
        raise ValueError(f"{scheduler} holds no scheduler_config.json, without which the network's noise schedule is "
                         "not known: save the pipeline, or put its scheduler's config there")
    config = _read_json(folder / "config.json")
    if config.get("_class_name") != "UNet2DModel":
        raise ValueError(f"{folder} holds a {config.get('_class_name')}: only a UNet2DModel can be loaded here")
    network = build_network({"kind": "diffusers-unet", **{k: v for k, v in config.items() if not k.startswith("_")}})
    assert isinstance(network, DiffusersUNet)
    weights = find_weights(folder, "diffusion_pytorch_model")
    assign_weights(network.unet, read_weights(weights), weights)
    schedule, prediction = schedule_from_diffusers(_read_json(scheduler / "scheduler_config.json"))
    settings = network.config
    size = settings["sample_size"]
    if size is None:
        raise ValueError(f"{folder / 'config.json'} has no sample_size: add the height and width of the samples")
    if settings["class_embed_type"] is not None:
        raise ValueError(f"{folder / 'config.json'} has class_embed_type={settings['class_embed_type']!r}: only "
                         "integer labels (num_class_embeds) are supported")
    rows, columns = size if isinstance(size, list | tuple) else (size, size)
    told_log_sigma = prediction in ("edm", "edm_v") and isinstance(schedule, EDM)
    return ScoreModel(
        EDMInput(network, schedule.sigma_data) if told_log_sigma else network,  # type: ignore[attr-defined]
        schedule, prediction, (settings["in_channels"], rows, columns),
        num_classes=settings["num_class_embeds"] or 0, label_dropout=False, name=name)
