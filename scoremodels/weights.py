"""Reading weights: safetensors, or pickles of nothing but tensors; never code."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Suffixes of files that may hold code."""

_CONVERT = ("Convert it where running its code does no harm: state = torch.load(file, weights_only=False), then "
            "safetensors.torch.save_file(state, 'model.safetensors')")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read named tensors.

    Args:
        path: a ``.safetensors`` file, or a pickle that ``torch.load(weights_only=True)`` accepts.

    Raises:
        ValueError: the file is damaged, holds more than tensors, or is of an unknown kind.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix not in PICKLES:
        raise ValueError(f"{path} is no weight file: give .safetensors")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is no pickle of tensors alone; loading it could run any code, so it is refused. "
                         f"{_CONVERT}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"{path} is damaged or truncated ({error}): get the file again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds more than named tensors: save the state dict alone, as .safetensors")
    return state


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a safetensors file, whatever its suffix.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged or truncated ({error}): get the file again") from error


def find_weights(folder: Path, stem: str) -> Path:
    """Find ``stem.safetensors``, or else a pickle of that stem.

    Raises:
        ValueError: neither is there.
    """
    for suffix in (".safetensors", *PICKLES):
        if (folder / (stem + suffix)).is_file():
            return folder / (stem + suffix)
    if (folder / f"{stem}.safetensors.index.json").is_file():
        raise ValueError(f"{folder} holds weights in several files: merge them into one {stem}.safetensors")
    raise ValueError(f"{folder} holds no {stem}.safetensors: its weights are missing")


def assign_weights(network: nn.Module, state: Mapping[str, Tensor], origin: Path) -> None:
    """Copy tensors into a network that expects exactly them.

    Raises:
        ValueError: a tensor is missing, not expected, of another shape, or not finite.
    """
    own = network.state_dict()
    faults = [f"{name} is missing" for name in own.keys() - state.keys()]
    faults += [f"{name} is not expected" for name in state.keys() - own.keys()]
    for name in own.keys() & state.keys():
        if own[name].shape != state[name].shape:
            faults.append(f"{name} has shape {tuple(state[name].shape)}, not {tuple(own[name].shape)}")
        elif not torch.isfinite(state[name]).all():
            faults.append(f"{name} is not finite")
    if faults:
        more = f", and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise ValueError(f"{origin} does not fit the network that the config describes: "
                         f"{'; '.join(sorted(faults)[:4])}{more}. Get weights and config from one source")
    network.load_state_dict(state)
