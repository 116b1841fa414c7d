"""The command `fewstep search`: find the times that suit a solver on a model, and write the plan down."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from eval.arguments import choose_labels, load_model, names_in, numbers_in
from eval.console import complaints, progress_bars
from eval.plan_commands import Watch, write_plans
from odecore.plan import Plan
from samplers.search import DynamicProgramming, Method, Refinement, search_grid

METHODS: dict[str, Method] = {"dynamic-programming": DynamicProgramming(), "refinement": Refinement()}
"""Ways to search, by the name that users give."""


def search_command(
    model: Annotated[str, typer.Option("--model", "-m", help="Name or folder of a model; see `fewstep info`.")],
    solver: Annotated[str, typer.Option(help="Solver; see `fewstep info`.")] = "ipndm-3",
    nfe: Annotated[str, typer.Option(help="Network evaluations of the plan; of several plans by commas.")] = "6",
    method: Annotated[str, typer.Option(help="dynamic-programming, or refinement of the best fixed grids.")]
        = "dynamic-programming",
    num: Annotated[int, typer.Option(help="Noises: half of them search, half of them validate.")] = 16,
    grids: Annotated[str | None, typer.Option(help="Fixed grids to compare with, by commas; all if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first noise.")] = 1 << 21,
    label: Annotated[str, typer.Option(help="Class label; `cycle` for i mod classes, `none` for no label.")] = "cycle",
    guidance: Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")] = None,
    out: Annotated[Path, typer.Option(help="File of the plan; -NFE is added to it for several.")] = Path("plan.json"),
    device: Annotated[str, typer.Option(help="Where the network runs, such as cpu or cuda.")] = "auto",
) -> None:
    """Find the times at which a solver ends nearest to the exact solution, and write the plan."""
    console = Console()
    with complaints(), progress_bars(console) as bars:
        if method not in METHODS:
            raise ValueError(f"method={method!r} is unknown: choose one of {', '.join(METHODS)}")
        numbers = numbers_in("nfe", nfe)
        network = load_model(model, guidance, device)
        labels = choose_labels(network, label, num, guidance)

        def find(number: int, watch: Watch) -> Plan:
            return search_grid(network, solver=solver, nfe=number, method=METHODS[method], num=num, seed=seed,
                               condition=labels, progress=watch,
                               grids=None if grids is None else names_in("grids", grids))

        for plan, file in write_plans(numbers, out, bars, find):
            console.print(f"{_summary(plan)}\nplan: {file}", soft_wrap=True)


def _summary(plan: Plan) -> str:
    """What was found, as far as the noises of the validation tell."""
    found = plan.about["search"]
    assert isinstance(found, dict)
    fixed, searched = found["validation"]["fixed"], found["validation"]["searched"]
    end = (f"RMS {searched:.4f} to the solution, {fixed:.4f} on {found['fixed']}" if found["improved"] else
           f"no better grid found than {found['fixed']}, RMS {fixed:.4f} to the solution")
    return f"{plan.about['solver']}, {plan.nfe} NFE: {end}; {found['evaluations']:,} evaluations"
