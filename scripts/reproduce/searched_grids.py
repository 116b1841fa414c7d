"""Search grids for the embedded models: `python scripts/reproduce/searched_grids.py`.

For each model and number of evaluations, one solver on every fixed grid that calibration knows, and on the grid that
dynamic programming finds from eight noises and validates on eight others. Both are then measured on noises that
neither has seen: RMS distance to the solution of the probability-flow ODE, and the Fréchet distance of features from
the 60,000 training images. "Best fixed" is the best on the fresh noises themselves, which the search could not know.
Chen et al. 2024 (GITS, arXiv:2405.11326) lower iPNDM's FID on CIFAR-10 from 13.59 to 8.38 at 5 evaluations.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from claims import Claim, parser, print_claims, write
from torch import Tensor

from eval.features import fashion_mnist_features, fashion_mnist_reference
from eval.fid import Statistics, frechet_distance
from eval.images import from_bytes, to_bytes
from eval.sweep import cycled_labels
from odecore.plan import Plan
from samplers import sample
from samplers.candidates import candidates
from samplers.converged import converged
from samplers.halving import Entrant, Trial, ranked
from samplers.lockstep import start_plan
from samplers.search import DynamicProgramming, search_grid
from scoremodels.loaders import load
from scoremodels.model import ScoreModel

SOLVERS = {"fashion-mnist-ddpm": "ipndm-3", "fashion-mnist-edm": "ipndm-3", "fashion-mnist-flow": "ipndm-2"}
ANCHOR = {5: (8.38 / 13.59, "GITS, CIFAR-10, FID"), 6: (4.88 / 7.05, "GITS, CIFAR-10, FID")}
FRESH, GOAL = 1 << 22, 0.75


class Cell(NamedTuple):
    """One solver on the best fixed and on the searched grid.

    Attributes:
        model: its name.
        nfe: evaluations.
        grid: name of the best fixed grid.
        fixed: RMS distance on it, on fresh noises.
        searched: on the searched grid.
        distances: Fréchet distances on both; None where they were not measured.
        evaluations: of the search, all noises together.
        seconds: of the search.
        plan: what was found.
    """

    model: str
    nfe: int
    grid: str
    fixed: float
    searched: float
    distances: tuple[float, float] | None
    evaluations: int
    seconds: float
    plan: Plan


def run_cell(name: str, model: ScoreModel, nfe: int, quick: bool, seed: int, images: int) -> Cell:
    """Search once, and measure on fresh noises."""
    solver, num, fresh = SOLVERS[name], 4 if quick else 16, 4 if quick else 32
    method = DynamicProgramming(steps=12, grids=1, rounds=1) if quick else DynamicProgramming()
    grids = ["karras", "log-snr", "time"] if quick else None
    began = time.perf_counter()
    plan = search_grid(model, solver=solver, nfe=nfe, num=num, method=method, grids=grids,
                       seed=(1 << 21) + 1000 * seed, condition=cycled_labels(model, num))
    seconds = time.perf_counter() - began
    labels = cycled_labels(model, fresh)
    trial = Trial(model, FRESH, converged(model, fresh, FRESH, labels).samples, labels)
    plans = {c.grid: c.plan for c in candidates(model, nfe, [solver], grids)}
    met = [Entrant((grid,), start_plan(model, one)) for grid, one in (*plans.items(), ("", plan))]
    trial.run(met, fresh, "")
    best = ranked(met[:-1])[0]
    distances = (distance(model, plans[best.name[0]], images), distance(model, plan, images)) if images else None
    about = plan.about["search"]
    assert isinstance(about, dict)
    return Cell(name, nfe, best.name[0], best.rms, met[-1].rms, distances, about["evaluations"], seconds, plan)


def distance(model: ScoreModel, plan: Plan, images: int) -> float:
    """Fréchet distance of so many samples from the training images."""
    drawn = sample(model, plan=plan, num=images, seed=0, condition=cycled_labels(model, images)).samples
    shown: Tensor = from_bytes(to_bytes(drawn, model.value_range))
    features = torch.cat([fashion_mnist_features()(part) for part in shown.split(256)])
    return frechet_distance(Statistics.of(features), fashion_mnist_reference())


def claims_of(cells: Sequence[Cell]) -> list[Claim]:
    """Ratios of errors, searched over best fixed."""
    made = []
    for cell in cells:
        ratio, origin = ANCHOR.get(cell.nfe, (None, ""))
        made.append(Claim(f"{cell.model}, {SOLVERS[cell.model]}, {cell.nfe} NFE: RMS {cell.searched:.4f}, over "
                          f"{cell.fixed:.4f} on {cell.grid}", cell.searched / cell.fixed, ratio, origin,
                          GOAL if cell.nfe in (5, 6) else None))
        if cell.distances is not None:
            before, after = cell.distances
            made.append(Claim(f"  Fréchet distance {after:.2f} over {before:.2f}", after / before))
    return made


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Draw errors on both grids against evaluations, and below them the searched times."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(cell.model for cell in cells))
    figure, axes = plt.subplots(2, len(names), figsize=(3.6 * len(names), 5.6), squeeze=False, layout="constrained")
    for (above, below), name in zip(axes.T, names, strict=True):
        own, schedule = [cell for cell in cells if cell.model == name], load(name).schedule
        nfes = [cell.nfe for cell in own]
        above.plot(nfes, [cell.fixed for cell in own], "o-", color="tab:gray", label="best fixed grid")
        above.plot(nfes, [cell.searched for cell in own], "o-", color="tab:blue", label="searched grid")
        above.set(title=f"{name}\n{SOLVERS[name]}", yscale="log", xticks=nfes, xlabel="NFE")
        for cell in own:
            for grid, plan, shift, colour in (
                    (cell.grid, None, 0.12, "tab:gray"), ("searched", cell.plan, -0.12, "tab:blue")):
                shown = plan or candidates(load(name), cell.nfe, [SOLVERS[name]], [grid])[0].plan
                ratios = schedule.ratio(torch.tensor(shown.about["times"][:-1]).double().numpy())  # type: ignore[index]
                below.plot(ratios.clip(max=200.0), [cell.nfe + shift] * len(ratios), ".", color=colour, markersize=5)
        below.set(xscale="log", xlabel="σ/α of the evaluations", yticks=nfes)
        below.invert_xaxis()
    axes[0, 0].set_ylabel("RMS distance to the solution")
    axes[1, 0].set_ylabel("NFE")
    axes[0, 0].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=90)


def main() -> None:
    """Run."""
    made = parser(__doc__)
    made.add_argument("--models", nargs="+", default=list(SOLVERS), choices=list(SOLVERS))
    made.add_argument("--nfe", nargs="+", type=int, default=None, help="numbers of evaluations; 5 6 if left out")
    made.add_argument("--images", type=int, default=0, help="images of the Fréchet distance, 512 or more; 0 for none")
    arguments = made.parse_args()
    numbers = arguments.nfe or ([4] if arguments.quick else [5, 6])
    cells = []
    for name in arguments.models[:1] if arguments.quick else arguments.models:
        model = load(name)
        for nfe in numbers:
            cell = run_cell(name, model, nfe, arguments.quick, arguments.seed, arguments.images)
            print(f"{name}, {nfe} NFE: {cell.searched:.4f} against {cell.fixed:.4f} on {cell.grid}, "
                  f"{cell.evaluations:,} evaluations, {cell.seconds:.0f} s, distances {cell.distances}", flush=True)
            cells.append(cell)
    print_claims("Searched grids: error over that of the same solver on its best fixed grid", claims_of(cells))
    if arguments.figure is not None:
        draw(cells, arguments.figure)
    write(arguments, claims_of(cells), cells=[cell._replace(plan=cell.plan.to_json())._asdict()  # type: ignore[arg-type]
                                              for cell in cells])


if __name__ == "__main__":
    main()
