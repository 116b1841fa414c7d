"""What the commands share that find plans: a bar for each, and the files that are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.progress import Progress, TaskID

from eval.arguments import check_folder
from odecore.plan import Plan

Watch = Callable[[str, int, int], None]
"""``(what is being done, how much of it, of how much)``."""


def write_plans(
    numbers: Sequence[int], out: Path, bars: Progress, find: Callable[[int, Watch], Plan]
) -> Iterator[tuple[Plan, Path]]:
    """Find a plan for each number of evaluations and write it as soon as it is there.

    Args:
        numbers: of evaluations.
        out: file of the plan; the number is added to its name where there are several.
        bars: where progress is shown.
        find: ``(nfe, watch) -> plan``.

    Returns:
        Each plan with its file.

    Raises:
        ValueError: the folder cannot be written to; before anything is found.
    """
    check_folder(out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        task = bars.add_task(f"{number} NFE, solution")

        def watch(name: str, done: int, total: int, number: int = number, task: TaskID = task) -> None:
            bars.update(task, description=f"{number} NFE, {name}", completed=done, total=total)

        plan = find(number, watch)
        bars.remove_task(task)
        file = out if len(numbers) == 1 else out.with_stem(f"{out.stem}-{number}")
        file.write_text(plan.to_json())
        yield plan, file
