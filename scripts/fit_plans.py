"""Fit the plans that ship in samplers/plans: for each embedded model and number of evaluations, one file.

The start is the best of a few solvers on a few grids by a short calibration; what is learned, and from which noises,
stands in the file under about.fit. A file is written only where the fit is better than its start on validation noises.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from odecore.learn.fit import adam
from samplers.calibrate import PROBES, calibrate
from samplers.fit_plan import fit_plan
from samplers.plans import FOLDER, file_of
from scoremodels.loaders import load

MODELS = ("fashion-mnist-edm", "fashion-mnist-flow", "fashion-mnist-ddpm")
SOLVERS = ("ipndm-2", "ipndm-3", "ipndm-4", "dpm-solver++-2m", "dpm-solver++-3m", "deis-3", "unipc-3")
"""Solvers that a fit may begin with."""


def main() -> None:
    """Fit and write, one model after the other for each number of evaluations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--nfe", default="5,4,3,6,8")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.03)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/fewstep"), help="folder that keeps solutions")
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    cache, names = arguments.cache.expanduser(), arguments.models.split(",")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for nfe in map(int, arguments.nfe.split(",")):
        for name in names:
            model = load(name)
            labels = torch.arange(model.num_classes) if model.num_classes else None
            start = calibrate(model, nfe=nfe, num=8, solvers=SOLVERS, grids=PROBES, rounds=0, cache=cache,
                              condition=None if labels is None else labels[:8])
            fitted = fit_plan(model, nfe=nfe, start=start, condition=labels, steps=arguments.steps,
                              batch=arguments.batch, optimizer=adam(arguments.rate), look=20, cache=cache)
            print(f"{name}, {nfe} NFE, from {start.about['solver']} on {start.about['grid']}: RMS on validation "
                  f"noises {fitted.rms[0]:.4f} -> {fitted.rms[1]:.4f}, objective {fitted.before:.4f} -> "
                  f"{fitted.after:.4f}; {fitted.evaluations:,} evaluations, {fitted.seconds:.0f} s", flush=True)
            if fitted.improved:
                target = arguments.out / file_of(name, nfe)
                fresh = target.with_suffix(".new")
                fresh.write_text(fitted.plan.to_json() + "\n")
                os.replace(fresh, target)


if __name__ == "__main__":
    main()
