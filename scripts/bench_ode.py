"""Time the adaptive step of odecore, torchdiffeq, torchode and diffrax: `python scripts/bench_ode.py`.

All take Dormand and Prince's pair of order 5(4) at the same tolerances, in float32, on one CPU thread.
Part 1 times a step on a multilayer perceptron, part 2 counts evaluations on a batch of unequal
stiffness, and part 3 times a solution with its gradient. Times are the process's own processor
time, which other load on the machine hardly lengthens; the runs of all solvers alternate, and ratios
are medians of the ratios within a round. A library that is not installed is left out, and named.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from eval.report import surroundings
from odecore.driver.solve import solve
from odecore.explicit.embedded import DORMAND_PRINCE

BASELINE = "torchdiffeq"
GOALS = {BASELINE: 0.4, "torchode": 1.0}
"""Most of their time a step that odecore may take."""

SAVING = 2.0
"""Least factor by which the evaluations of a batch of unequal stiffness are to shrink."""

TOLERANCE, END = 1e-5, 50.0
"""Absolute and relative tolerance on the perceptron, and last time; some 25 steps for one sample."""


class Count:
    """Evaluations of a field, samples in them, and accepted steps; no module, whose attributes are slow to set."""

    calls = rows = accepted = 0


class Network(nn.Module):
    """``dy/dt = W₂ tanh(W₁ y + b)``; it counts its calls and the rows that they hold."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(hidden, width, generator=generator) * 1.5 / width**0.5)
        self.bias = nn.Parameter(torch.randn(hidden, generator=generator))
        self.second = nn.Parameter(torch.randn(width, hidden, generator=generator) * 1.5 / hidden**0.5)
        self.count = Count()

    def reset(self) -> None:
        """Count from zero."""
        self.count = Count()

    def forward(self, t: Any, y: Tensor) -> Tensor:
        """The slope, in the order of arguments of the other libraries."""
        self.count.calls += 1
        self.count.rows += len(y)
        return linear(torch.tanh(linear(y, self.first, self.bias)), self.second)

    def callback_accept_step(self, t0: Any, y0: Any, dt: Any) -> None:
        """What torchdiffeq calls after each step that it takes."""
        self.count.accepted += 1

    def in_jax(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The same function of ``(t, y, weights)``, and the weights."""
        import jax.numpy as jnp

        weights = tuple(jnp.asarray(p.detach().numpy()) for p in (self.first, self.bias, self.second))
        return lambda t, y, w: jnp.tanh(y @ w[0].T + w[1]) @ w[2].T, weights


class Relaxation(Network):
    """``dy/dt = rate (cos t - y)`` with a rate for each sample, from 1 to 1000."""

    def __init__(self, samples: int) -> None:
        super().__init__(1, 1)
        self.rate = torch.logspace(0, 3, samples).unsqueeze(1)

    def forward(self, t: Any, y: Tensor, rate: Tensor | None = None) -> Tensor:
        """The slope of all samples, or of those whose rates are given."""
        self.count.calls += 1
        self.count.rows += len(y)
        angle = torch.as_tensor(t, dtype=y.dtype).cos().reshape(-1, 1)
        return (self.rate if rate is None else rate) * (angle - y)

    def in_jax(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """The same function of ``(t, y, rate)``, and the rates."""
        import jax.numpy as jnp

        return lambda t, y, rate: rate * (jnp.cos(t) - y), (jnp.asarray(self.rate.numpy()),)


class Outcome(NamedTuple):
    """The end of a solution.

    Attributes:
        y: the final state, in the library's own kind of array.
        accepted: steps of the sample that took most.
        calls: evaluations of the field for the batch.
        rows: the same times the samples that were evaluated.
    """

    y: Any
    accepted: int
    calls: int
    rows: int


Solver = Callable[[Tensor], Outcome]
"""From the initial states; what is compiled is compiled once."""


def odecore_solver(field: Network, end: float, tolerance: float) -> Solver:
    """This library: every sample has its steps."""
    args = (field.rate,) if isinstance(field, Relaxation) else ()

    def run(y0: Tensor) -> Outcome:
        field.reset()
        solution = solve(DORMAND_PRINCE, lambda y, t, *more: field(t, y, *more), y0, 0.0, end, rtol=tolerance,
                         atol=tolerance, args=args)
        return Outcome(solution.y, int(solution.accepted.max()), field.count.calls, field.count.rows)

    return run


def torchdiffeq_solver(field: Network, end: float, tolerance: float) -> Solver:
    """torchdiffeq: one sequence of steps for the batch."""
    from torchdiffeq import odeint

    times = torch.tensor([0.0, end])

    def run(y0: Tensor) -> Outcome:
        field.reset()
        y = odeint(field, y0, times, method="dopri5", rtol=tolerance, atol=tolerance)[-1]
        return Outcome(y, field.count.accepted, field.count.calls, field.count.rows)

    return run


def torchode_solver(field: Network, end: float, tolerance: float) -> Solver:
    """torchode: every sample has its steps, and finished ones stay in the batch."""
    import torchode

    term = torchode.ODETerm(field, with_stats=False)
    method = torchode.Dopri5(term=term)
    controller = torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term)
    adjoint = torchode.AutoDiffAdjoint(method, controller, backprop_through_step_size_control=False)

    def run(y0: Tensor) -> Outcome:
        field.reset()
        starts, ends = torch.zeros(len(y0)), torch.full((len(y0),), end)
        solution = adjoint.solve(torchode.InitialValueProblem(y0=y0, t_start=starts, t_end=ends))
        return Outcome(solution.ys[:, -1] if solution.ys.ndim == 3 else solution.ys,
                       int(solution.stats["n_accepted"].max()), field.count.calls, field.count.rows)

    return run


def diffrax_solver(field: Network, end: float, tolerance: float) -> Solver:
    """diffrax, compiled: every sample has its steps (`vmap`), and finished ones stay in the batch."""
    import diffrax
    import jax

    slope, weights = field.in_jax()
    own = isinstance(field, Relaxation)

    def one(y: Any, w: Any) -> Any:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: slope(t, y, *([args] if not own else args))), diffrax.Dopri5(), 0.0, end,
            None, y, args=w, stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            max_steps=16384)
        return solution.ys[-1], solution.stats["num_accepted_steps"], solution.stats["num_steps"]

    compiled = jax.jit(jax.vmap(one, in_axes=(0, 0 if own else None)))

    def run(y0: Tensor) -> Outcome:
        y, accepted, attempts = jax.block_until_ready(compiled(y0.detach().numpy(), weights))
        calls = 6 * int(attempts.max()) + 1
        return Outcome(y, int(accepted.max()), calls, calls * len(y0))

    def gradient(y0: Tensor) -> Any:
        return differentiated(y0.detach().numpy(), weights)

    differentiated = jax.jit(jax.grad(lambda y, w: (jax.vmap(one, in_axes=(0, None))(y, w)[0] ** 2).mean(),
                                      argnums=(0, 1)))
    run.gradient = lambda y0: jax.block_until_ready(gradient(y0))  # type: ignore[attr-defined]
    return run


SOLVERS: Mapping[str, tuple[str, Callable[[Network, float, float], Solver]]] = {
    "odecore": ("odecore", odecore_solver), BASELINE: (BASELINE, torchdiffeq_solver),
    "torchode": ("torchode", torchode_solver), "diffrax (compiled)": ("diffrax", diffrax_solver)}
"""By name: the module that is needed, and what makes the solver."""


def importable() -> dict[str, Callable[[Network, float, float], Solver]]:
    """The solvers whose libraries are here; says which are not."""
    found = {}
    for name, (module, make) in SOLVERS.items():
        if importlib.util.find_spec(module) is None:
            print(f"{module} is not installed: left out (pip install 'fewstep[bench]')")
        else:
            found[name] = make
    return found


def alternate(tasks: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of all tasks in turn, ``rounds`` times, after two rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    gc.collect()
    gc.disable()
    try:
        for index in range(rounds + 2):
            for name, task in tasks.items():
                started = time.process_time()
                task()
                if index >= 2:
                    seconds[name].append(time.process_time() - started)
            gc.collect()
    finally:
        gc.enable()
    return seconds


def ratio(seconds: Mapping[str, list[float]], one: str, other: str, scale: float = 1.0) -> float:
    """Median of the ratios within a round, times a scale."""
    return scale * statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def verdict(value: float, goal: float) -> str:
    """Say whether a goal is met."""
    return f"goal ≤ {goal:g}: {'met' if value <= goal else 'missed'}"


def time_steps(makers: Mapping[str, Callable[..., Solver]], batch: int, rounds: int, shape: tuple[int, int]) -> None:
    """Print the time of a step of each solver at one batch size.

    An attempt is six evaluations. Where every sample has its steps, accepted ones are those of the
    sample that takes most, which may have been rejected in other attempts than the rest. The share in
    the field is what PyTorch's needs for the rows evaluated, in whole batches: a floor (not for diffrax's own).
    """
    field = Network(*shape)
    y0 = torch.randn(batch, shape[0], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        solvers = {name: make(field, END, TOLERANCE) for name, make in makers.items()}
        outcomes = {name: solver(y0) for name, solver in solvers.items()}
        exact = solve(DORMAND_PRINCE, lambda y, t: field.double()(t, y), y0.double(), 0.0, END, rtol=1e-10,
                      atol=1e-10).y
        field.float()
        tasks: dict[str, Callable[[], Any]] = {name: lambda run=run: run(y0) for name, run in solvers.items()}
        seconds = alternate(tasks | {"field": lambda: [field(0.0, y0) for _ in range(20)]}, rounds)
    once = statistics.median(seconds["field"]) / 20
    print(f"\nbatch {batch}: one evaluation takes {once * 1e6:.0f} µs")
    print(f"{'':20}{'accepted':>9}{'attempts':>9}{'evaluated':>10}{'ms':>8}{'µs an accepted':>15}{'of ' + BASELINE:>15}"
          f"{'µs an attempt':>15}{'of ' + BASELINE:>15}{'error':>9}{'in field':>10}")
    for name, outcome in outcomes.items():
        total, attempts = statistics.median(seconds[name]), outcome.calls / 6
        error = (torch.as_tensor(outcome.y.tolist(), dtype=torch.float64) - exact).norm(dim=1).median()
        shares = [ratio(seconds, name, BASELINE, of(outcomes[BASELINE]) / of(outcome)) if BASELINE in outcomes
                  else float("nan") for of in (lambda o: o.accepted, lambda o: o.calls)]
        print(f"{name:20}{outcome.accepted:9d}{attempts:9.0f}{outcome.rows:10d}{total * 1e3:8.2f}"
              f"{total / outcome.accepted * 1e6:15.0f}{shares[0]:15.2f}{total / attempts * 1e6:15.0f}{shares[1]:15.2f}"
              f"{error:9.0e}{once * outcome.rows / batch / total:10.0%}")
    for other, goal in GOALS.items():
        if other in outcomes:
            share = per_step(seconds, outcomes, "odecore", other)
            # What is evaluated for fewer samples is not subtracted in full, so that this holds for small batches.
            outside = [statistics.median((t - f / 20 * outcomes[name].calls) / outcomes[name].calls
                                         for t, f in zip(seconds[name], seconds["field"], strict=True))
                       for name in ("odecore", other)]
            print(f"odecore / {other} = {share:.2f} for an accepted step ({verdict(share, goal)})"
                  + (f", {outside[0] / outside[1]:.2f} for an attempt outside the field" if batch < 1000 else ""))


def per_step(seconds: Mapping[str, list[float]], outcomes: Mapping[str, Outcome], one: str, other: str) -> float:
    """Ratio of the times of an accepted step."""
    return ratio(seconds, one, other, outcomes[other].accepted / outcomes[one].accepted)


@torch.no_grad()
def count_evaluations(makers: Mapping[str, Callable[..., Solver]], batch: int, rounds: int) -> None:
    """Print what a batch of unequal stiffness costs."""
    field, y0, end = Relaxation(batch), torch.ones(batch, 1), 2.0
    solvers = {name: make(field, end, 1e-4) for name, make in makers.items()}
    outcomes = {name: solver(y0) for name, solver in solvers.items()}
    seconds = alternate({name: lambda run=run: run(y0) for name, run in solvers.items()}, rounds)
    print(f"{'':20}{'accepted':>9}{'calls':>7}{'sample evaluations':>20}{'ms':>9}{'of odecore':>12}")
    for name, outcome in outcomes.items():
        print(f"{name:20}{outcome.accepted:9d}{outcome.calls:7d}{outcome.rows:20d}"
              f"{statistics.median(seconds[name]) * 1e3:9.1f}{outcome.rows / outcomes['odecore'].rows:12.2f}")
    if BASELINE in outcomes:
        saved = outcomes[BASELINE].rows / outcomes["odecore"].rows
        print(f"{BASELINE} / odecore = {saved:.2f} (goal ≥ {SAVING:g}: {'met' if saved >= SAVING else 'missed'})")


def time_gradients(
    makers: Mapping[str, Callable[..., Solver]], batch: int, rounds: int, shape: tuple[int, int],
) -> None:
    """Print the time of a solution and its gradient with respect to start and weights."""
    field = Network(*shape)
    y0 = torch.randn(batch, shape[0], generator=torch.Generator().manual_seed(1)).requires_grad_()
    solvers = {name: make(field, END, TOLERANCE) for name, make in makers.items()}

    def task(solver: Any) -> Callable[[], Any]:
        if hasattr(solver, "gradient"):
            return lambda: solver.gradient(y0)
        return lambda: torch.autograd.grad(solver(y0).y.square().mean(), (y0, *field.parameters()))

    outcomes = {name: solver(y0) for name, solver in solvers.items()}
    seconds = alternate({name: task(solver) for name, solver in solvers.items()}, rounds)
    print(f"\nbatch {batch}\n{'':20}{'accepted':>9}{'µs a step':>11}{'of ' + BASELINE:>16}")
    for name, outcome in outcomes.items():
        each = statistics.median(seconds[name]) / outcome.accepted
        share = per_step(seconds, outcomes, name, BASELINE) if BASELINE in outcomes else float("nan")
        print(f"{name:20}{outcome.accepted:9d}{each * 1e6:11.1f}{share:16.2f}")


def main() -> None:
    """Run all parts and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="runs of each solver")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64, 4096])
    parser.add_argument("--width", type=int, default=4, help="components of a state")
    parser.add_argument("--hidden", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = (arguments.width, arguments.hidden)
    print("\n".join(f"{key}: {value}" for key, value in surroundings().items()))
    makers = importable()
    print(f"\n1. Time of a step: perceptron of {shape[0]} – {shape[1]} – {shape[0]}, float32, tolerances {TOLERANCE:g}")
    for batch in arguments.batches:
        time_steps(makers, batch, arguments.rounds, shape)
    print("\n2. A batch of unequal stiffness: 64 rates from 1 to 1000, tolerances 1e-4")
    count_evaluations(makers, 64, max(3, arguments.rounds // 5))
    print("\n3. Time of a step with its gradient, with respect to start and weights")
    for batch in arguments.batches:
        time_gradients(makers, batch, arguments.rounds, shape)


if __name__ == "__main__":
    main()
