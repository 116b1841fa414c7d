"""How the house stands: who imports whom, how long files are, what is documented."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "odecore": set(),
    "scoremodels": {"odecore"},
    "samplers": {"odecore", "scoremodels"},
    "eval": {"odecore", "scoremodels", "samplers"},
}
"""Which of our packages each of them may import, besides itself."""

LONGEST = 350
"""Lines that a file may have."""

LONGER_FOR_A_REASON: dict[str, str] = {}
"""Files that may be longer, each with the one idea that it would be wrong to cut in two."""

HEAVY = {"diffusers", "matplotlib", "torchmetrics", "torchvision", "torch_fidelity", "transformers"}
"""What importing a sampler must not load: seconds of start-up that nobody who samples asked for."""

DISTRIBUTIONS = {"PIL": "pillow", "torch_fidelity": "torch-fidelity"}
"""Distributions that are called otherwise than the module they bring."""

MODULES = sorted(path.relative_to(ROOT) for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted(path.relative_to(ROOT) for path in (ROOT / "scripts").rglob("*.py"))


def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imported(path: Path, tree: ast.AST) -> Iterator[str]:
    """Full names of the modules that a file imports anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.parts[: len(path.parts) - node.level] if node.level else ()
            yield ".".join((*package, *filter(None, [node.module])))


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_go_one_way(path: Path) -> None:
    package = path.parts[0]
    ours = {name.split(".")[0] for name in imported(path, parsed(path))} & MAY_IMPORT.keys()
    assert ours <= MAY_IMPORT[package] | {package}


def test_the_root_of_odecore_never_imports_its_learned_dynamics() -> None:
    outside = [path for path in MODULES if path.parts[0] == "odecore" and path.parts[1] != "learn"]
    assert not [path for path in outside if any(within(name, "odecore.learn") for name in imported(path, parsed(path)))]


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=str)
def test_eval_is_never_imported_as_a_whole(path: Path) -> None:
    whole = [node for node in ast.walk(parsed(path))
             if isinstance(node, ast.Import) and any(alias.name == "eval" for alias in node.names)]
    assert not whole, "`import eval` hides Python's own eval: write `from eval.x import y`"


@pytest.mark.parametrize("package", ["odecore", "scoremodels", "samplers", "eval"])
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY & set(run.stdout.split()) == set()


def test_importing_odecore_loads_no_other_package_of_ours() -> None:
    code = "import sys, odecore, odecore.schemes; print(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"scoremodels", "samplers", "eval"} & set(run.stdout.split()) == set()


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=str)
def test_a_file_is_short_or_has_a_reason(path: Path) -> None:
    lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST or str(path) in LONGER_FOR_A_REASON


def test_no_file_keeps_a_reason_that_it_does_not_need() -> None:
    lines = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in LONGER_FOR_A_REASON}
    assert all(count > LONGEST for count in lines.values())


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "misc", "helpers", "common"}
    assert not [path for path in MODULES + SCRIPTS if path.stem in drawers]


def undocumented(tree: ast.Module | ast.ClassDef) -> Iterator[str]:
    """Public classes and functions without a docstring, methods among them.

    ``forward`` is described by its network's class; overloads by the implementation.
    """
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        decorators = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
        if node.name.startswith("_") or node.name == "forward" or decorators & {"overload", "override"}:
            continue
        if not ast.get_docstring(node):
            yield node.name
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}.{name}" for name in undocumented(node))


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_public_name_has_a_docstring(path: Path) -> None:
    assert list(undocumented(parsed(path))) == []


@pytest.mark.parametrize("path", [path for path in MODULES + SCRIPTS if path.name != "__init__.py"], ids=str)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(parsed(path))


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_module_touches_the_global_seed(path: Path) -> None:
    calls = {ast.unparse(node.func) for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)}
    assert not calls & {"torch.manual_seed", "torch.seed", "np.random.seed", "numpy.random.seed", "random.seed"}


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", requirement)[0].lower().replace("_", "-") for requirement in requirements}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_foreign_import_is_declared(path: Path) -> None:
    declared = names_of(project()["dependencies"])
    if path.parts[0] == "eval":
        declared |= names_of(project()["optional-dependencies"]["fid"])
    foreign = {name.split(".")[0] for name in imported(path, parsed(path))}
    foreign -= set(sys.stdlib_module_names) | MAY_IMPORT.keys()
    assert {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in foreign} <= declared


def test_every_folder_with_modules_is_listed_as_a_package() -> None:
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(configuration["tool"]["setuptools"]["packages"])
    assert {".".join(path.parent.parts) for path in MODULES} == listed
