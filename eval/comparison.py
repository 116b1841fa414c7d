"""Tables and a picture of a comparison of solvers with their peers, from its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.report import COLOURS, MARKERS

Record = dict[str, Any]
"""A row: the model, the NFE, and for the peer and each of ours a name, an error, perhaps a Fréchet distance."""

OURS = ("named", "calibrated", "auto")
"""What is compared with the best peer."""

MEASURED = ("peer", "calibrated", "auto", "solution")
"""Whose Fréchet distances stand side by side."""


def ratio(row: Record, who: str = "calibrated") -> float:
    """Error over that of the best peer."""
    return float(row[f"{who}_rms"] / row["peer_rms"])


def mean_ratio(rows: Sequence[Record], who: str = "calibrated") -> float:
    """Geometric mean of the ratios."""
    return math.exp(sum(math.log(ratio(row, who)) for row in rows) / len(rows))


def markdown(rows: Sequence[Record]) -> str:
    """One table of errors, and one of distances where there are any."""
    lines = ["| model | NFE | best peer | " + " | ".join(f"{who} | ratio" for who in OURS) + " |",
             "|---|---|---|" + "---|---|" * len(OURS)]
    for row in rows:
        cells = [f"{row[who + '_rms']:.4f} {row[who]} | {ratio(row, who):.2f}" for who in OURS]
        lines.append(f"| {row['model']} | {row['nfe']} | {row['peer_rms']:.4f} {row['peer']} | " + " | ".join(cells)
                     + " |")
    means = " | ".join(f"| {mean_ratio(rows, who):.2f}" for who in OURS)
    lines.append(f"| geometric mean | | | {means} |")
    measured = [row for row in rows if "peer_distance" in row]
    if measured:
        lines += ["", "| model | NFE | " + " | ".join(MEASURED) + " |", "|---|---|" + "---|" * len(MEASURED)]
        for row in measured:
            distances = " | ".join(f"{row[who + '_distance']:.2f}" for who in MEASURED)
            lines.append(f"| {row['model']} | {row['nfe']} | {distances} |")
    return "\n".join(lines) + "\n"


def picture(path: Path, rows: Sequence[Record]) -> None:
    """Draw the error against NFE, one panel a model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(4.0 * len(names), 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    labels = {"peer": "best diffusers scheduler", "calibrated": "calibrated", "auto": "auto"}
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        mine = sorted((row for row in rows if row["model"] == name), key=lambda row: row["nfe"])
        nfes = [row["nfe"] for row in mine]
        for (who, label), colour, marker in zip(labels.items(), COLOURS, MARKERS, strict=False):
            axes.plot(nfes, [row[f"{who}_rms"] for row in mine], label=label, color=colour, marker=marker, lw=1.8, ms=5)
        axes.set(xscale="log", yscale="log", xlabel="NFE", title=name)
        axes.set_xticks(nfes, [str(nfe) for nfe in nfes])
        axes.set_xticks([], minor=True)
        axes.grid(which="major", color="0.88")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("RMS distance to the solution")
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path)
