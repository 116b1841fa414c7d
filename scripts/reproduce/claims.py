"""What the reproduction scripts share: a figure beside its anchor, printed and saved with what made it."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eval.report import surroundings

STARTED = time.perf_counter()


@dataclass(frozen=True, slots=True)
class Claim:
    """One figure of ours beside that of a source.

    Args:
        what: the quantity, with its unit and on what it was measured.
        ours: our figure.
        anchor: the source's, a number or words; None where there is none.
        origin: where the anchor comes from: abstract, authors' code, computed independently, a peer in this run.
        goal: largest figure of ours that counts as reached (the smallest, where `more` is set); None for no goal.
        more: whether larger is better.
        error: standard error of ours.
    """

    what: str
    ours: float
    anchor: float | str | None = None
    origin: str = ""
    goal: float | None = None
    more: bool = False
    error: float | None = None

    @property
    def reached(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.goal is None:
            return None
        return math.isfinite(self.ours) and (self.ours >= self.goal if self.more else self.ours <= self.goal)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every reproduction takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="the same at a small size, in seconds: no figure to quote")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, help="JSON file to write")
    made.add_argument("--figure", type=Path, help="picture to draw")
    return made


def print_claims(title: str, claims: Sequence[Claim]) -> None:
    """Print a table of figures beside anchors."""
    table = Table(title=title, title_justify="left")
    for column in ("figure", "ours", "anchor", "anchor from", "goal"):
        table.add_column(column, justify="right" if column in ("ours", "anchor") else "left", overflow="fold")
    for claim in claims:
        goal = "" if claim.goal is None else (
            f"{'≥' if claim.more else '≤'} {claim.goal:.3g}: {'reached' if claim.reached else 'missed'}")
        error = "" if claim.error is None else f" ± {claim.error:.1g}"
        anchor = "" if claim.anchor is None else (
            claim.anchor if isinstance(claim.anchor, str) else f"{claim.anchor:.3g}")
        table.add_row(claim.what, f"{claim.ours:.3g}{error}", anchor, claim.origin, goal)
    Console(width=140, soft_wrap=False).print(table)


def write(arguments: argparse.Namespace, claims: Sequence[Claim], **more: Any) -> None:
    """Say how long the run took and on what, and save all of it where `--out` asks for it."""
    around = surroundings()
    seconds = time.perf_counter() - STARTED
    print(f"{seconds:.0f} s{', quick' if arguments.quick else ''}; seed {arguments.seed}; commit {around['commit']}; "
          f"{around['processor']}, {around['threads']} threads, torch {around['torch']}")
    if arguments.out is not None:
        whole = {**around, "quick": arguments.quick, "seed": arguments.seed, "seconds": seconds,
                 "claims": [{**asdict(claim), "reached": claim.reached} for claim in claims], **more}
        arguments.out.write_text(json.dumps(finite(whole), indent=1, allow_nan=False) + "\n")
        print(f"wrote {arguments.out}")


def finite(value: Any) -> Any:
    """Make a value fit for JSON, which knows no infinity and no NaN: None stands for them."""
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
