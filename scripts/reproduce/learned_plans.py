"""Learned plans against the best training-free ones, on noises that neither fit nor calibration has seen.

For each embedded model with fitted plans: RMS distance to the converged solution from the same noises, and the
Fréchet distance to the real images on two sets of features, neither of which the fit has used: the embedded
classifier's and the raw pixels, averaged over squares of two by two. "Training-free" is what a short calibration over
the solvers and grids of scripts/fit_plans.py finds. Standard errors are those over samples for the RMS, and half the
difference between the two halves of the samples for the Fréchet distances, which is one draw of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from claims import Claim, parser, print_claims, write
from torch import Tensor
from torch.nn import functional as F

from eval.data import fashion_mnist
from eval.features import fashion_mnist_features, fashion_mnist_reference
from eval.fid import Moments, Statistics, frechet_distance
from eval.images import from_bytes, to_bytes
from eval.sweep import cycled_labels
from odecore.plan import Plan
from samplers import compile_plan, sample
from samplers.calibrate import PROBES, calibrate
from samplers.converged import converged
from samplers.plans import FOLDER, fitted
from scoremodels.loaders import load
from scoremodels.model import ScoreModel

SEED = 1 << 23
"""First noise of the report; those of calibration, fit and validation begin at 2^20, 2^21 and 2^22."""
SOLVERS = ("ipndm-2", "ipndm-3", "ipndm-4", "dpm-solver++-2m", "dpm-solver++-3m", "deis-3", "unipc-3")


class Measured(NamedTuple):
    """One plan on one model.

    Attributes:
        rms: distance to the solution, and its standard error.
        classifier: Fréchet distance on the classifier's features, and its standard error.
        pixels: the same on pixels.
    """

    rms: tuple[float, float]
    classifier: tuple[float, float]
    pixels: tuple[float, float]


def pixels(images: Tensor) -> Tensor:
    """Means over squares of two by two pixels, 196 numbers."""
    return F.avg_pool2d(images, 2).flatten(1)


def frechet(features: Tensor, real: Moments) -> tuple[float, float]:
    """Distance of all samples, and the standard error from that of both halves."""
    whole = frechet_distance(Statistics.of(features), real)
    tens = torch.arange(len(features)) // 10 % 2 == 0  # labels go round in tens: both halves have all of them
    first, second = (frechet_distance(Statistics.of(half), real) for half in (features[tens], features[~tens]))
    return whole, abs(first - second) / 2.0


def measured(
    model: ScoreModel, plan: Plan, num: int, solution: Tensor, real: dict[str, Moments],
    features: dict[str, Callable[[Tensor], Tensor]],
) -> Measured:
    """Draw samples and compare them."""
    drawn = sample(model, plan=plan, num=num, seed=SEED, condition=cycled_labels(model, num), batch=128).samples
    squares = (drawn[:len(solution)].double() - solution).square().flatten(1).mean(1)
    rms = squares.mean().sqrt().item()
    error = squares.std().item() / math.sqrt(len(squares)) / (2.0 * rms)
    images = from_bytes(to_bytes(drawn, model.value_range))
    distances = [frechet(extract(images), real[name]) for name, extract in features.items()]
    return Measured((rms, error), *distances)


def main() -> None:
    """Measure, print, draw."""
    made = parser(__doc__)
    made.add_argument("--models", default="fashion-mnist-edm,fashion-mnist-flow")
    made.add_argument("--num", type=int, default=512)
    made.add_argument("--cache", type=Path, default=Path("~/.cache/fewstep"))
    arguments = made.parse_args()
    num, compared = (64, 4) if arguments.quick else (arguments.num, 64)
    cache = arguments.cache.expanduser()
    train = from_bytes(fashion_mnist("train")[0][:2000]) if arguments.quick else from_bytes(fashion_mnist("train")[0])
    features: dict[str, Callable[[Tensor], Tensor]] = {"classifier": fashion_mnist_features(), "pixels": pixels}
    real = {"classifier": fashion_mnist_reference(), "pixels": Statistics.of(pixels(train)).moments()}
    claims: list[Claim] = []
    table: dict[str, dict[str, Measured]] = {}
    for name in arguments.models.split(",")[:1 if arguments.quick else None]:
        model = load(name)
        there = sorted(int(path.stem.rsplit("-", 1)[1]) for path in FOLDER.glob(f"{name}-*.json"))
        labels = cycled_labels(model, compared)
        solution = converged(model, compared, SEED, labels, folder=None if arguments.quick else cache).samples
        plans = {"dpm-solver-3, 20": compile_plan("dpm-solver-3", model.schedule, nfe=20, prediction=model.prediction)
                 } if name != "fashion-mnist-flow" else {
                     "dpm-solver++-3m, 20": compile_plan("dpm-solver++-3m", model.schedule, nfe=20,
                                                         prediction=model.prediction)}
        for nfe in [4] if arguments.quick else [*there, 8]:
            if nfe in there:
                plans[f"fitted, {nfe}"] = fitted(model, nfe)
            plans[f"training-free, {nfe}"] = calibrate(
                model, nfe=nfe, num=4 if arguments.quick else 8, solvers=SOLVERS[3:5] if arguments.quick else SOLVERS,
                grids=PROBES[1:2] if arguments.quick else PROBES, rounds=0, condition=cycled_labels(
                    model, 4 if arguments.quick else 8), cache=None if arguments.quick else cache)
        rows = table[name] = {}
        for what, plan in plans.items():
            rows[what] = measured(model, plan, num, solution, real, features)
            print(f"{name}, {what} NFE ({plan.about['solver']}): "
                  + ", ".join(f"{key} {value:.4g} ± {error:.1g}" for key, (value, error) in
                              rows[what]._asdict().items()), flush=True)
        claims += compare(name, rows)
    print_claims(f"Learned plans, {num} samples, {compared} for the RMS; fresh noises from seed 2^23", claims)
    write(arguments, claims, table={name: {what: m._asdict() for what, m in rows.items()}
                                    for name, rows in table.items()})
    if arguments.figure is not None:
        draw(arguments.figure, table)


def compare(name: str, rows: dict[str, Measured]) -> list[Claim]:
    """Figures of the fitted plans beside those that they are to reach."""
    claims = []
    usual = next(what for what in rows if what.endswith(", 20"))
    for what, row in rows.items():
        kind, nfe = what.split(", ")
        if kind != "fitted":
            continue
        goals = [(f"training-free, {nfe}", "rms", "")]
        if nfe == "5":
            goals.append((usual, "classifier", "Fréchet distance, "))
            goals.append((usual, "pixels", "Fréchet distance, "))
        if nfe in ("3", "4") and "training-free, 8" in rows:
            goals.append(("training-free, 8", "classifier", "Fréchet distance, "))
        for other, key, word in goals:
            (ours, error), (anchor, _) = getattr(row, key), getattr(rows[other], key)
            claims.append(Claim(f"{name}, fitted at {nfe} NFE: {word}{key}", ours, anchor, f"{other} NFE, this run",
                                goal=anchor, error=error))
    return claims


def draw(path: Path, table: dict[str, dict[str, Measured]]) -> None:
    """Distances against evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(table), 2, figsize=(8.4, 3.1 * len(table)), squeeze=False, layout="constrained")
    for row, (name, measurements) in zip(axes, table.items(), strict=True):
        for axis, key, label in zip(row, ("rms", "classifier"), (
                "RMS distance to the solution", "Fréchet distance (classifier)"), strict=True):
            for kind, colour in (("training-free", "tab:gray"), ("fitted", "tab:red")):
                points = sorted((int(what.split(", ")[1]), *getattr(m, key)) for what, m in measurements.items()
                                if what.startswith(kind))
                axis.errorbar(*zip(*points, strict=True), fmt="o-", color=colour, label=kind, capsize=2)
            usual = next(what for what in measurements if what.endswith(", 20"))
            axis.axhline(getattr(measurements[usual], key)[0], color="tab:blue", linestyle=":", label=f"{usual} NFE")
            axis.set(xlabel="network evaluations", ylabel=label, title=name, yscale="log")
        row[0].legend(fontsize=8)
    figure.savefig(path, dpi=90)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
