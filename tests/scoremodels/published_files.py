"""Small checkpoints in the formats of their authors, with weights drawn from a seed.

``published.json`` holds names and shapes as the authors' own code makes them for small widths, and a few outputs of
their networks with these very weights (from NVlabs/edm, NVlabs/edm2, yang-song/score_sde_pytorch and
openai/guided-diffusion), so that the code itself need not be here.
"""

from __future__ import annotations

import json
import math
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

PUBLISHED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("published.json").read_text())
LABELS = torch.tensor([0, 2])


def _normal(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Numbers from the one generator of numpy's whose stream will not change."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(math.prod(shape))).reshape(shape)


def weights(index: int, name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers of about the size that a trained layer has: near 1 for scales, small for biases."""
    drawn = _normal(index, shape)
    if len(shape) > 1:
        return (drawn / math.sqrt(math.prod(shape[1:]))).float()
    return (0.2 * drawn + (1.0 if name.endswith("weight") or not shape else 0.0)).float()


def named_tensors(case: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint, in its order."""
    found = {}
    for index, entry in enumerate(PUBLISHED[case]["tensors"].split(" ")):
        name, _, size = entry.rpartition(":")
        found[name] = weights(index, name, tuple(int(n) for n in size.split("x") if n))
    return found


def states(shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    """Two states."""
    return scale * _normal(999, (2, *shape)).float()


def picked(output: Tensor) -> Tensor:
    """The values of an output that are stored."""
    return output.flatten()[::29][:8]


class _Object:
    """Pickles as NVlabs' persistent objects do: a call with the source of its class and its attributes."""

    def __init__(self, name: str, keywords: Mapping[str, Any], source: str) -> None:
        self.meta = dict(type="class", version=6, module_src=source, class_name=name, state=dict(
            training=False, _parameters=OrderedDict(), _buffers=OrderedDict(), _non_persistent_buffers_set=set(),
            _backward_hooks=OrderedDict(), _modules=OrderedDict(), skip_scale=np.sqrt(0.5), _init_args=(),
            _init_kwargs=dict(keywords)))

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,), None


def nvlabs_pickle(case: str, path: Path, patch: pytest.MonkeyPatch, source: str = "raise SystemExit") -> None:
    """Write a pickle of a persistent network, of which ``source`` is the code."""
    module = types.ModuleType("torch_utils.persistence")

    def reconstruct(meta: object) -> None:
        raise AssertionError("the pickle was run")

    reconstruct.__module__, reconstruct.__qualname__ = module.__name__, "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = reconstruct
    (whole, outer), (part, inner) = PUBLISHED[case]["whole"], PUBLISHED[case]["part"]
    roots = {"model" if whole != "Precond" else "unet": _Object(part, inner, source)}
    root = _Object(whole, outer, source)
    for name, tensor in named_tensors(case).items():
        *parents, leaf = name.split(".")
        place = root
        for depth, parent in enumerate(parents):
            children = place.meta["state"]["_modules"] if isinstance(place, _Object) else place._modules
            if parent not in children:
                children[parent] = roots.get(parent) if depth == 0 and parent in roots else (
                    nn.ModuleDict() if parent in ("enc", "dec") else _Object("Layer", {}, source))
            place = children[parent]
        buffer = leaf in ("resample_filter", "freqs", "phases", "u")
        place.meta["state"]["_buffers" if buffer else "_parameters"][leaf] = tensor if buffer else nn.Parameter(tensor)
    with patch.context() as inside:
        inside.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
        inside.setitem(sys.modules, module.__name__, module)
        path.write_bytes(pickle.dumps(dict(ema=root, loss_fn=_Object("EDMLoss", {}, source), augment_pipe=None)))


def score_sde_checkpoint(case: str, path: Path) -> None:
    """Write a checkpoint whose averaged weights are those of the case, and whose others are not."""
    state = named_tensors(case)
    high, low = PUBLISHED[case]["sigmas"]
    state["module.sigmas"] = torch.exp(torch.linspace(math.log(high), math.log(low), 1000, dtype=torch.float64))
    trained = [name for name in state if name != "module.sigmas" and not name.endswith("0.W")
               or name.endswith("_0.W")]
    averaged = [state[name] for name in trained]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(
        optimizer=dict(state={}, param_groups=[]), step=7,
        model={name: torch.zeros_like(tensor) if name in trained else tensor for name, tensor in state.items()},
        ema=dict(decay=0.9999, num_updates=7, shadow_params=averaged)), path)


def assert_equal_but_for_rounding(found: Tensor, expected: Tensor) -> None:
    """Compare to 1e-5 of the largest value (or of 1): float32 sums in another order."""
    error = (found - expected).abs().max() / expected.abs().max().clamp_min(1.0)
    assert error < 1e-5, f"relative error {error:.2e}"
