"""Measured orders of convergence: the regression slope of the error against the number of steps.

``python -m eval.order`` prints them for every solver, on the probability-flow ODE of a Gaussian mixture,
and those of :mod:`eval.order_ode` and :mod:`eval.order_sde`; ``python -m eval.order ode`` one table alone.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.integrate import solve_ivp
from torch import Tensor

from eval import order_ode, order_schemes, order_sde
from eval.convergence import Convergence, convergence_order
from eval.order_weak import weak_order
from odecore.plan import execute
from samplers.adaptive import EmbeddedDPMSolver
from samplers.compile import compile_plan
from samplers.grids import Grid
from samplers.registry import SOLVERS
from samplers.solver import AdaptiveSolver, Solver
from scoremodels.analytic import MixtureModel
from scoremodels.schedule import ContinuousVP, NoiseSchedule

Ramp = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Maps equal parts of [0, 1] to parts of an interval."""

BUDGETS = (60, 84, 120, 168)
"""Network evaluations of each measurement."""


@dataclass(frozen=True)
class MixtureProblem:
    """The probability-flow ODE of a mixture of isotropic Gaussians, between two log-SNRs.

    In ``y = x/α`` and ``ρ = σ/α`` it reads ``dy/dρ = ε = Σ_k π_k(y) (y - μ_k) ρ/(s_k² + ρ²)`` with
    the posterior weights π_k. This form gives the reference; solvers see the model's prediction.
    The drift of the reverse SDE with noise of strength η = τ² is (1 + η) times as large.

    Args:
        schedule: noise schedule.
        start: log-SNR at the start.
        end: log-SNR at the end, finite.
        points: number of start points.
        strength: η, of whose SDE the drift is integrated; 0 is the ODE.
    """

    schedule: NoiseSchedule
    start: float = -2.0
    end: float = 1.5
    points: int = 8
    strength: float = 0.0

    means = np.array([[1.0, 0.4], [-0.8, 0.9], [0.1, -1.1]])
    stds = np.array([0.5, 0.3, 0.4])
    weights = np.array([0.5, 0.2, 0.3])

    @cached_property
    def model(self) -> MixtureModel:
        """The exact denoiser."""
        return MixtureModel(self.means, self.stds, self.weights, self.schedule)

    @cached_property
    def x_start(self) -> NDArray[np.float64]:
        """Draws of the mixture with noise, at the start; of shape (points, 2)."""
        generator = np.random.default_rng(0)
        chosen = generator.choice(len(self.weights), size=self.points, p=self.weights)
        scale = np.sqrt(self.stds[chosen] ** 2 + math.exp(-2 * self.start))[:, None]
        y = self.means[chosen] + scale * generator.standard_normal((self.points, 2))
        return y * self.schedule.alpha(self.schedule.time_of_log_snr(self.start))

    def slope(self, rho: float, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """``dy/dρ`` for the flattened points."""
        offsets = y.reshape(-1, 1, 2) - self.means
        variances = self.stds**2 + rho**2
        exponents = np.log(self.weights) - np.log(variances) - (offsets**2).sum(2) / (2 * variances)
        posterior = np.exp(exponents - exponents.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
        return (1 + self.strength) * np.einsum("nk,nkd->nd", posterior * rho / variances, offsets).ravel()

    def solution(self, method: str = "DOP853", tolerance: float = 1e-13) -> NDArray[np.float64]:
        """Integrate with SciPy in ρ; returns x at the end, of shape (points, 2)."""
        t_start, t_end = (self.schedule.time_of_log_snr(value) for value in (self.start, self.end))
        span = (math.exp(-self.start), math.exp(-self.end))
        y = (self.x_start / self.schedule.alpha(t_start)).ravel()
        result = solve_ivp(self.slope, span, y, method=method, rtol=tolerance, atol=tolerance)
        return result.y[:, -1].reshape(-1, 2) * self.schedule.alpha(t_end)

    @cached_property
    def reversed(self) -> MixtureProblem:
        """The drift of the SDE that reverses the forward process, at levels where SA-Solver keeps to that too."""
        return replace(self, strength=1.0, start=self.start - 1.0, end=0.3)

    @cached_property
    def reference(self) -> Tensor:
        """The end points, to about 1e-12."""
        return torch.from_numpy(self.solution())

    def grid(self, ramp: Ramp) -> Grid:
        """A grid in log-SNR over the problem's interval: ``start + ramp(i/steps) (end - start)``."""

        def times(schedule: NoiseSchedule, steps: int, end: float) -> NDArray[np.float64]:
            values = schedule.time_of_log_snr(self.start + (self.end - self.start) * ramp(np.linspace(0, 1, steps + 1)))
            return np.append(values[:-1], end)

        return times

    def error(self, x: Tensor) -> float:
        """Largest distance of an end point from the reference."""
        return float((x - self.reference).norm(dim=1).max())


def uniform(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Equal steps."""
    return u


def smooth(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """Steps that shrink with their number squared towards both ends: ``3u² - 2u³``."""
    return u * u * (3 - 2 * u)


def solver_order(
    name: str, problem: MixtureProblem, *, ramp: Ramp = smooth,
    budgets: Sequence[int] = BUDGETS,
) -> Convergence:
    """Measure the order of a solver of the registry.

    A plan may begin and end with steps of lower order: a multistep method has no history at first,
    and a singlestep method spends what its whole steps leave over. One step of order q has an error
    of h^{q+1}; with equal steps a third-order method that starts or ends with a first-order step is
    therefore of order two as a whole. The default grid gives the scheme an accurate start and end:
    its first and last steps are of length h², which takes their error to h^4 or below, so that the
    scheme itself is measured. ``uniform`` shows what equal steps leave of it.

    The two adaptive solvers are run with the steps of the grid. Of those that add noise the order is that of
    the drift: they are run without their noise on ``problem.reversed``, within whose interval that drift (τ = 1)
    is that of all in the registry. Those that ``renoise`` have no such drift: theirs is the order of the variance
    that normally distributed data get. What becomes of their variance is measured by :mod:`eval.order_weak`.

    Args:
        name: name out of ``SOLVERS``.
        problem: the problem, away from σ = 0.
        ramp: how steps are spaced in log-SNR.
        budgets: at least four numbers of evaluations.

    Cost: the sum of the budgets, on a closed-form model.
    """
    solver = SOLVERS[name]
    if isinstance(solver, AdaptiveSolver):
        stepper = EmbeddedDPMSolver(problem.schedule, problem.model.prediction, solver.order)
        return convergence_order(lambda n: problem.error(_fixed_steps(stepper, problem, ramp, n)),
                                 [nfe // solver.order for nfe in budgets])
    if solver.renoises:
        end = float(problem.schedule.time_of_log_snr(problem.end))
        return weak_order(solver, problem.schedule, problem.grid(ramp), end, budgets=budgets)
    if solver.stochastic:
        problem = problem.reversed
    end = float(problem.schedule.time_of_log_snr(problem.end))
    plans = {}
    for nfe in budgets:
        plan = compile_plan(solver, problem.schedule, nfe=nfe, grid=problem.grid(ramp),
                            prediction=problem.model.prediction, end=end)
        times = plan.about["times"]
        assert isinstance(times, list)
        plans[len(times) - 1] = replace(plan, rows=tuple(replace(row, noise=0.0) for row in plan.rows))
    x = torch.from_numpy(problem.x_start)
    with torch.no_grad():
        return convergence_order(lambda n: problem.error(execute(plans[n], problem.model, x)), list(plans))


@torch.no_grad()
def _fixed_steps(
    stepper: EmbeddedDPMSolver, problem: MixtureProblem, ramp: Ramp,
    steps: int,
) -> Tensor:
    x = torch.from_numpy(problem.x_start)
    places = problem.start + (problem.end - problem.start) * ramp(np.linspace(0, 1, steps + 1))
    clocks = torch.from_numpy(places).unsqueeze(1).expand(-1, len(x)).contiguous()
    carry, _ = stepper.start(problem.model, clocks[0], x)
    for before, after in zip(clocks[:-1], clocks[1:], strict=True):
        x, carry, *_ = stepper.step(problem.model, before, after, x, carry)
    return x


def table(problem: MixtureProblem) -> str:
    """Measured orders of all solvers as Markdown: with short first and last steps, with equal steps, and weak ones.

    The last is that of the variance, with equal steps, of solvers that add noise.
    """
    lines = ["| solver | order | measured | with equal steps | of the variance | steps | error |",
             "|---|---|---|---|---|---|---|"]
    end = float(problem.schedule.time_of_log_snr(problem.end))
    for name, solver in SOLVERS.items():
        measured, plain = solver_order(name, problem), solver_order(name, problem, ramp=uniform)
        noisy = isinstance(solver, Solver) and solver.stochastic
        weak = f"{weak_order(name, problem.schedule, problem.grid(uniform), end).order:.2f}" if noisy else ""
        lines.append(f"| {name} | {solver.order} | {measured.order:.2f} | {plain.order:.2f} | {weak} | "
                     f"{measured.steps[-1]} | {measured.errors[-1]:.1e} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables asked for: of samplers' solvers, of odecore's methods, of stochastic ones."""
    parser = argparse.ArgumentParser(description="Measure orders of convergence.")
    parser.add_argument("tables", nargs="*", metavar="table", help="samplers, ode or sde; all if none is named")
    chosen = parser.parse_args().tables or ["samplers", "ode", "sde"]
    if unknown := set(chosen) - {"samplers", "ode", "sde"}:
        parser.error(f"no table {', '.join(sorted(unknown))}: choose from samplers, ode, sde")
    console = Console(width=150)  # what the widest table needs, on a terminal or not
    if "samplers" in chosen:
        print(table(MixtureProblem(ContinuousVP())))
    if "ode" in chosen:
        with console.status("Measuring") as status:
            lines = []
            for method in order_ode.methods():
                status.update(f"Measuring {method.name}")
                lines.append(order_ode.sweep(method))
            for scheme in order_schemes.all_schemes():
                status.update(f"Measuring {scheme.family} {scheme.name}")
                lines.append(order_schemes.sweep(scheme))
        console.print(order_ode.table(lines))
    if "sde" in chosen:
        console.print(order_sde.table(order_sde.strong_orders()))


if __name__ == "__main__":
    main()
