"""ERA-Solver: equality with its algorithm written down for one sample, and what a sample's batch may not change."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from eval.convergence import convergence_order
from eval.order import MixtureProblem
from odecore.plan import execute
from samplers import SOLVERS, compile_plan, sample
from samplers.era import era, lagrange, selected
from samplers.registry import solver_named
from samplers.solver import SelectingSolver
from scoremodels.loaders import load
from scoremodels.schedule import EDM, ContinuousVP, DiscreteVP, NoiseSchedule


def network(x: Tensor, t: object) -> Tensor:
    """Some ε that depends on state and time."""
    return torch.sin(2 * x) + 0.1 * x + 1e-3 * float(t)  # type: ignore[arg-type]


def indices_of(error: float, scale: float, last: int, bases: int) -> list[int]:
    """The paper's indices; where two coincide, the older moves down."""
    found = [max(math.floor((m / bases) ** (error / scale) * last), m - 1) for m in range(1, bases + 1)]
    for m in range(bases - 2, -1, -1):
        found[m] = min(found[m], found[m + 1] - 1)
    return found


def algorithm(schedule: NoiseSchedule, times: list[float], x: Tensor, bases: int, scale: float) -> Tensor:
    """Algorithm 1 for one sample."""
    noises: list[Tensor] = []
    expected, error = None, scale
    for i, (t, s) in enumerate(zip(times[:-1], times[1:], strict=True)):
        noises.append(network(x, t))
        if expected is not None:
            error = float(torch.linalg.vector_norm(expected - noises[-1]))
        mean = noises[-1]
        if i >= bases - 1:
            chosen = indices_of(error, scale, i, bases)
            expected = torch.zeros_like(x)
            for m in chosen:
                basis = math.prod((s - times[n]) / (times[m] - times[n]) for n in chosen if n != m)
                expected = expected + basis * noises[m]
            mean = (9 * expected + 19 * noises[-1] - 5 * noises[-2] + noises[-3]) / 24
        x0 = (x - schedule.sigma(t) * mean) / schedule.alpha(t)
        x = schedule.alpha(s) * x0 + schedule.sigma(s) * mean
    return x


@pytest.mark.parametrize(("bases", "scale"), [(3, 5.0), (4, 5.0), (4, 0.3), (5, 1.0)])
@pytest.mark.parametrize("schedule", [DiscreteVP.linear(), ContinuousVP(), EDM()], ids=lambda s: type(s).__name__)
def test_each_sample_follows_the_algorithm(schedule: NoiseSchedule, bases: int, scale: float) -> None:
    solver = era(bases, scale)
    plan = compile_plan(solver.base, schedule, nfe=10)
    times = plan.about["times"]
    assert isinstance(times, list)
    start = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wrapped = solver.wrap(network, plan, schedule, "epsilon")
    with torch.no_grad():
        ours = execute(plan, wrapped, start)
        expected = torch.stack([algorithm(schedule, times, x, bases, scale) for x in start])
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("last", [3, 4, 9, 20])
@pytest.mark.parametrize("bases", [3, 4])
def test_the_chosen_indices_are_distinct_and_end_with_the_newest(last: int, bases: int) -> None:
    exponent = torch.tensor([0.0, 0.2, 1.0, 3.0, 1e6, math.inf], dtype=torch.float64)
    found = selected(exponent, last, bases)
    assert (found.diff(dim=1) > 0).all() and (found >= 0).all() and (found[:, -1] == last).all()
    assert found[2].tolist() == indices_of(1.0, 1.0, last, bases)
    assert found[0].tolist() == list(range(last - bases + 1, last + 1))


def test_the_older_the_bases_the_worse_the_prediction_was() -> None:
    found = selected(torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64), 20, 4)
    assert (found.diff(dim=0) <= 0).all() and found.sum(1).unique().numel() == 3


def test_the_lagrange_polynomials_reproduce_a_cubic() -> None:
    nodes = torch.tensor([[0.1, 0.4, 0.7, 1.0], [0.0, 0.2, 0.3, 2.0]], dtype=torch.float64)
    values = lagrange(nodes, torch.tensor(1.3, dtype=torch.float64))
    torch.testing.assert_close((values * (nodes**3 - nodes)).sum(1), torch.full((2,), 1.3**3 - 1.3).double())


@pytest.mark.parametrize("name", ["fashion-mnist-ddpm", "fashion-mnist-edm", "fashion-mnist-flow"])
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    model = load(name)
    together = sample(model, num=3, solver="era-4", nfe=7, seed=5)
    alone = sample(model, num=1, solver="era-4", nfe=7, seed=7)
    assert together.nfe == 7 and together.plan is None and together.samples.isfinite().all()
    assert (together.samples[2] - alone.samples[0]).norm() <= 1e-4 * alone.samples.norm()


def test_with_fewer_evaluations_than_bases_it_is_ddim() -> None:
    model = load("fashion-mnist-ddpm")
    ours, ddim = (sample(model, num=1, solver=s, nfe=3, grid="time").samples for s in ("era-4", "ddim"))
    assert (ours - ddim).norm() <= 1e-5 * ddim.norm()


def test_it_converges_at_its_order() -> None:
    problem, solver = MixtureProblem(ContinuousVP()), era(4)
    end = float(problem.schedule.time_of_log_snr(problem.end))

    def error(nfe: int) -> float:
        plan = compile_plan(solver.base, problem.schedule, nfe=nfe, grid=problem.grid(lambda u: u * u * (3 - 2 * u)),
                            prediction=problem.model.prediction, end=end)
        wrapped = solver.wrap(problem.model, plan, problem.schedule, problem.model.prediction)
        with torch.no_grad():
            return problem.error(execute(plan, wrapped, torch.from_numpy(problem.x_start)))

    assert convergence_order(error, [60, 84, 120, 168]).order == pytest.approx(solver.order, abs=0.15)


def test_it_has_no_plan_and_no_place_among_fixed_grids() -> None:
    solver = solver_named("era-4")
    assert isinstance(solver, SelectingSolver) and solver.name not in SOLVERS
    with pytest.raises(ValueError, match="has no plan"):
        compile_plan("era-4", ContinuousVP(), nfe=5)


@pytest.mark.parametrize(("arguments", "match"), [((2,), "bases=2"), ((4.0,), "bases=4.0"), ((4, 0.0), "scale=0.0")])
def test_arguments_out_of_range_are_refused(arguments: tuple, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        era(*arguments)
