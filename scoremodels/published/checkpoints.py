"""From the file of a published checkpoint to a model, by what is in the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoremodels.model import ScoreModel
from scoremodels.published.dit import is_dit, read_dit
from scoremodels.published.guided_diffusion import is_guided_diffusion, read_guided_diffusion
from scoremodels.published.nvlabs import is_nvlabs, read_nvlabs
from scoremodels.published.score_sde import is_score_sde, read_score_sde
from scoremodels.published.settings import state_dict
from scoremodels.published.source import read_checkpoint


def load_checkpoint(path: Path, settings: Mapping[str, Any]) -> ScoreModel:
    """Read a checkpoint of EDM, EDM2, score_sde, guided-diffusion, DiT or SiT as its authors published it.

    Args:
        path: of the file.
        settings: what the file leaves unsaid; see docs/checkpoints.md.

    Raises:
        ValueError: the file could run code, is damaged, or is none of these.
    """
    found = read_checkpoint(path)
    if is_nvlabs(found):
        return read_nvlabs(found, path, settings)  # type: ignore[arg-type]
    if is_score_sde(found):
        return read_score_sde(found, path, settings)  # type: ignore[arg-type]
    state = state_dict(found)
    if state is not None and is_guided_diffusion(state):
        return read_guided_diffusion(state, path, settings)
    if state is not None and is_dit(state):
        return read_dit(state, path, settings)
    some = ", ".join(map(str, list(found)[:4])) if isinstance(found, Mapping) else type(found).__name__
    raise ValueError(f"{path} is no checkpoint of EDM, EDM2, score_sde, guided-diffusion, DiT or SiT (it holds "
                     f"{some}): give the folder that holds it and its config.json")
