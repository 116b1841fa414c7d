"""Prepare a saved pipeline of diffusers for publishing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import samplers.fewstep_scheduler as shim

_CLASS = "FewStepScheduler"


def bring_scheduler(folder: str | Path) -> Path:
    """Put the file that loads our scheduler into a saved pipeline, and name it in ``model_index.json``.

    Thereafter ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`` loads the pipeline in a process
    that has not imported this library, if only it is installed; so does a repository with the folder's files. Without
    that argument diffusers refuses.

    Args:
        folder: what ``pipe.save_pretrained`` wrote, of a pipeline with our scheduler.

    Returns:
        Path of the file.

    Raises:
        ValueError: no saved pipeline there, or one with another scheduler.
    """
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise ValueError(f"folder={str(folder)!r} holds no model_index.json: give what pipe.save_pretrained wrote")
    parts = json.loads(index.read_text())
    if parts.get("scheduler", [None, None])[1] != _CLASS:
        raise ValueError(f"folder={str(folder)!r} has scheduler {parts.get('scheduler')}: set pipe.scheduler to a "
                         f"{_CLASS} before it is saved")
    assert shim.__file__ is not None
    source = Path(shim.__file__)
    parts["scheduler"] = [source.stem, _CLASS]
    index.write_text(json.dumps(parts, indent=2) + "\n")
    return Path(shutil.copy(source, index.parent / "scheduler" / source.name))
