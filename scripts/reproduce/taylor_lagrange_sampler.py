"""A Taylor–Lagrange sampler of the embedded model against DPM-Solver, for taylor_lagrange.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
from claims import Claim
from taylor_lagrange_training import seconds_of
from torch import Tensor

from eval.trajectory import reference_solution, rms
from odecore.driver.solve import solve
from odecore.explicit.embedded import DORMAND_PRINCE
from odecore.explicit.taylor import total_derivatives
from odecore.learn.fit import adam, fit
from samplers import sample
from samplers.grids import karras, log_snr
from samplers.noise import SampleNoise
from samplers.taylor import Flow, OwnSteps, Remainder, remainder_loss, sample_taylor
from scoremodels.loaders import load
from scoremodels.model import ScoreModel

MODEL = "fashion-mnist-edm"
BASELINES = ("dpm-solver-2", "dpm-solver-3", "dpm-solver++-2m")


class Size(NamedTuple):
    """Trajectories to learn from and to compare on, steps of training, evaluations of the reference."""

    learned: int
    compared: int
    steps: int
    reference: int


@torch.no_grad()
def cost_of_derivative(model: ScoreModel) -> float:
    """The time of the flow's first two derivatives, in evaluations of the network."""
    x, at = torch.randn(16, *model.shape, generator=torch.Generator().manual_seed(0)), torch.zeros(16).double()
    flow = Flow(model.schedule, model.prediction, model)
    return seconds_of(lambda: total_derivatives(flow, x, at, 2)) / seconds_of(lambda: flow(x, at))


@torch.no_grad()
def own_steps(model: ScoreModel, grid: list[float], count: int) -> OwnSteps:
    """Steps of converged trajectories, from seeds that the comparison does not use."""
    flow, schedule = Flow(model.schedule, model.prediction, model), model.schedule
    noise = SampleNoise(range(10_000, 10_000 + count), model.shape)() * schedule.prior_scale(schedule.t_max)
    nodes = torch.tensor(grid, dtype=torch.float64)
    first = noise / float(schedule.sigma(schedule.time_of_log_snr(grid[0])))
    states = solve(DORMAND_PRINCE, flow, first, grid[0], grid[-1], rtol=1e-3, atol=1e-3, ts=nodes).ys
    assert states is not None
    index = torch.arange(len(grid) - 1).repeat(count)
    return OwnSteps(index, states[:, :-1].flatten(0, 1), states[:, 1:].flatten(0, 1))


def learned(model: ScoreModel, grid: list[float], degree: int, size: Size) -> tuple[Remainder, float, float]:
    """Train a remainder; its first and last losses too."""
    remainder, steps = Remainder(grid, degree, model.shape), own_steps(model, grid, size.learned)

    def batch(step: int) -> OwnSteps:
        rows = torch.randperm(len(steps.number), generator=torch.Generator().manual_seed(step))[:32]
        return OwnSteps(steps.number[rows], steps.before[rows], steps.after[rows])

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    result = fit(remainder, remainder_loss(model), batch, steps=size.steps, optimizer=adam(0.02))
    tenth = max(1, size.steps // 10)
    return remainder, sum(result.losses[:tenth]) / tenth, sum(result.losses[-tenth:]) / tenth


def sampler_claims(quick: bool) -> tuple[list[Claim], dict[str, list[tuple[float, float]]]]:
    """Errors of trajectories at equal evaluations, and the curves of the picture."""
    size = Size(2, 2, 2, 16) if quick else Size(12, 16, 30, 64)
    model = load(MODEL)
    schedule, cost = model.schedule, cost_of_derivative(model)
    reference = reference_solution(model, num=size.compared, nfe=size.reference)
    exact = reference.end_points[float(schedule.t_min)]
    start = SampleNoise(range(size.compared), model.shape)() * schedule.prior_scale(schedule.t_max)

    def error(samples: Tensor) -> float:
        return rms(samples - exact)

    curves: dict[str, list[tuple[float, float]]] = {}
    claims = []
    for degree, steps in ((0, 3),) if quick else ((0, 3), (0, 5), (1, 2)):
        spent = steps * (2.0 if degree == 0 else 1 + cost)
        equal = round(spent)
        peers = {name: error(sample(model, num=size.compared, solver=name, nfe=equal).samples) for name in BASELINES}
        for name, value in peers.items():
            curves.setdefault(name, []).append((equal, value))
        best = min(peers, key=lambda name: peers[name])
        results = {}
        for name, make in (("log-snr", log_snr), ("karras", karras)):
            grid = schedule.log_snr(make(schedule, steps, schedule.t_min)).tolist()
            results[name] = grid, error(sample_taylor(model, start, Remainder(grid, degree, model.shape)).samples)
        chosen = min(results, key=lambda name: results[name][1])
        grid, before = results[chosen]
        remainder, first, last = learned(model, grid, degree, size)
        after = error(sample_taylor(model, start, remainder).samples)
        print(f"sampler of degree {degree}, {steps} steps on the {chosen} grid, {spent:.1f} evaluations' time: error\n"
              f"  of a trajectory {before:.4f} untrained, {after:.4f} trained (L1 of a step {first:.4f} → {last:.4f})\n"
              f"  at {equal}: " + ", ".join(f"{name} {value:.4f}" for name, value in peers.items()), flush=True)
        for name, value in (("untrained", before), ("trained", after)):
            curves.setdefault(f"taylor-lagrange, degree {degree}, {name}", []).append((spent, value))
        claims.append(Claim(
            f"{MODEL}, degree {degree}, {steps} steps: error of a trajectory, at {spent:.1f} evaluations", after,
            peers[best], f"{best} at {equal}, in this run", peers[best]))
    claims.append(Claim("time of the derivative at the point, in evaluations", cost))
    return claims, curves
