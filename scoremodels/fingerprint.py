"""Which weights a model has."""

from __future__ import annotations

import hashlib

import torch

from scoremodels.model import ScoreModel


def fingerprint(model: ScoreModel) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the network's weights; guidance around it changes nothing."""
    module = model.network if isinstance(model.network, torch.nn.Module) else model
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
