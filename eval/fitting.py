"""The command `fewstep fit`: learn a plan for a model by gradients through the sampler, and write it down."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eval.arguments import check_folder, choose_labels, load_model, names_in
from eval.console import complaints
from odecore.learn.fit import adam
from odecore.plan import Plan
from samplers.fit_plan import FIT_SEED, VALIDATION_SEED, fit_plan
from samplers.learn import FREE
from samplers.plan_files import read_plan


def fit_command(
    model: Annotated[str, typer.Option("--model", "-m", help="Name or folder of a model; see `fewstep info`.")],
    nfe: Annotated[int, typer.Option(help="Network evaluations of the plan.")] = 5,
    start: Annotated[str, typer.Option(help="Solver to begin with, or the file of a calibrated plan.")]
        = "dpm-solver++-3m",
    grid: Annotated[str | None, typer.Option(help="Grid to begin with; the solver's usual one if left out.")] = None,
    free: Annotated[str, typer.Option(help=f"What to learn, by commas: {', '.join(FREE)}.")] = "times,clock,weights",
    num: Annotated[int, typer.Option(help="Noises to fit to.")] = 64,
    validation: Annotated[int, typer.Option(help="Noises to judge by.")] = 32,
    seed: Annotated[int, typer.Option(help="Seed of the first noise to fit to.")] = FIT_SEED,
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = 200,
    batch: Annotated[int, typer.Option(help="Noises in a step.")] = 16,
    rate: Annotated[float, typer.Option(help="Learning rate of Adam at the start.")] = 0.02,
    label: Annotated[str, typer.Option(help="Class label; `cycle` for i mod classes, `none` for no label.")] = "cycle",
    guidance: Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")] = None,
    cache: Annotated[Path, typer.Option(help="Folder that keeps solutions, so that further fits are cheap.")]
        = Path("~/.cache/fewstep"),
    out: Annotated[Path, typer.Option(help="File of the plan.")] = Path("plan.json"),
    device: Annotated[str, typer.Option(help="Where the network runs, such as cpu or cuda.")] = "auto",
) -> None:
    """Learn times and weights of a plan, and write the best on noises that it was not fitted to."""
    console = Console()
    with complaints():
        network = load_model(model, guidance, device)
        labels = choose_labels(network, label, num, guidance)
        begin: str | Plan = read_plan(Path(start)) if start.endswith(".json") else start
        check_folder(out.parent)
        found = fit_plan(network, nfe=nfe, start=begin, grid=grid, free=names_in("free", free), num=num,
                         validation=validation, seed=seed, validation_seed=max(VALIDATION_SEED, seed + num),
                         condition=labels, steps=steps, batch=batch, optimizer=adam(rate), cache=cache.expanduser(),
                         progress="fit" if console.is_terminal else None)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(found.plan.to_json())
    word = "" if found.improved else " (no plan was better than the start, which is written)"
    console.print(f"RMS to the solution on {validation} other noises: {found.rms[0]:.4f} before, {found.rms[1]:.4f} "
                  f"after{word}; {found.evaluations:,} evaluations, {found.seconds:.0f} s", soft_wrap=True)
    console.print(f"plan: {out}", soft_wrap=True)
