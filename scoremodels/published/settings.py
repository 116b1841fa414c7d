"""What a checkpoint says of its network under other names, and what it leaves to be told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

LATENT_RANGE = (-4.0, 4.0)
"""Nearly all values of an autoencoder's latents in the scale in which they are diffused; they have no hard bounds."""


def renamed(arguments: Mapping[str, Any], names: Mapping[str, str], idle: tuple[str, ...], what: str) -> dict[str, Any]:
    """Give arguments under our names, without those that matter in training alone.

    Raises:
        ValueError: an argument that has no counterpart here.
    """
    unknown = arguments.keys() - names.keys() - set(idle)
    if unknown:
        raise ValueError(f"{what} was made with {', '.join(sorted(unknown))}, which our network does not know: only "
                         "the published architectures can be read")
    return {names[key]: list(value) if isinstance(value, tuple | list) else value
            for key, value in arguments.items() if key in names}


def told(settings: Mapping[str, Any], choices: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Check what the caller told of a checkpoint.

    Args:
        settings: by name.
        choices: for each name its values, or the type of them.
        path: of the checkpoint.

    Raises:
        ValueError: a setting that is unknown or has another value.
    """
    for name, value in settings.items():
        if name not in choices:
            raise ValueError(f"settings[{name!r}]={value!r}: {path.name} takes {', '.join(choices) or 'no settings'}")
        allowed = choices[name]
        if not (isinstance(value, allowed) if isinstance(allowed, type) else value in allowed):
            meant = allowed.__name__ if isinstance(allowed, type) else f"one of {', '.join(map(str, allowed))}"
            raise ValueError(f"settings[{name!r}]={value!r}: give {meant}")
    return dict(settings)


def state_dict(found: object) -> dict[str, Tensor] | None:
    """Take the named tensors out of a checkpoint: the averaged ones if it has those too; None if it has none."""
    if not isinstance(found, Mapping):
        return None
    for key in ("ema", "model", "state_dict"):
        if isinstance(found.get(key), Mapping):
            return state_dict(found[key])
    if not found or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()):
        return None
    return {name.removeprefix("module."): value for name, value in found.items()}
