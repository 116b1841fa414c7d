"""Networks from and to JSON data, so that a model folder holds no code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from scoremodels.networks.diffusers_unet import DiffusersUNet
from scoremodels.networks.patch_unet import PatchUNet
from scoremodels.networks.preconditioning import EDMInput, EDMPreconditioned, FlowTime
from scoremodels.networks.spectral import SpectralDenoiser

NETWORKS = ("patch-unet", "diffusers-unet", "spectral-denoiser", "edm-preconditioned", "edm-input", "flow-time")
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
        match kind:
            case "patch-unet":
                return PatchUNet(**parameters)
            case "diffusers-unet":
                return DiffusersUNet(_diffusers_unet(parameters))
            case "spectral-denoiser":
                return SpectralDenoiser(**parameters)
            case "edm-preconditioned":
                return EDMPreconditioned(build_network(parameters.pop("body")), **parameters)
            case "edm-input":
                return EDMInput(build_network(parameters.pop("body")), **parameters)
            case "flow-time":
                return FlowTime(build_network(parameters.pop("body")), **parameters)
    except (KeyError, TypeError, AttributeError, RuntimeError, NotImplementedError, ZeroDivisionError) as error:
        raise ValueError(f"network of kind {kind!r} cannot be built from {parameters}: {error}") from error
    raise ValueError(f"kind={kind!r} of a network is unknown: choose one of {', '.join(NETWORKS)}")


def describe_network(network: nn.Module) -> dict[str, Any]:
    """Describe a network as JSON data.

    Raises:
        ValueError: a network of a kind that is not among ``NETWORKS``.
    """
    match network:
        case PatchUNet():
            return {"kind": "patch-unet", **network.config}
        case DiffusersUNet():
            return {"kind": "diffusers-unet", **network.config}
        case SpectralDenoiser():
            return {"kind": "spectral-denoiser", **network.config}
        case EDMPreconditioned() | EDMInput():
            kind = "edm-preconditioned" if isinstance(network, EDMPreconditioned) else "edm-input"
            return {"kind": kind, "sigma_data": network.sigma_data, "body": describe_network(network.body)}
        case FlowTime():
            return {"kind": "flow-time", "body": describe_network(network.body)}
    raise ValueError(f"network is a {type(network).__name__}, which a folder cannot describe: only "
                     f"{', '.join(NETWORKS)} can be saved")


def _diffusers_unet(parameters: Mapping[str, Any]) -> nn.Module:
    from diffusers import UNet2DModel  # takes seconds, and only these models need it

    try:
        return UNet2DModel.from_config(dict(parameters))
    except ValueError as error:
        raise ValueError(f"network of kind 'diffusers-unet' cannot be built from its config: {error}") from error
