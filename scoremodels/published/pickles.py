"""Reading pickles without running them: an unpickler that knows a few names, all of them inert."""

from __future__ import annotations

import io
import pickle
import types
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Refused(ValueError):
    """A pickle asks for something that is not among the inert names; nothing of it has run."""


@dataclass(frozen=True, slots=True)
class Persistent:
    """An object that NVlabs' ``torch_utils.persistence`` pickled: its source code is there, and is not looked at.

    Args:
        name: of its class.
        nameless: how many arguments without keywords it was made with.
        arguments: keywords that it was made with.
        state: its attributes.
    """

    name: str
    nameless: int
    arguments: Mapping[str, Any]
    state: Mapping[str, Any]


class Inert(dict):  # type: ignore[type-arg]
    """Stands for an object of a class that is not imported: its items, and in ``state`` its attributes.

    What gives itself another state than attributes, as numpy's types do, has it there under the empty name.
    """

    state: Mapping[str, Any] = types.MappingProxyType({})

    def __setstate__(self, state: object) -> None:
        object.__setattr__(self, "state", state if isinstance(state, Mapping) else {"": state})


class _Inert:
    """A function that a pickle may call, which nothing in the pickle can change."""

    __slots__ = ("_function",)
    _function: Callable[..., object]

    def __init__(self, function: Callable[..., object]) -> None:
        object.__setattr__(self, "_function", function)

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: object) -> None:
        raise Refused(f"it sets {name} of a function")

    def __setstate__(self, state: object) -> None:
        raise Refused("it gives a state to a function")


def read_pickle(data: bytes) -> object:
    """Read a plain pickle of containers, numbers, tensors, arrays and NVlabs' persistent objects.

    No class is imported and no function called but a fixed few that only build data.

    Raises:
        Refused: it names anything else; the message says what.
        ValueError: it is damaged.
    """
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except Refused:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"damaged or truncated ({type(error).__name__}: {error})") from error


def tensors(root: object) -> Iterator[tuple[str, Tensor]]:
    """Name the parameters and buffers of a module that was read, as its ``state_dict`` would."""
    state = root.state if isinstance(root, Persistent | Inert) else {}
    for kind in ("_parameters", "_buffers"):
        for name, value in _items(state, kind):
            if isinstance(value, Tensor):
                yield name, value
    for name, child in _items(state, "_modules"):
        if child is not None:
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in tensors(child))


def _items(state: Mapping[str, Any], key: str) -> list[tuple[str, Any]]:
    entries = state.get(key, {})
    return list(entries.items()) if isinstance(entries, Mapping) else []


def _persistent(meta: Mapping[str, Any]) -> Persistent:
    state = meta["state"]
    return Persistent(str(meta["class_name"]), len(state.get("_init_args") or ()),
                      dict(state.get("_init_kwargs") or {}), dict(state))


def _storage(data: bytes) -> object:
    """Read the storage of a tensor, which is a file of torch's inside the pickle, by torch's own restricted reader."""
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refused("the numbers of a tensor in it are a pickle of something else") from error


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    if not isinstance(storage, torch.storage.TypedStorage | torch.UntypedStorage):
        raise Refused(f"it makes a tensor of a {type(storage).__name__}")
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, False, OrderedDict())  # type: ignore[attr-defined]


def _parameter(data: Tensor, *_: object) -> Tensor:
    return data


def _numpy_scalar(dtype: object, data: bytes) -> object:
    return np.frombuffer(data, _checked_dtype(dtype), 1)[0].item()


def _numpy_dtype(code: str, *_: object) -> Inert:
    return Inert(code=code)


def _checked_dtype(dtype: object) -> np.dtype[Any]:
    code = str(dtype.get("code")) if isinstance(dtype, Inert) else ""
    if not isinstance(dtype, Inert) or code[:1] not in ("b", "i", "u", "f"):
        raise Refused(f"it holds a number of type {code or dtype}")
    found = np.dtype(code)
    _, order, *_ = dtype.state.get("", (3, "<"))
    return found.newbyteorder(">" if order == ">" else "<")


def _nothing(*_: object) -> Inert:
    """An array of a training set-up, say, which no network needs."""
    return Inert()


_FUNCTIONS: dict[str, Callable[..., object]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage,
    "torch.device": _nothing,
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
    "numpy.core.multiarray._reconstruct": _nothing,
    "numpy._core.multiarray._reconstruct": _nothing,
    "_codecs.encode": lambda text, *_: str(text).encode("latin1"),
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
}

_CLASSES = ("dnnlib.util.EasyDict", "numpy.ndarray", "torch.nn.modules.container.ModuleDict",
            "torch.nn.modules.container.ModuleList", "torch.nn.modules.container.Sequential",
            "torch.nn.modules.container.ParameterList")
"""Classes of which an empty stand-in is made."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = f"{module}.{name}"
        if known in _FUNCTIONS:
            return _Inert(_FUNCTIONS[known])
        if known in _CLASSES:
            return type(name, (Inert,), {})  # one for each mention, so that none is shared with our own code
        raise Refused(f"it asks for {known}")

    def persistent_load(self, pid: object) -> Any:
        raise Refused("it refers to objects outside of it")
