"""The guides in docs/: their examples run, and the files and folders that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = [(path, code) for path in sorted((ROOT / "docs").rglob("*.md"))
            for code in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)]
GUIDE = (ROOT / "docs" / "odecore.md").read_text(encoding="utf-8")
FOLDERS = re.findall(r"^\| `(odecore/\w*/?)` \|", GUIDE, re.MULTILINE)


@pytest.mark.parametrize(("path", "code"), EXAMPLES, ids=[f"{p.stem}-{i}" for i, (p, _) in enumerate(EXAMPLES)])
def test_an_example_runs(path: Path, code: str) -> None:
    exec(compile(code, str(path), "exec"), {})  # its assertions are the test


def test_every_folder_of_odecore_is_in_its_guide() -> None:
    folders = {f"odecore/{path.name}/" for path in (ROOT / "odecore").iterdir() if (path / "__init__.py").exists()}
    assert set(FOLDERS) == folders - {"odecore/schemes/"} | {"odecore/"}
