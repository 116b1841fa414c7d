"""Opening a checkpoint by what is in it, whatever it is called, and never by running it."""

from __future__ import annotations

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch

from scoremodels.published.pickles import Refused, read_pickle
from scoremodels.weights import PICKLES, read_safetensors

_SAFE = ("Nothing of it has run. Get the file from its authors again; or, if you trust it, open it with their code on "
         "a machine where that does no harm, and save its state dict with safetensors.torch.save_file(state, "
         "'model.safetensors')")
_LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19"
"""The number that torch's files began with before they were zip archives, as pickle writes it."""


def read_checkpoint(path: Path) -> object:
    """Read a zip archive or a pickle of torch's, a plain pickle, or a safetensors file.

    Args:
        path: of the file; its suffix plays no part.

    Returns:
        Containers, numbers, tensors, and :class:`~scoremodels.published.pickles.Persistent` objects.

    Raises:
        ValueError: the file would run code, is damaged, or is none of these.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"PK\x03\x04") or _LEGACY in head[:16]:
        return _read_torch(path)
    if head.startswith(b"\x80") or path.suffix in PICKLES:
        return _read_plain(path)
    if len(head) > 8 and head[8:9] == b"{":
        return read_safetensors(path)
    raise ValueError(f"{path} is neither a safetensors file nor a checkpoint of torch's: give the folder that holds it "
                     "and its config.json, or a published checkpoint as it was downloaded")


def _read_torch(path: Path) -> Any:
    # A Namespace is what argparse returns: attributes, and nothing that runs.
    # Given the open file and not its name, torch does not look at the suffix.
    with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line),
                          str(error).splitlines()[0])
            raise ValueError(f"{path} is a pickle that could run any code ({reason.strip()}), so it is refused. "
                             f"{_SAFE}") from error
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError(f"{path} is damaged or truncated ({error}): get the file again") from error


def _read_plain(path: Path) -> object:
    try:
        return read_pickle(path.read_bytes())
    except Refused as error:
        raise ValueError(f"{path} is a pickle that could run any code: {error}, so it is refused. {_SAFE}") from error
    except ValueError as error:
        raise ValueError(f"{path} is {error}: get the file again") from error
