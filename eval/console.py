"""What the command says on the console: bars, warnings, one line for wrong input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """Show bars with counts and times while the block runs, and remove them afterwards."""
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                  TimeRemainingColumn(), console=console, transient=True) as progress:
        yield progress


@contextmanager
def evaluation_bar(progress: Progress, description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar of network evaluations while the block runs."""
    task = progress.add_task(description, total=total)
    try:
        yield lambda evaluations: progress.advance(task, evaluations)
    finally:
        progress.remove_task(task)


@contextmanager
def complaints() -> Iterator[None]:
    """Turn wrong input into one line on standard error and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        fail(" ".join(str(error).split()))


def fail(message: str) -> NoReturn:
    """Say one line on standard error and end with exit code 2."""
    typer.echo(f"fewstep: {message}", err=True)
    raise typer.Exit(2)


def warn(message: str) -> None:
    """Say one line on standard error and go on."""
    typer.echo(f"warning: {message}", err=True)
