"""What a sweep leaves behind: CSV, JSON, plots, sample grids and a table."""

from __future__ import annotations

import csv
import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from eval.images import grid, save_png
from eval.sweep import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
"""Okabe and Ito's colours, which stay apart for the colour-blind, darkened where white ground asks for it."""
MARKERS = "osD^vPX*"
COLUMNS = ("solver", "grid", "nfe", "distance", "trajectory_rms", "trajectory_median", "seconds_per_image", "note")


def package_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("fewstep")
    except PackageNotFoundError:
        return "unknown (not installed)"


def surroundings() -> dict[str, object]:
    """Versions, hardware and commit: what may change a result besides the arguments."""
    import numpy

    return {
        "fewstep": package_version(), "commit": _commit(), "python": platform.python_version(),
        "torch": torch.__version__, "numpy": numpy.__version__, "platform": platform.platform(),
        "processor": _processor(), "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "date": datetime.now(UTC).isoformat(timespec="seconds")}


def write_csv(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write one line a cell; what was not measured stays empty."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([_blank(getattr(m, column)) for column in COLUMNS] for m in measurements)


def write_json(path: Path, about: Mapping[str, object], measurements: Sequence[Measurement]) -> None:
    """Write all that is needed to repeat the sweep, and its results."""
    cells = [{column: getattr(m, column) for column in COLUMNS} for m in measurements]
    whole = {"format": "fewstep-sweep-1", **about, "cells": cells}
    path.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n")


def write_grids(
    folder: Path, measurements: Sequence[Measurement], *, columns: int = 10, shown: int = 100
) -> list[Path]:
    """Write the first samples of each cell as one picture; a place in it belongs to a seed, whatever the solver."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for m in measurements:
        name = m.solver if m.grid == _usual(m, measurements) else f"{m.solver}-{m.grid}"
        path = folder / f"{name}-nfe{m.nfe:03d}.png"
        images = m.images[:shown]
        save_png(grid(images, columns), path, zoom=max(1, 56 // images.shape[-1]))
        paths.append(path)
    return paths


def plot(
    path: Path, measurements: Sequence[Measurement], quantity: str, *, label: str, title: str,
    floor: tuple[float, str] | None = None,
) -> None:
    """Plot one quantity against NFE, a line a solver, both axes logarithmic.

    Args:
        path: PNG file to write.
        measurements: the cells.
        quantity: "distance", "trajectory_rms" or "trajectory_median".
        label: what stands beside the vertical axis.
        title: what stands above.
        floor: a level to draw dotted, and its name.

    Raises:
        ValueError: nothing of that quantity was measured.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for m in measurements:
        value = getattr(m, quantity)
        if value is not None and value > 0:
            lines.setdefault((m.solver, m.grid), []).append((m.nfe, value))
    if not lines:
        raise ValueError(f"quantity={quantity!r} was not measured in any cell: there is nothing to plot")
    figure = Figure(figsize=(7.2, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index, ((solver, grid_name), points) in enumerate(lines.items()):
        points.sort()
        name = _line_name(solver, grid_name, list(lines))
        axes.plot(*zip(*points, strict=True), label=name, color=COLOURS[index % len(COLOURS)], lw=1.8,
                  marker=MARKERS[index % len(MARKERS)], ms=5.5, ls="-" if index < len(COLOURS) else "--")
    if floor is not None:
        axes.axhline(floor[0], color="0.45", ls=":", lw=1.4, label=floor[1])
    axes.set(xscale="log", yscale="log", xlabel="NFE (network evaluations per sample)", ylabel=label)
    axes.set_title(title, fontsize=10)
    _tick(axes, sorted({nfe for points in lines.values() for nfe, _ in points}))
    axes.grid(which="major", color="0.88")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def table(measurements: Sequence[Measurement], quantity: str) -> Table:
    """Lay one quantity out, a row a solver and a column a number of evaluations; the best of each is bold."""
    from rich.table import Table

    nfes = sorted({m.nfe for m in measurements})
    rows: dict[tuple[str, str], dict[int, float | None]] = {}
    for m in measurements:
        rows.setdefault((m.solver, m.grid), {})[m.nfe] = getattr(m, quantity)
    best = {n: min((r[n] for r in rows.values() if r.get(n) is not None), default=None) for n in nfes}  # type: ignore[type-var]
    out = Table()
    out.add_column("solver \\ NFE")
    for nfe in nfes:
        out.add_column(str(nfe), justify="right")
    for (solver, grid_name), values in rows.items():
        cells = []
        for nfe in nfes:
            value = values.get(nfe)
            text = "–" if value is None else _short(value)
            cells.append(f"[bold]{text}[/bold]" if value is not None and value == best[nfe] else text)
        out.add_row(_line_name(solver, grid_name, list(rows)), *cells)
    return out


def _short(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    if value == 0 or not 1e-4 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _line_name(solver: str, grid_name: str, lines: Sequence[tuple[str, str]]) -> str:
    """Name the grid only where a solver was run on several."""
    return f"{solver} ({grid_name})" if sum(s == solver for s, _ in lines) > 1 else solver


def _usual(m: Measurement, measurements: Sequence[Measurement]) -> str:
    """The grid that a file name need not tell: the only one that the solver was run on."""
    grids = {other.grid for other in measurements if other.solver == m.solver}
    return m.grid if len(grids) == 1 else ""


def _tick(axes: Axes, nfes: Sequence[int]) -> None:
    """Label the horizontal axis with the NFE that were run, and the vertical one with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xticks(nfes, [str(n) for n in nfes])
    axes.set_xticks([], minor=True)
    low, high = axes.get_ylim()
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(plain)
    if high / low < 30:  # too few decades to read anything off their powers alone
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _blank(value: object) -> object:
    return "" if value is None else value


def _processor() -> str:
    """Model name of the processor where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Commit of the source tree that this file is tracked in, with "+" if it has uncommitted changes."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True,
                              timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
