"""Compare our plans with the schedulers of diffusers on the embedded models: `python scripts/compare.py`.

For each model and number of evaluations (NFE), from the same noises:

* peer: the best deterministic scheduler of diffusers, out of all that apply in all their variants, in hindsight;
* named: the best pair of solver and grid, in hindsight out of the eight that calibration ended with;
* calibrated: the plan that `samplers.calibrate` found on other noises, so that nothing is in hindsight;
* auto: the solver "auto", which chooses from its table with no evaluation of the model at all.

The error is the RMS distance at the end from the converged solution without noise. Peers are found by successive
halving, so that the last eight have met all noises. Then the Fréchet distances of the best peer, of the calibrated
plan, of auto and of the solution. Every result is a line of `results.jsonl` in --out; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.comparison import Record, markdown, mean_ratio, picture, ratio
from eval.features import fashion_mnist_features, fashion_mnist_reference
from eval.fid import Statistics, frechet_distance
from eval.images import from_bytes, to_bytes
from eval.peers import own_nfe, peers, walk_peer
from eval.report import surroundings
from eval.sweep import cycled_labels
from odecore.plan import Plan
from samplers.auto import choose
from samplers.calibrate import calibrate
from samplers.candidates import candidates
from samplers.converged import REFERENCE, converged
from samplers.halving import Entrant, Trial
from samplers.lockstep import Walk, run_together, start_plan
from samplers.noise import SampleNoise
from scoremodels.loaders import load
from scoremodels.model import ScoreModel

MODELS = ("fashion-mnist-edm", "fashion-mnist-flow", "fashion-mnist-ddpm")
NFES = (4, 5, 6, 8, 10, 15, 20)
REPORTED_SEED, CALIBRATION_SEED = 0, 1 << 20
SOLVED = 50
"""Evaluations of the solution that the Fréchet distances stand beside."""
FIRST = 2
"""Noises that every scheduler meets, before the better quarter meets more."""


class Results:
    """Lines of JSON, one a result, kept by its key.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._records: dict[str, Record] = {(r := json.loads(line))["key"]: r for line in lines}

    def get(self, key: Sequence[object], compute: Callable[[], Record]) -> Record:
        """Look a result up, or compute it and write it down."""
        text = "/".join(map(str, key))
        if text not in self._records:
            started = time.perf_counter()
            record = {"key": text, **compute(), "seconds": round(time.perf_counter() - started, 1)}
            with self._path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            self._records[text] = record
            print(f"{text[:70]}: {record['seconds']} s", flush=True)
        return self._records[text]


def start_peer(model: ScoreModel, name: str, nfe: int) -> Callable[[Tensor], Walk]:
    """Make the walk of a scheduler from standard normal noise."""
    (peer,) = (p for p in peers(model) if p.name == name)
    return lambda noise: walk_peer(model, peer, noise, nfe)


def trial(model: ScoreModel, num: int, cache: Path) -> Trial:
    """Set the reported noises against their solution."""
    labels = cycled_labels(model, num)
    return Trial(model, REPORTED_SEED, converged(model, num, REPORTED_SEED, labels, folder=cache).samples, labels)


def run_peers(model: ScoreModel, nfe: int, num: int, cache: Path) -> Record:
    """Halve the schedulers; say which diverged, and how those fare that cannot spend exactly that NFE."""
    spend: dict[int, list[Entrant]] = {}
    for peer in peers(model):
        count = own_nfe(peer, nfe)
        spend.setdefault(count, []).append(Entrant((peer.name,), partial(walk_peer, model, peer, nfe=count)))
    needing_more = [e.name[0] for e in spend.pop(0, [])]
    diverged: list[str] = []
    tables: dict[int, list[Record]] = {}
    for count, field in sorted(spend.items()):
        contest = trial(model, num, cache)
        contest.run(field, FIRST, "")
        diverged += [e.name[0] for e in field if math.isinf(e.rms)]
        tables[count] = [{"name": e.name[0], "rms": e.rms} for e in contest.halve(field)]
    return {"nfe": nfe, "tried": len(spend[nfe]), "table": tables.pop(nfe), "diverged": diverged,
            "needing_more": needing_more, "own_nfe": tables}


def run_calibration(model: ScoreModel, nfe: int, num: int, cache: Path) -> Record:
    """Calibrate, on noises that are reported nowhere."""
    started = time.process_time()
    plan = calibrate(model, nfe=nfe, num=num, seed=CALIBRATION_SEED, condition=cycled_labels(model, num), cache=cache)
    found: Any = plan.about["calibration"]
    return {"nfe": nfe, **found, "processor_seconds": time.process_time() - started, "plan": plan.to_json()}


def run_plans(model: ScoreModel, plans: Sequence[tuple[str, Plan]], num: int, cache: Path) -> Record:
    """Measure plans of one number of evaluations on the reported noises, each under its name."""
    field = [Entrant((name,), start_plan(model, plan)) for name, plan in plans]
    trial(model, num, cache).run(field, num, "")
    return {"table": [{"name": e.name[0], "rms": e.rms} for e in field]}


def plan_of(model: ScoreModel, solver: str, grid: str, nfe: int) -> tuple[str, Plan]:
    """Compile a pair of names as calibration knows them."""
    (found,) = candidates(model, nfe, [solver], [grid])
    return f"{solver} on {grid}", found.plan


def run_distance(model: ScoreModel, start: Callable[[Tensor], Walk], num: int, batch: int = 250) -> Record:
    """Fréchet distance on the embedded classifier's features, seeds from the reported ones on."""
    extractor, labels = fashion_mnist_features(), cycled_labels(model, num)
    statistics = Statistics.empty(extractor.dimension)
    for first in range(0, num, batch):
        last = min(first + batch, num)
        noise = SampleNoise(range(REPORTED_SEED + first, REPORTED_SEED + last), model.shape)()
        (end,) = run_together(model, [start(noise)], None if labels is None else labels[first:last],
                              states=last - first, batch=batch)
        statistics = statistics.merge(Statistics.of(extractor(from_bytes(to_bytes(end, model.value_range)))))
    return {"samples": num, "distance": frechet_distance(statistics, fashion_mnist_reference())}


def compare(name: str, nfe: int, results: Results, arguments: argparse.Namespace) -> Record:
    """Run what is missing for one model and number of evaluations; return a row."""
    model, num, cache = load(name), arguments.num, arguments.out / "solutions"
    theirs = results.get((name, nfe, "peers", num), partial(run_peers, model, nfe, num, cache))
    key = (name, nfe, "calibrated", arguments.calibration)
    found = results.get(key, partial(run_calibration, model, nfe, arguments.calibration, cache))
    calibrated = Plan.from_json(found["plan"])
    pairs = [plan_of(model, row["solver"], row["grid"], nfe) for row in found["table"]]
    ours = results.get((*key, "plans", num), partial(
        run_plans, model, [("calibrated", calibrated), *pairs], num, cache))["table"]
    auto = plan_of(model, *choose(model.schedule, nfe), nfe)
    picked = results.get((name, nfe, "auto", auto[0], num), partial(run_plans, model, [auto], num, cache))["table"][0]
    named, peer = min(ours[1:], key=lambda row: row["rms"]), theirs["table"][0]
    about = calibrated.about
    row: Record = {
        "model": name, "nfe": nfe, "peer": peer["name"], "peer_rms": peer["rms"], "peers_tried": theirs["tried"],
        "named": named["name"], "named_rms": named["rms"],
        "calibrated": f"{about['solver']} on {about['grid']}", "calibrated_rms": ours[0]["rms"],
        "auto": auto[0], "auto_rms": picked["rms"], "candidates": found["candidates"],
        "evaluations": found["evaluations"], "processor_seconds": found["processor_seconds"]}
    if nfe in arguments.distance_nfe and arguments.images:
        solver, grid, _ = REFERENCE
        starts = {"peer": (start_peer(model, peer["name"], nfe), (nfe, "distance", peer["name"])),
                  "calibrated": (start_plan(model, calibrated), (nfe, "distance", found["plan"])),
                  "auto": (start_plan(model, auto[1]), (nfe, "distance", auto[0])),
                  "solution": (start_plan(model, plan_of(model, solver, grid, SOLVED)[1]), ("distance", "solution"))}
        for who, (start, named_by) in starts.items():
            row[f"{who}_distance"] = results.get((name, *named_by, arguments.images), partial(
                run_distance, model, start, arguments.images))["distance"]
    return row


def main() -> None:
    """Run what is missing, print it, and write it down."""
    import diffusers

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--nfe", nargs="+", type=int, default=NFES)
    parser.add_argument("--num", type=int, default=24, help="noises to report on")
    parser.add_argument("--calibration", type=int, default=24, help="noises to calibrate on")
    parser.add_argument("--images", type=int, default=512, help="samples of a Fréchet distance; 0 for none")
    parser.add_argument("--distance-nfe", nargs="*", type=int, default=NFES)
    parser.add_argument("--out", type=Path, default=Path("comparison"))
    parser.add_argument("--figure", type=Path, help="picture to write, besides the one in --out")
    arguments = parser.parse_args()
    diffusers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")  # numpy's and diffusers' deprecations, once a scheduler
    arguments.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps({**surroundings(), "diffusers": diffusers.__version__, "num": arguments.num,
                      "calibration": arguments.calibration, "reported_seed": REPORTED_SEED,
                      "calibration_seed": CALIBRATION_SEED}))
    results = Results(arguments.out / "results.jsonl")
    rows = []
    for nfe in arguments.nfe:  # the cheap ones first, so that a run which is cut short leaves whole columns
        for name in arguments.models:
            rows.append(compare(name, nfe, results, arguments))
            print(markdown(rows[-1:]).splitlines()[2], flush=True)
    rows.sort(key=lambda row: (arguments.models.index(row["model"]), row["nfe"]))
    (arguments.out / "comparison.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(markdown(rows))
    for path in (arguments.out / "comparison.png", arguments.figure):
        if path is not None:
            picture(path, rows)
    for who in ("named", "calibrated", "auto"):
        print(f"{who}: {mean_ratio(rows, who):.3f} of the best peer's error in the geometric mean, at worst "
              f"{max(ratio(row, who) for row in rows):.2f}")


if __name__ == "__main__":
    main()
