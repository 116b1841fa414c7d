"""The command `fewstep`: sweep, sample, calibrate, likelihood, convert, info."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from eval.arguments import (
    check_folder,
    choose_extractor,
    choose_labels,
    fitting_batch,
    load_model,
    names_in,
    numbers_in,
    real_distance,
    real_moments,
)
from eval.calibration import calibrate_command
from eval.console import complaints, evaluation_bar, progress_bars, warn
from eval.conversion import convert_command
from eval.features import FeatureExtractor
from eval.fid import Moments
from eval.fitting import fit_command
from eval.grid_search import search_command
from eval.images import grid as image_grid
from eval.images import save_png, to_bytes
from eval.likelihood import likelihood_command
from eval.report import package_version, plot, surroundings, table, write_csv, write_grids, write_json
from eval.sweep import Cell, Measurement, Sampling, measure, plan_cells, solve_reference
from eval.trajectory import fingerprint
from odecore.plan import Registers, Row
from samplers import GRIDS, SOLVERS, AdaptiveSolver, sample
from samplers.plan_files import read_plan
from scoremodels.loaders import available, load, model_folder

app = typer.Typer(name="fewstep", no_args_is_help=True, add_completion=False, rich_markup_mode=None,
                  pretty_exceptions_enable=False, help="Sample diffusion and flow models in few network evaluations.")

DEFAULT_SOLVERS = "ddim,dpm-solver-3,dpm-solver++-2m,dpm-solver++-3m"


def main() -> None:
    """Run the command; wrong input ends with one line and exit code 2."""
    app()


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    if show_version:
        typer.echo(f"fewstep {package_version()}")
        raise typer.Exit


@app.command("sweep")
def sweep_command(
    model: Annotated[str, typer.Option("--model", "-m", help="Name or folder of a model; see `fewstep info`.")],
    solvers: Annotated[str, typer.Option(help="Solvers, separated by commas.")] = DEFAULT_SOLVERS,
    nfe: Annotated[str, typer.Option(help="Network evaluations per sample, separated by commas.")] = "5,8,10,20",
    num: Annotated[int, typer.Option(help="Samples per cell.")] = 1000,
    grid: Annotated[str, typer.Option(help="Time grids, separated by commas; each solver's usual one if left out.")]
        = "",
    guidance: Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")] = None,
    guidance_interval: Annotated[str | None, typer.Option(help="LOW,HIGH: guide where LOW < noise/signal <= HIGH.")]
        = None,
    precision: Annotated[str, typer.Option(help="What the network computes in: float32, bfloat16, float16.")]
        = "float32",
    seed: Annotated[int, typer.Option(help="Seed of the first sample; sample i has seed + i.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("sweep"),
    batch: Annotated[int, typer.Option(help="Samples to compute at once; they do not depend on it.")] = 250,
    features: Annotated[str, typer.Option(help="fashion-mnist-classifier, inception (then it is FID), or none.")]
        = "auto",
    inception: Annotated[Path | None, typer.Option(help="InceptionV3 weight file, in place of a download.")] = None,
    reference: Annotated[Path | None, typer.Option(help="npz file with mu and sigma of the real images' features.")]
        = None,
    compared: Annotated[int, typer.Option(help="Samples to compare with a converged solution; 0 for none.")] = 64,
    reference_nfe: Annotated[int, typer.Option(help="Network evaluations of that solution.")] = 128,
    memory_limit: Annotated[str | None, typer.Option(help="Make batches as small as this asks, such as 2GB.")] = None,
    device: Annotated[str, typer.Option(help="Where the network runs, such as cpu or cuda.")] = "auto",
) -> None:
    """Measure solvers against the number of network evaluations that they spend."""
    console = Console()
    with complaints():
        sampling = Sampling(num, seed, batch, compared, reference_nfe)
        network = load_model(model, guidance, device, interval=guidance_interval, precision=precision)
        cells = plan_cells(network, names_in("solvers", solvers), numbers_in("nfe", nfe),
                           names_in("grid", grid) if grid else (None,))
        extractor = choose_extractor(features, network, inception)
        target, source = real_moments(extractor, reference, network, out, console)
        check_folder(out)
        batch = fitting_batch(network, batch, memory_limit)
        sampling = replace(sampling, batch=batch)
        if extractor is not None and num <= extractor.dimension:
            warn(f"{num} samples for {extractor.dimension} features: the covariance is singular and distances are "
                  "biased upwards; compare only with the same number")
        out.mkdir(parents=True, exist_ok=True)
    about: dict[str, object] = {
        "command": shlex.join(["fewstep", *sys.argv[1:]]), **surroundings(), "device": str(network.device),
        "model": {"name": model, "sha256": fingerprint(network), "prediction": network.prediction,
                  "shape": list(network.shape), "schedule": network.schedule.to_config()},
        "num": num, "seed": seed, "batch": batch, "guidance": guidance,
        "guidance_interval": guidance_interval, "precision": precision,
        "noise": "sample i starts from standard normal noise of torch.Generator().manual_seed(seed + i)",
        "labels": f"sample i has label i mod {network.num_classes}" if network.num_classes else None,
        "metric": None if extractor is None else extractor.metric,
        "features": None if extractor is None else {
            "name": extractor.name, "dimension": extractor.dimension, "sha256": extractor.sha256},
        "reference": source, "times": {f"{c.solver}/{c.grid}/{c.nfe}": c.plan.about["times"] for c in cells if c.plan}}
    measurements: list[Measurement] = []
    with progress_bars(console) as progress:
        solution = None
        if compared:
            many = min(compared, num) * (reference_nfe + reference_nfe // 2)
            with evaluation_bar(progress, f"reference solution, {min(compared, num)} samples", many) as advance:
                solution = solve_reference(network, sampling, on_evaluations=advance)
            assert solution is not None
            about["trajectory"] = {
                **solution.about, "convergence": {str(t): c for t, c in solution.convergence.items()}}
        whole = progress.add_task("sweep", total=len(cells))
        for cell in cells:
            total = None if cell.nfe is None else num * cell.nfe
            with evaluation_bar(progress, _describe(cell), total) as advance:
                measurements.append(measure(network, cell, sampling, extractor=extractor, target=target,
                                            reference=solution, on_evaluations=advance))
            progress.advance(whole)
            if not console.is_terminal:  # where bars cannot be drawn
                console.print(_summary(measurements[-1], extractor), soft_wrap=True, highlight=False)
            # Written after every cell, so that a sweep which is cut short leaves what it has measured.
            write_csv(out / "results.csv", measurements)
            write_json(out / "results.json", about, measurements)
    _report(console, model, guidance, extractor, target, sampling, measurements, solution is not None, out)


@app.command("sample")
def sample_command(
    model: Annotated[str, typer.Option("--model", "-m", help="Name or folder of a model; see `fewstep info`.")],
    solver: Annotated[str, typer.Option(help="Solver.")] = "dpm-solver++-2m",
    nfe: Annotated[int, typer.Option(help="Network evaluations per sample.")] = 10,
    num: Annotated[int, typer.Option(help="Number of images.")] = 16,
    grid: Annotated[str | None, typer.Option(help="Time grid; the solver's usual one if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the first image; image i has seed + i.")] = 0,
    label: Annotated[str, typer.Option(help="Class label; `cycle` for i mod classes, `none` for no label.")] = "cycle",
    guidance: Annotated[float | None, typer.Option(help="Scale of classifier-free guidance.")] = None,
    guidance_interval: Annotated[str | None, typer.Option(help="LOW,HIGH: guide where LOW < noise/signal <= HIGH.")]
        = None,
    precision: Annotated[str, typer.Option(help="What the network computes in: float32, bfloat16, float16.")]
        = "float32",
    out: Annotated[Path, typer.Option(help="Folder of the images, or a .png file for the grid alone.")]
        = Path("samples"),
    batch: Annotated[int, typer.Option(help="Images to compute at once; they do not depend on it.")] = 250,
    plan: Annotated[Path | None, typer.Option(help="File of a plan, in place of solver, NFE and grid.")] = None,
    memory_limit: Annotated[str | None, typer.Option(help="Make batches as small as this asks, such as 2GB.")] = None,
    device: Annotated[str, typer.Option(help="Where the network runs, such as cpu or cuda.")] = "auto",
) -> None:
    """Draw samples and write them as PNG files."""
    console = Console()
    with complaints():
        if num < 1:
            raise ValueError(f"num={num}: give at least 1")
        if batch < 1:
            raise ValueError(f"batch={batch}: give at least 1")
        if not 0 <= seed < 2**62:
            raise ValueError(f"seed={seed}: give a whole number from 0 to 2^62")
        network = load_model(model, guidance, device, interval=guidance_interval, precision=precision)
        if plan is None:
            (cell,) = plan_cells(network, [solver], [nfe], [grid])
        else:
            given = read_plan(plan)
            solver, grid = str(given.about.get("solver", "plan")), str(given.about.get("grid", "custom"))
            cell = Cell(solver, grid, given.nfe, given)
        labels = choose_labels(network, label, num, guidance)
        batch = fitting_batch(network, batch, memory_limit)
        alone = out.suffix.lower() == ".png"
        check_folder(out.parent if alone else out)
        (out.parent if alone else out).mkdir(parents=True, exist_ok=True)
    parts, spent = [], 0
    with progress_bars(console) as progress, evaluation_bar(
            progress, _describe(cell), None if cell.nfe is None else num * cell.nfe) as advance:
        for first in range(0, num, batch):
            count = min(batch, num - first)

            def evaluated(index: int, row: Row, registers: Registers, count: int = count) -> None:
                advance(count)

            result = sample(network, num=count, solver=solver, plan=cell.plan, seed=seed + first, batch=count,
                            condition=None if labels is None else labels[first:first + count],
                            callback=evaluated)
            parts.append(result.samples.cpu())
            spent = max(spent, result.nfe)
    with complaints():
        images = to_bytes(torch.cat(parts), network.value_range)
    zoom = max(1, 56 // images.shape[-1])
    if not alone:
        for index, image in enumerate(images):
            save_png(image, out / f"{index:05d}.png")
    picture = out if alone else out / "grid.png"
    save_png(image_grid(images, max(1, round(num**0.5))), picture, zoom=zoom)
    console.print(f"{num} image{'s' if num > 1 else ''} by {cell.solver} on the {cell.grid} grid, {spent} NFE each: "
                  f"{picture if alone else out}", soft_wrap=True)


app.command("calibrate")(calibrate_command)
app.command("fit")(fit_command)
app.command("search")(search_command)
app.command("likelihood")(likelihood_command)
app.command("convert")(convert_command)


@app.command("info")
def info_command(
    model: Annotated[str | None, typer.Argument(help="Name or folder of a model.")] = None,
) -> None:
    """Say what is known of a model; without one, list models, solvers and grids."""
    console = Console()
    if model is None:
        _list(console)
        return
    with complaints():
        network = load(model)
    schedule = network.schedule
    facts = Table(show_header=False, box=None, pad_edge=False)
    config = {k: f"{len(v)} numbers" if isinstance(v, list) and len(v) > 8 else v for k, v in
              schedule.to_config().items()}
    for name, value in (
        ("model", model), ("shape", " × ".join(map(str, network.shape))), ("prediction", network.prediction),
        ("schedule", json.dumps(config)),
        ("network times", f"{schedule.t_max:g} (noise) … {schedule.t_min:g}, {schedule.t_clean:g} without noise"),
        ("log-SNR", f"{schedule.log_snr(schedule.t_max):.3f} … {schedule.log_snr(schedule.t_min):.3f}"),
        ("classes", network.num_classes or "unconditional"), ("value range", f"{network.value_range}"),
        ("parameters", f"{sum(p.numel() for p in network.parameters()):,}"), ("sha256", fingerprint(network)),
    ):
        facts.add_row(f"[bold]{name}[/bold]", str(value))
    console.print(facts)
    card = _card(model)
    if card is not None:
        text = card.read_text()
        console.print()
        console.print(Markdown(text.split("---", 2)[2] if text.startswith("---") else text))


def _list(console: Console) -> None:
    models = Table(title="Models", title_justify="left", show_header=False, box=None)
    for name in available():
        models.add_row(name)
    console.print(models)
    solvers = Table("solver", "order", "usual grid", "least NFE", "noise", "source", title="Solvers",
                    title_justify="left", box=None)
    for solver in SOLVERS.values():
        if isinstance(solver, AdaptiveSolver):
            solvers.add_row(solver.name, str(solver.order), "adaptive", "–", "", solver.source)
        else:
            solvers.add_row(solver.name, str(solver.order), solver.grid, str(solver.least_nfe),
                            "yes" if solver.stochastic else "", solver.source)
    console.print(solvers)
    console.print(f"[bold]Grids[/bold] {', '.join(GRIDS)}", soft_wrap=True)


def _report(
    console: Console, model: str, guidance: float | None, extractor: FeatureExtractor | None, target: Moments | None,
    sampling: Sampling, measurements: Sequence[Measurement], compared: bool, out: Path,
) -> None:
    """Write plots and pictures, print tables and the names of all files."""
    name = Path(model).name + ("" if guidance is None else f", guidance {guidance:g}")
    written = [out / "results.csv", out / "results.json"]
    if extractor is not None and any(m.distance is not None for m in measurements):
        floor = real_distance(extractor, sampling.num)
        title = f"{extractor.metric}, {sampling.num:,} samples of {name}"
        console.print(f"[bold]{title}[/bold]", soft_wrap=True, highlight=False)
        console.print(table(measurements, "distance"))
        if floor is not None:
            console.print(f"{floor[1]}: {floor[0]:.3g}")
        plot(out / "distance.png", measurements, "distance", label=extractor.metric, floor=floor,
             title=f"{name}: {sampling.num:,} samples per point")
        written.append(out / "distance.png")
    if compared and any(m.trajectory_rms is not None for m in measurements):
        count = min(sampling.compared, sampling.num)
        title = f"RMS distance to the converged solution, {count} samples of {name}"
        console.print(f"[bold]{title}[/bold]", soft_wrap=True, highlight=False)
        console.print(table(measurements, "trajectory_rms"))
        plot(out / "trajectory.png", measurements, "trajectory_rms", title=f"{name}: {count} samples per point",
             label="RMS distance to the converged solution")
        written.append(out / "trajectory.png")
    for m in measurements:
        if m.note:
            warn(f"{m.solver} at {m.nfe} NFE: {m.note}")
    written += write_grids(out / "samples", measurements)
    console.print("wrote")
    for path in written:
        console.print(f"  {path}", soft_wrap=True, highlight=False)


def _card(model: str) -> Path | None:
    """The model card, beside the weights of a folder or of an embedded model."""
    if Path(model).is_file():
        return None
    card = model_folder(model) / "README.md"
    return card if card.is_file() else None


def _summary(m: Measurement, extractor: FeatureExtractor | None) -> str:
    """One line on a finished cell."""
    parts = [f"{m.solver} on {m.grid}, {m.nfe} NFE:", f"{1e3 * m.seconds_per_image:.3g} ms an image"]
    if extractor is not None and m.distance is not None:
        parts.append(f"{extractor.metric} {m.distance:.4g}")
    if m.trajectory_rms is not None:
        parts.append(f"trajectory error {m.trajectory_rms:.3g}")
    return parts[0] + " " + ", ".join(parts[1:])


def _describe(cell: Cell) -> str:
    return f"{cell.solver}, adaptive" if cell.nfe is None else f"{cell.solver}, {cell.nfe} NFE"


if __name__ == "__main__":
    main()
