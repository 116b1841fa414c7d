"""The command `fewstep convert`: from a published checkpoint to a folder of safetensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eval.console import complaints
from scoremodels.loaders import load, save


def convert_command(
    source: Annotated[str, typer.Argument(help="File of a checkpoint, or the name or folder of a model.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write config.json and model.safetensors to.")],
    settings: Annotated[list[str] | None, typer.Option(
        "--set", help="NAME=VALUE: what a checkpoint leaves unsaid, such as sde=vp; may be given again.")] = None,
) -> None:
    """Read a published checkpoint, running none of its code, and write a folder that loads without it."""
    with complaints():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"folder={str(folder)!r} is there already and not empty: give another name")
        model = load(source, settings=read_settings(settings or ()))
        save(model, folder)
        written = sum(path.stat().st_size for path in folder.iterdir())
    Console().print(f"{source}: {model.prediction} of shape {' × '.join(map(str, model.shape))} on "
                    f"{model.schedule.to_config()['kind']}, {model.num_classes or 'no'} classes; wrote {folder} "
                    f"({written / 1e6:.1f} MB)", soft_wrap=True, highlight=False)


def read_settings(given: Sequence[str]) -> dict[str, str | int]:
    """Read NAME=VALUE pairs; whole numbers become numbers.

    Raises:
        ValueError: a pair without a name or an equals sign.
    """
    settings: dict[str, str | int] = {}
    for pair in given:
        name, sign, value = pair.partition("=")
        if not name or not sign:
            raise ValueError(f"set={pair!r}: give NAME=VALUE, such as sde=vp")
        settings[name] = int(value) if value.isdecimal() else value
    return settings
