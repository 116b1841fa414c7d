"""The command `fewstep calibrate`: find the plan that suits a model, and write it down."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from eval.arguments import choose_labels, load_model, names_in, numbers_in
from eval.console import complaints, progress_bars
from eval.plan_commands import Watch, write_plans
from odecore.plan import Plan
from samplers.calibrate import calibrate


def calibrate_command(
    model: Annotated[str, typer.Option("--model", "-m", help="Name or folder of a model; see `fewstep info`.")],
    nfe: Annotated[str, typer.Option(help="Network evaluations of the plan; of several plans by commas.")] = "8",
    num: Annotated[int, typer.Option(help="Noises to try the candidates on.")] = 32,
    solvers: Annotated[str | None, typer.Option(help="Solvers to try, by commas; all if left out.")] = None,
    grids: Annotated[str | None, typer.Option(help="Grids to try, by commas; all if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first noise.")] = 1 << 20,
    label: Annotated[str, typer.Option(help="Class label; `cycle` for i mod classes, `none` for no label.")] = "cycle",
    guidance: Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")] = None,
    rounds: Annotated[int, typer.Option(help="How often to move the times of the best; 0 for none.")] = 2,
    cache: Annotated[Path, typer.Option(help="Folder that keeps solutions, so that further NFE are cheap.")]
        = Path("~/.cache/fewstep"),
    out: Annotated[Path, typer.Option(help="File of the plan; -NFE is added to it for several.")] = Path("plan.json"),
    device: Annotated[str, typer.Option(help="Where the network runs, such as cpu or cuda.")] = "auto",
) -> None:
    """Try every solver on every grid, and write the plan that ends nearest to the exact solution."""
    console = Console()
    with complaints(), progress_bars(console) as bars:
        numbers = numbers_in("nfe", nfe)
        network = load_model(model, guidance, device)
        labels = choose_labels(network, label, num, guidance)

        def find(number: int, watch: Watch) -> Plan:
            return calibrate(network, nfe=number, num=num, seed=seed, condition=labels, progress=watch, rounds=rounds,
                             cache=cache.expanduser(),
                             solvers=None if solvers is None else names_in("solvers", solvers),
                             grids=None if grids is None else names_in("grids", grids))

        for plan, file in write_plans(numbers, out, bars, find):
            _print(console, plan)
            console.print(f"plan: {file}", soft_wrap=True)


def _print(console: Console, plan: Plan) -> None:
    found = plan.about["calibration"]
    assert isinstance(found, dict)
    table = Table("solver", "grid", "RMS to the solution", box=None,
                  title=f"{plan.nfe} NFE, {found['num']} noises, {found['candidates']} candidates, "
                        f"{found['evaluations']:,} evaluations", title_justify="left")
    for row in found["table"][:10]:
        table.add_row(row["solver"], row["grid"], f"{row['rms']:.4f}")
    console.print(table)
    console.print(f"{plan.about['solver']} on {plan.about['grid']}: {found['rms']:.4f}", soft_wrap=True)
