"""Networks from and to JSON data, so that a model folder holds no code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from scoremodels.networks.adm_unet import ADMUNet
from scoremodels.networks.diffusers_unet import DiffusersUNet
from scoremodels.networks.dit import DiT
from scoremodels.networks.edm2_unet import EDM2UNet
from scoremodels.networks.patch_unet import PatchUNet
from scoremodels.networks.preconditioning import (
    EDMInput,
    EDMPreconditioned,
    FlowTime,
    ReversedFlow,
    ScaledTime,
    VEInput,
)
from scoremodels.networks.song_unet import SongUNet
from scoremodels.networks.spectral import SpectralDenoiser

_PLAIN: dict[str, type[nn.Module]] = {
    "patch-unet": PatchUNet, "spectral-denoiser": SpectralDenoiser, "song-unet": SongUNet, "adm-unet": ADMUNet,
    "edm2-unet": EDM2UNet, "dit": DiT}
"""Networks that are described by what they were built from, their ``config``."""

_WRAPPERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "edm-preconditioned": (EDMPreconditioned, ("sigma_data",)), "edm-input": (EDMInput, ("sigma_data",)),
    "flow-time": (FlowTime, ()), "scaled-time": (ScaledTime, ("scale",)), "ve-input": (VEInput, ()),
    "reversed-flow": (ReversedFlow, ())}
"""Networks round another, and their parameters besides it."""

NETWORKS = (*_PLAIN, "diffusers-unet", *_WRAPPERS)
"""Kinds of network that :func:`build_network` knows."""


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Build a network with fresh weights from what :func:`describe_network` returned.

    Raises:
        ValueError: an unknown kind, or parameters that do not fit it.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"network={config!r}: give an object with a kind and its parameters")
    parameters = dict(config)
    kind = parameters.pop("kind", None)
    try:
        if kind in _PLAIN:
            return _PLAIN[kind](**parameters)
        if kind in _WRAPPERS:
            return _WRAPPERS[kind][0](build_network(parameters.pop("body")), **parameters)
        if kind == "diffusers-unet":
            return DiffusersUNet(_diffusers_unet(parameters))
    except (KeyError, TypeError, AttributeError, RuntimeError, NotImplementedError, ZeroDivisionError) as error:
        raise ValueError(f"network of kind {kind!r} cannot be built from {parameters}: {error}") from error
    raise ValueError(f"kind={kind!r} of a network is unknown: choose one of {', '.join(NETWORKS)}")


def describe_network(network: nn.Module) -> dict[str, Any]:
    """Describe a network as JSON data.

    Raises:
        ValueError: a network of a kind that is not among ``NETWORKS``.
    """
    if isinstance(network, DiffusersUNet):
        return {"kind": "diffusers-unet", **network.config}
    for kind, plain in _PLAIN.items():
        if type(network) is plain:
            return {"kind": kind, **network.config}  # type: ignore[dict-item]
    for kind, (wrapper, names) in _WRAPPERS.items():
        if type(network) is wrapper:
            parameters = {name: getattr(network, name) for name in names}
            return {"kind": kind, **parameters, "body": describe_network(network.body)}  # type: ignore[arg-type]
    raise ValueError(f"network is a {type(network).__name__}, which a folder cannot describe: only "
                     f"{', '.join(NETWORKS)} can be saved")


def _diffusers_unet(parameters: Mapping[str, Any]) -> nn.Module:
    from diffusers import UNet2DModel  # takes seconds, and only these models need it

    try:
        return UNet2DModel.from_config(dict(parameters))
    except ValueError as error:
        raise ValueError(f"network of kind 'diffusers-unet' cannot be built from its config: {error}") from error
