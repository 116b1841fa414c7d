"""Checkpoints of score_sde_pytorch: NCSN++ and DDPM++ with a list of averaged parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoremodels.model import ScoreModel
from scoremodels.networks.preconditioning import ScaledTime, VEInput
from scoremodels.networks.resample import BOX
from scoremodels.networks.song_unet import SongUNet
from scoremodels.networks.unet_block import UNetBlock
from scoremodels.published.settings import told
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP
from scoremodels.weights import assign_weights

Group = dict[str, Tensor]

_BLOCK = {"GroupNorm_0": "norm0", "Conv_0": "conv0", "Dense_0": "affine", "GroupNorm_1": "norm1", "Conv_1": "conv1",
          "Conv_2": "skip"}
_FIR = (1.0, 3.0, 3.0, 1.0)
_CHOICES: dict[str, Any] = {"sde": ("vp", "vp-discrete", "ve"), "image_size": int}


def is_score_sde(found: object) -> bool:
    """Say whether a checkpoint holds a model and the shadow parameters of its average."""
    return (isinstance(found, Mapping) and isinstance(found.get("model"), Mapping)
            and isinstance(found.get("ema"), Mapping) and "shadow_params" in found["ema"])


def read_score_sde(found: Mapping[str, Any], path: Path, settings: Mapping[str, Any]) -> ScoreModel:
    """Make a model of the averaged weights of a network.

    Args:
        found: the checkpoint.
        path: of it; a folder "vp" or "ve" on the way says which process it was trained on, and the next folder whether
            continuously.
        settings: "sde" ("vp", "vp-discrete" or "ve"), where neither the path nor Fourier features (VE) tell;
            "image_size", where no attention tells, which is at 16×16 in all published networks.

    Raises:
        ValueError: another architecture, the sub-VP process, or a process that nothing tells.

    Source: Song et al. 2021, arXiv:2011.13456. A VE network is given for data in [-1, 1], on which σ is twice that of
        the paper's [0, 1]; the network is the same.
    """
    given = told(settings, _CHOICES, path)
    state = _averaged(found, path)
    groups = _groups(state)
    network = _network(groups, path, given.get("image_size"))
    assign_weights(network, _renamed(network, groups, path), path)
    config = network.config
    shape = (config["channels"], config["resolution"], config["resolution"])
    sde = given.get("sde") or _sde(path, bool(config["fourier"]))
    if sde == "vp-discrete":
        return ScoreModel(network, DiscreteVP.linear(), "epsilon", shape, name=path.stem)  # type: ignore[arg-type]
    if sde == "vp":
        return ScoreModel(ScaledTime(network, 999.0), ContinuousVP(), "epsilon", shape, name=path.stem)  # type: ignore[arg-type]
    if not config["fourier"]:
        raise ValueError(f"{path} is a VE network that was trained at whole steps of time: only those that were "
                         "trained continuously, with Fourier features, can be read")
    ends = state["sigmas"].double()
    low, high = 2.0 * float(ends.min()), 2.0 * float(ends.max())
    return ScoreModel(VEInput(network), EDM(round(low, 9), round(high, 4)), "epsilon", shape, name=path.stem)  # type: ignore[arg-type]


def _averaged(found: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict with the shadow parameters, which lie in the order of the parameters that were trained."""
    state = {name.removeprefix("module."): tensor for name, tensor in found["model"].items()}
    trained = [name for name in state if name != "sigmas" and not _is_fourier(name, state[name])]
    shadow = list(found["ema"]["shadow_params"])
    fits = len(shadow) == len(trained) and all(
        isinstance(mean, Tensor) and mean.shape == state[name].shape
        for name, mean in zip(trained, shadow, strict=True))
    if not fits:
        raise ValueError(f"{path} has {len(shadow)} averaged parameters that do not fit its {len(trained)} trained "
                         "ones: get the file again")
    return {**state, **dict(zip(trained, shadow, strict=True))}


def _is_fourier(name: str, tensor: Tensor) -> bool:
    return name == "all_modules.0.W" and tensor.ndim == 1


def _groups(state: Mapping[str, Tensor]) -> list[Group]:
    """The tensors of each entry of the list of modules, in order."""
    groups: dict[int, Group] = {}
    for name, tensor in state.items():
        if name.startswith("all_modules."):
            _, index, rest = name.split(".", 2)
            groups.setdefault(int(index), {})[rest] = tensor
    return [groups[index] for index in sorted(groups)]


def _network(groups: list[Group], path: Path, image_size: int | None) -> SongUNet:
    """Build the network that the shapes tell of."""
    fourier = "W" in groups[0]
    start = 3 if fourier else 2
    stem = groups[start].get("weight") if len(groups) > start else None
    blocks = [group["Conv_0.weight"].shape[:2] for group in groups if "Dense_0.weight" in group]
    # Only the decoder's blocks take more channels than they give: they take a skip connection too.
    encoder = next((index for index, (out, into) in enumerate(blocks) if into > out), 0) - 2
    if stem is None or stem.ndim != 4 or encoder < 1:
        raise ValueError(f"{path} is no NCSN++ or DDPM++ of score_sde: only those (model.name 'ncsnpp', resblock_type "
                         "'biggan') can be read")
    width, channels = stem.shape[:2]
    levels, attended = _encoder(groups[start + 1:], encoder)
    if image_size is None:
        if not attended:
            raise ValueError(f"{path} does not tell its image size: give settings={{'image_size': 32}}, say")
        image_size = 16 << attended[0]
    names = {name for group in groups for name in group}
    pyramid = "residual" if "Conv2d_0.weight" in names else "standard"
    if any(set(group) == {"Conv_0.weight", "Conv_0.bias"} for group in groups):
        pyramid = "skip"
    norms = sum("weight" in group and group["weight"].ndim == 1 for group in groups)
    return SongUNet(
        image_size, channels, channels, width=width, multipliers=[blocks_[-1] // width for blocks_ in levels],
        blocks=len(levels[0]), attention=[image_size >> level for level in attended], fourier=fourier,
        multiplier_noise=2 if fourier else 1, pyramid_in=pyramid, pyramid_out="skip" if norms > 1 else "standard",
        taps=BOX if pyramid == "standard" else _FIR)


def _encoder(groups: list[Group], blocks: int) -> tuple[list[list[int]], list[int]]:
    """The widths of the blocks of each level, and the levels with attention, from the first so many blocks."""
    levels: list[list[int]] = [[]]
    attended: set[int] = set()
    for group in groups:
        if "Dense_0.weight" in group:
            if not blocks:
                break
            blocks -= 1
            out, into = group["Conv_0.weight"].shape[:2]
            if out == into and "Conv_2.weight" in group:  # the shortcut has a convolution, as it halves
                levels.append([])
            else:
                levels[-1].append(out)
        elif "NIN_0.W" in group:
            attended.add(len(levels) - 1)
    return levels, sorted(attended)


def _renamed(network: SongUNet, groups: list[Group], path: Path) -> dict[str, Tensor]:
    """Hand out the list of modules to the network's, which come in the same order."""
    left = iter(groups)
    try:
        state = dict(_embedding(network, left))
        for name, module in (*(("enc." + name, m) for name, m in network.enc.items()),
                             *(("dec." + name, m) for name, m in network.dec.items())):
            for key, tensor in _entry(module, left):
                state[f"{name}.{key}"] = tensor
    except (StopIteration, KeyError) as error:
        raise ValueError(f"{path} lacks {error or 'modules'} of an NCSN++ or DDPM++: only score_sde's networks with "
                         "resblock_type 'biggan' can be read") from error
    if next(left, None) is not None:
        raise ValueError(f"{path} has more modules than an NCSN++ or DDPM++ of its widths: only score_sde's networks "
                         "with resblock_type 'biggan' and progressive 'none' or 'output_skip' can be read")
    return state


def _embedding(network: SongUNet, left: Iterator[Group]) -> Iterator[tuple[str, Tensor]]:
    if network.map_noise is not None:
        yield "map_noise.freqs", next(left)["W"]
    for layer in ("map_layer0", "map_layer1"):
        yield from ((f"{layer}.{name}", tensor) for name, tensor in next(left).items())


def _entry(module: nn.Module, left: Iterator[Group]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of one of our modules under its names, out of as many groups as it takes."""
    if not any(True for _ in module.parameters()):
        return
    group = next(left)
    if not isinstance(module, UNetBlock):
        yield from ((name.rpartition(".")[2], tensor) for name, tensor in group.items())
        return
    for name, tensor in group.items():
        stem, _, kind = name.partition(".")
        yield f"{_BLOCK[stem]}.{kind}", tensor
    if module.heads:
        yield from _attention(next(left))


def _attention(group: Group) -> Iterator[tuple[str, Tensor]]:
    """Interleave q, k and v, each of which maps the last axis of the input."""
    for kind in ("weight", "bias"):
        yield f"norm2.{kind}", group[f"GroupNorm_0.{kind}"]
    parts = [group[f"NIN_{index}.W"].T for index in range(3)]
    yield "qkv.weight", torch.stack(parts, 1).flatten(0, 1)[..., None, None]
    yield "qkv.bias", torch.stack([group[f"NIN_{index}.b"] for index in range(3)], 1).flatten()
    yield "proj.weight", group["NIN_3.W"].T[..., None, None]
    yield "proj.bias", group["NIN_3.b"]


def _sde(path: Path, fourier: bool) -> str:
    folders = path.resolve().parts[:-1]
    if "subvp" in folders:
        raise ValueError(f"{path} lies in a folder 'subvp': the sub-VP process is none of ours; take a network of the "
                         "VP or VE process")
    if "vp" in folders:
        config = "".join(folders[folders.index("vp") + 1:])
        return "vp-discrete" if config and "continuous" not in config else "vp"
    if "ve" in folders or fourier:
        return "ve"
    raise ValueError(f"{path} does not tell the process it was trained on: give settings={{'sde': 'vp'}}, or 've'")
