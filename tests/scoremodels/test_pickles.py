"""Malicious and damaged pickles: nothing in them runs, whatever they are called and however they hide it."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scoremodels.loaders import load
from scoremodels.published.pickles import Inert, Refused, read_pickle
from scoremodels.weights import PICKLES


class Payload:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def plain(payload: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(dict(ema=payload)))


def first_protocol(payload: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(dict(ema=payload), protocol=0))


def archive(payload: object, path: Path) -> None:
    torch.save(dict(model=dict(weight=torch.zeros(2)), ema=payload), path)


def legacy(payload: object, path: Path) -> None:
    torch.save(dict(ema=payload), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("suffix", [*PICKLES, ".safetensors", ""])
@pytest.mark.parametrize("write", [plain, first_protocol, archive, legacy])
def test_a_malicious_pickle_runs_nothing_and_is_refused(
    write: Callable[[object, Path], None], suffix: str, tmp_path: Path
) -> None:
    made, file = tmp_path / "made", tmp_path / f"checkpoint{suffix}"
    write(Payload(made), file)
    with pytest.raises(ValueError, match="pickle that could run any code|neither a safetensors file nor") as caught:
        load(file)
    assert not made.exists()
    if suffix in PICKLES:
        assert "mkdir" in str(caught.value) and "Nothing of it has run" in str(caught.value)


def test_the_payloads_of_these_tests_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "made")))
    assert (tmp_path / "made").is_dir()


def called(module: str, name: str, *arguments: object) -> bytes:
    """A pickle that calls a name with arguments."""
    body = pickle.dumps(arguments, protocol=2)[2:-1]
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + body + b"R."


@pytest.mark.parametrize(("data", "match"), [
    (called("builtins", "eval", "1"), "builtins.eval"),
    (called("builtins", "getattr", "x", "y"), "builtins.getattr"),
    (called("torch", "load", "x"), "torch.load"),
    (called("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__", 1), "__globals__"),
    (called("torch.storage", "_load_from_bytes.__class__", b""), "__class__"),
    (called("scoremodels.published.pickles", "read_pickle", b""), "read_pickle"),
    (called("functools", "partial", 1), "functools.partial"),
    (called("torch._utils", "_rebuild_tensor_v2", "storage", 0, (1,), (1,)), "tensor of a str"),
    (b"\x80\x02cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.", "a state to a function"),
    (b"\x80\x02cnumpy\ndtype\nN}X\x09\x00\x00\x00_functionK\x01s\x86b.", "a state to a function"),
    (b"\x80\x02X\x01\x00\x00\x00aQ.", "outside of it"),
])
def test_a_pickle_reaches_nothing_but_the_inert_names(data: bytes, match: str) -> None:
    pickletools.dis(data, out=io.StringIO())  # it is well formed
    with pytest.raises(Refused, match=match):
        read_pickle(data)


def test_a_payload_in_the_numbers_of_a_tensor_is_refused(tmp_path: Path) -> None:
    inner = io.BytesIO()
    torch.save(Payload(tmp_path / "made"), inner, _use_new_zipfile_serialization=False)
    with pytest.raises(Refused, match="numbers of a tensor"):
        read_pickle(called("torch.storage", "_load_from_bytes", inner.getvalue()))
    assert not (tmp_path / "made").exists()


def test_the_stand_in_of_a_class_is_not_shared() -> None:
    data = b"\x80\x02cdnnlib.util\nEasyDict\nN}X\x0c\x00\x00\x00__setstate__K\x01s\x86b."
    with pytest.raises(ValueError, match="damaged"):
        read_pickle(data)
    assert read_pickle(b"\x80\x02cdnnlib.util\nEasyDict\n)\x81.") == {} and callable(Inert.__setstate__)


def test_plain_data_come_back() -> None:
    data = dict(a=[1, 2.5, None, "x"], b=OrderedDict(c=torch.arange(6.0).reshape(2, 3).T), d=np.float64(0.25),
                e=torch.nn.Parameter(torch.ones(2, dtype=torch.float16)), f={1, 2}, g=np.int32(-3))
    found = read_pickle(pickle.dumps(data))
    assert isinstance(found, dict) and found["a"] == data["a"] and found["d"] == 0.25 and found["f"] == {1, 2}
    assert torch.equal(found["b"]["c"], data["b"]["c"]) and torch.equal(found["e"], data["e"]) and found["g"] == -3
    assert not found["e"].requires_grad


def test_what_is_no_checkpoint_says_what_to_give(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no checkpoint of EDM.*holds weight.*give the folder"):
        load(tmp_path / "x.pt")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="neither a safetensors file nor a checkpoint"):
        load(tmp_path / "notes.txt")


def test_a_damaged_archive_is_called_damaged(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:2000])
    with pytest.raises(ValueError, match="damaged or truncated"):
        load(tmp_path / "x.pt")


def test_a_model_that_is_no_file_takes_no_settings() -> None:
    with pytest.raises(ValueError, match="only the file of a published checkpoint"):
        load("fashion-mnist-edm", settings={"sde": "vp"})
