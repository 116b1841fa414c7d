"""Any solver with any schedule, prediction, grid, number of evaluations, end and dtype runs soundly, or says why not.

A seeded draw from the product. Each run must be finite and of the right shape and dtype, spend what it was asked to,
and depend on nothing but its seeds; what cannot be is refused with a ValueError in words, before any evaluation.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from samplers import sample
from samplers.registry import DISTILLED, GRIDS, SELECTING, SOLVERS, WRAPPERS
from samplers.solver import Solver
from scoremodels.model import ScoreModel
from scoremodels.prediction import PREDICTIONS
from scoremodels.schedule import EDM, VE, ContinuousVP, DiscreteVP, NoiseSchedule, RectifiedFlow

SHAPE = (2, 4, 4)
PARTS, DRAWS = 12, 450
SCHEDULES: dict[str, NoiseSchedule] = {
    "linear": DiscreteVP.linear(), "scaled-linear": DiscreteVP.scaled_linear(), "cosine": DiscreteVP.cosine(),
    "zero-snr": DiscreteVP.scaled_linear().zero_terminal_snr(), "continuous": ContinuousVP(), "ve": VE(), "edm": EDM(),
    "flow": RectifiedFlow(), "shifted-flow": RectifiedFlow(shift=3.0), "flow-1000": RectifiedFlow(scale=1000.0),
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
FIXED = [name for name, solver in {**SOLVERS, **SELECTING, **DISTILLED}.items()
         if isinstance(solver, Solver) or name in SELECTING]


class Case(NamedTuple):
    """One place in the product."""

    solver: str
    schedule: str
    prediction: str
    grid: str | None
    nfe: int
    end: str | float | None
    dtype: torch.dtype


class Network(torch.nn.Module):
    """Predicts a bounded sample, in float64, and counts its evaluations."""

    any_dtype = True

    def __init__(self, schedule: NoiseSchedule, prediction: str) -> None:
        super().__init__()
        self.schedule, self.prediction, self.evaluations = schedule, prediction, 0
        self.overflowed = False

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        self.evaluations += 1
        time = float(t[0])
        alpha, sigma = float(self.schedule.alpha(time)), float(self.schedule.sigma(time))
        wide = x.double()
        data = torch.tanh(1.5 * alpha * wide / (alpha**2 + sigma**2))
        a, b = self.schedule.conversion("sample", self.prediction, time)
        exact = a * wide + b * data
        raw = exact.to(x.dtype)
        self.overflowed |= bool((exact.isfinite() & ~raw.isfinite()).any() | x.isinf().any())
        return raw


def drawn(seed: int) -> list[Case]:
    draw = random.Random(seed)
    cases = []
    for _ in range(DRAWS):
        schedule = draw.choice(list(SCHEDULES))
        solver = draw.choice(FIXED) + draw.choice([*[""] * 9, *(f"+{wrapper}" for wrapper in WRAPPERS)])
        middle = SCHEDULES[schedule].t_min + draw.uniform(0.0, 0.3) * (
            SCHEDULES[schedule].t_max - SCHEDULES[schedule].t_min)
        cases.append(Case(solver, schedule, draw.choice(PREDICTIONS), draw.choice([None, *GRIDS]), draw.randint(1, 30),
                          draw.choice([None, "clean", "minimum", middle]), draw.choice(DTYPES)))
    return cases


def fault(case: Case) -> str:
    """What is wrong with a run; "" if nothing is, "refused", or "overflowed" where float16 cannot hold an output."""
    schedule = SCHEDULES[case.schedule]
    network = Network(schedule, case.prediction)
    model = ScoreModel(network, schedule, case.prediction, SHAPE)
    starts = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(case.nfe))
    x = (starts * float(schedule.prior_scale(schedule.t_max))).to(case.dtype)
    options: dict[str, Any] = {"solver": case.solver, "nfe": case.nfe, "grid": case.grid, "end": case.end}
    try:
        result = sample(model, x_T=x, seed=5, **options)
    except ValueError as error:
        if network.evaluations:
            return f"refused after {network.evaluations} evaluations: {error}"
        return "refused" if re.search("[=:]", str(error)) else f"refused without a reason: {error}"
    if result.samples.shape != x.shape or result.samples.dtype != case.dtype:
        return f"gives {result.samples.dtype} of shape {tuple(result.samples.shape)}"
    if not (result.nfe == case.nfe == network.evaluations):
        return f"says nfe={result.nfe} and spends {network.evaluations}"
    if not result.samples.isfinite().all():
        # float16 cannot hold a score of -ε/σ near σ = 0, nor a state in the millions, as PNDM's start makes on a
        # cosine schedule, whose signal is nearly gone at the first time; wider states come out finite there.
        return "overflowed" if network.overflowed and case.dtype == torch.float16 else "is not finite"
    again = options if result.plan is None else {"plan": result.plan}  # compiling it once is enough
    if not result.samples.equal(sample(model, x_T=x, seed=5, batch=2, **again).samples):
        return "depends on the batch, or on more than its seeds"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(PARTS))
def test_a_drawn_combination_runs_soundly_or_is_refused_in_words(seed: int) -> None:
    found: list[tuple[str, Case]] = []
    for case in drawn(seed):
        try:
            found.append((fault(case), case))
        except Exception as error:  # anything but a ValueError is a fault too, and the others shall be seen as well
            found.append((f"{type(error).__name__}: {error}", case))
    faults = [f"{case}: {what}" for what, case in found if what not in ("", "refused", "overflowed")]
    assert not faults, f"{len(faults)} of {len(found)}:\n" + "\n".join(faults)
    counts = Counter(what for what, _ in found)
    assert counts["refused"] < 0.55 * len(found) and counts["overflowed"] < 0.01 * len(found), counts


def test_five_thousand_combinations_are_drawn() -> None:
    assert len({case for seed in range(PARTS) for case in drawn(seed)}) >= 5000
