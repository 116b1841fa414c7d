"""Runs of the scripts that tests look at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from eval.data import DEBIAN_FOLDER

ROOT = Path(__file__).parents[2]


class QuickRun(NamedTuple):
    """What a reproduction saved at its small size.

    Attributes:
        saved: the whole JSON file.
        claims: its figures, by what they are about.
    """

    saved: dict[str, Any]
    claims: dict[str, dict[str, Any]]

    @property
    def ours(self) -> dict[str, Any]:
        """Our figures alone."""
        return {what: claim["ours"] for what, claim in self.claims.items()}

    def find(self, *words: str) -> list[dict[str, Any]]:
        """The claims whose names hold all the words, one at least."""
        found = [claim for what, claim in self.claims.items() if all(word in what for word in words)]
        assert found, f"no claim with {words}"
        return found


@pytest.fixture(scope="session")
def run_script() -> Callable[..., str]:
    """``(path, *arguments) -> what it printed``, of a script that has to succeed."""
    def run(script: str, *arguments: object) -> str:
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def quick_run(run_script: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], QuickRun]:
    """``name -> QuickRun`` of ``scripts/reproduce/name.py``, run once in a session; its picture is there and small."""
    runs: dict[str, QuickRun] = {}

    def run(name: str) -> QuickRun:
        if name not in runs:
            out = tmp_path_factory.mktemp(name) / "out.json"
            picture = out.with_suffix(".png")
            run_script(f"scripts/reproduce/{name}.py", "--quick", "--out", out, "--figure", picture)
            assert 1000 < picture.stat().st_size < 160_000
            saved = json.loads(out.read_text())
            runs[name] = QuickRun(saved, {claim["what"]: claim for claim in saved.get("claims", [])})
        return runs[name]

    return run


@pytest.fixture
def fashion_mnist_installed() -> None:
    """Skip where the images are not on this machine."""
    if not (DEBIAN_FOLDER.exists() or "FASHION_MNIST" in os.environ):
        pytest.skip("Fashion-MNIST is not installed")
