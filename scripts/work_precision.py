"""Draw the error of stiff solvers against their work: `python scripts/work_precision.py --figure work_precision.png`.

Four stiff problems of the literature (:mod:`eval.stiff_problems`), each solved at several tolerances by our
implicit, additive (IMEX), exponential and explicit methods and by SciPy's Radau, BDF and LSODA. Work is counted in
evaluations of the right-hand side, iterations and products with a Jacobian included; a Jacobian counts as n
evaluations, ours and SciPy's, which gets it as a formula. It is also given in seconds of processor time on one
thread, where SciPy evaluates NumPy and we evaluate PyTorch, one sample alone. Linear parts that are solved exactly
(Kuramoto–Sivashinsky in Fourier space) count nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp

from eval import stiff_problems
from eval.stiff_problems import StiffProblem, error, reference
from odecore.driver.solve import solve
from odecore.explicit.embedded import DOP853, TSITOURAS
from odecore.exponential import rosenbrock, tableaus
from odecore.exponential.rosenbrock import ExponentialRosenbrock
from odecore.exponential.runge_kutta import ExponentialRungeKutta
from odecore.implicit.additive import KENCARP4, KENCARP5
from odecore.implicit.runge_kutta import KVAERNO3, KVAERNO5, RADAU5
from odecore.problem import ODE, Semilinear, Split
from odecore.stepper import Stepper


class Solved(NamedTuple):
    """A solution at the end, of shape (n,), nan where it was not reached, and its evaluations."""

    y: stiff_problems.Array
    nfe: int


class Point(NamedTuple):
    """One solve.

    Attributes:
        problem, method: their names.
        rtol: the relative tolerance that it got.
        error: at the end; nan where it was not reached.
        nfe: evaluations.
        seconds: of processor time.
    """

    problem: str
    method: str
    rtol: float
    error: float
    nfe: int
    seconds: float


Run = Callable[[StiffProblem, float], Solved]
"""``(problem, rtol) -> solution``."""


@torch.no_grad()
def ours(stepper: Stepper, form: type, problem: StiffProblem, rtol: float) -> Solved:
    """Solve by one of our methods, which takes the problem in a form."""
    found = solve(stepper, problem.forms[form], problem.start, 0.0, problem.end, rtol=rtol,
                  atol=rtol * problem.relative_atol, partial=True, max_steps=20_000)
    products = found.krylov if isinstance(stepper, ExponentialRosenbrock) else 0  # others count theirs as evaluations
    reached = bool((found.t == problem.end).all())
    return Solved(found.y[0].numpy() if reached else np.full(problem.start.shape[1], math.nan), found.nfe + products)


def scipys(method: str, problem: StiffProblem, rtol: float) -> Solved:
    """Solve by one of SciPy's methods."""
    n, calls = problem.start.shape[1], [0, 0]

    def slope(t: float, y: stiff_problems.Array) -> stiff_problems.Array:
        calls[0] += 1
        return problem.slope(t, y)

    def jacobian(t: float, y: stiff_problems.Array) -> stiff_problems.Array:
        calls[1] += 1
        return problem.jacobian(t, y)

    found = solve_ivp(slope, (0.0, problem.end), problem.start[0].numpy(), method=method, rtol=rtol,
                      atol=rtol * problem.relative_atol, t_eval=[problem.end], jac=jacobian)
    return Solved(found.y[:, -1] if found.success else np.full(n, math.nan), calls[0] + n * calls[1])


@dataclass(frozen=True, slots=True)
class Panel:
    """A problem and who solves it.

    Args:
        problem: makes it.
        quick: makes one like it that is solved in a moment.
        methods: by what they are called.
    """

    problem: Callable[[], StiffProblem]
    quick: Callable[[], StiffProblem]
    methods: Mapping[str, Run]


SCIPY: Mapping[str, Run] = {f"SciPy {name}": partial(scipys, name) for name in ("Radau", "BDF", "LSODA")}
IMPLICIT: Mapping[str, Run] = {"Kværnø 3": partial(ours, KVAERNO3, ODE), "Kværnø 5": partial(ours, KVAERNO5, ODE),
                               "Radau 5": partial(ours, RADAU5, ODE)}
KRYLOV: Mapping[str, Run] = {"EXPRB43": partial(ours, ExponentialRosenbrock(rosenbrock.EXPRB43), ODE)}

PANELS: Mapping[str, Panel] = {
    "robertson": Panel(stiff_problems.robertson, partial(stiff_problems.robertson, 4.0), IMPLICIT | SCIPY),
    "hires": Panel(stiff_problems.hires, partial(stiff_problems.hires, 1.0),
                   IMPLICIT | KRYLOV | {"DOP853": partial(ours, DOP853, ODE)} | SCIPY),
    "van-der-pol": Panel(stiff_problems.van_der_pol, partial(stiff_problems.van_der_pol, 200.0),
                         IMPLICIT | {"KenCarp 4 (IMEX)": partial(ours, KENCARP4, Split)} | SCIPY),
    "kuramoto-sivashinsky": Panel(
        stiff_problems.kuramoto_sivashinsky, partial(stiff_problems.kuramoto_sivashinsky, 5.0, 32),
        {"ETD-RK4": partial(ours, ExponentialRungeKutta(tableaus.ETD_RK4), Semilinear),
         "Krogstad": partial(ours, ExponentialRungeKutta(tableaus.KROGSTAD), Semilinear),
         "KenCarp 4 (IMEX)": partial(ours, KENCARP4, Semilinear),
         "KenCarp 5 (IMEX)": partial(ours, KENCARP5, Semilinear),
         "Tsitouras (explicit)": partial(ours, TSITOURAS, ODE), **KRYLOV, **SCIPY}),
}
"""By name."""

TOLERANCES = (1e-3, 1e-5, 1e-7, 1e-9)
QUICK = (1e-3, 1e-5)
GOALS = (1e-3, 1e-5, 1e-7)
"""Errors for which the table gives the work."""
PATIENCE = 3.0
"""Seconds of a solve after which a method gets no tighter tolerance."""


def measure(problem: StiffProblem, methods: Mapping[str, Run], tolerances: Sequence[float]) -> list[Point]:
    """Solve a problem by all methods, at one tolerance after the other."""
    points = []
    reference(problem)
    for name, run in methods.items():
        for rtol in tolerances:
            begun = time.process_time()
            solved = run(problem, rtol)
            seconds = time.process_time() - begun
            points.append(Point(problem.name, name, rtol, error(problem, solved.y), solved.nfe, seconds))
            if seconds > PATIENCE:
                break
    return points


def work_for(points: Sequence[Point], goal: float, work: str) -> float:
    """The least work of a solve whose error is no larger; nan if there is none."""
    return min((getattr(p, work) for p in points if p.error <= goal), default=math.nan)


def print_table(problem: StiffProblem, points: Sequence[Point]) -> None:
    """Print every solve, and the work for errors in between."""
    print(f"\n{problem.name} to t = {problem.end:g}, n = {problem.start.shape[1]}; "
          f"the reference is known to {reference(problem).gap:.0e}")
    print(f"{'error (evaluations, s) at rtol':24}" + "".join(f"{rtol:>22.0e}" for rtol in
                                                             dict.fromkeys(p.rtol for p in points)))
    for name in dict.fromkeys(p.method for p in points):
        mine = [p for p in points if p.method == name]
        print(f"{name:24}" + "".join(f"{p.error:9.1e} ({p.nfe:6d},{p.seconds:4.1f})"[:22].rjust(22) for p in mine))
    print(f"{'least for an error of':24}" + "".join(f"{goal:>22.0e}" for goal in GOALS))
    for name in dict.fromkeys(p.method for p in points):
        mine = [p for p in points if p.method == name]
        least = [(work_for(mine, goal, "nfe"), work_for(mine, goal, "seconds")) for goal in GOALS]
        print(f"{name:24}" + "".join(f"{nfe:12.0f}, {seconds:6.2f} s" for nfe, seconds in least))


def draw(found: Mapping[str, Sequence[Point]], path: Path) -> None:
    """Draw errors against evaluations in the upper row, and against seconds in the lower."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(found), figsize=(4.4 * len(found), 9), layout="constrained", squeeze=False)
    colours = dict(zip(dict.fromkeys(p.method for points in found.values() for p in points),
                       pyplot.get_cmap("tab20").colors[::2] + pyplot.get_cmap("tab20").colors[1::2], strict=False))
    for (title, points), above, below in zip(found.items(), *axes, strict=True):
        for name in dict.fromkeys(p.method for p in points):
            mine = [p for p in points if p.method == name and math.isfinite(p.error)]
            style = "--" if name in SCIPY else "-"
            for axis, work in ((above, "nfe"), (below, "seconds")):
                axis.loglog([p.error for p in mine], [getattr(p, work) for p in mine], style, marker="o",
                            markersize=3, linewidth=1.2, label=name, color=colours[name])
        for axis in (above, below):
            axis.invert_xaxis()
            axis.grid(alpha=0.3)
        above.set(title=title, ylabel="evaluations")
        below.set(xlabel="relative error at the end", ylabel="seconds of processor time")
        above.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=60)
    pyplot.close(figure)
    print(f"\nwrote {path}")


def main() -> None:
    """Measure, print, draw and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PANELS, default=list(PANELS))
    parser.add_argument("--quick", action="store_true", help="smaller problems, two tolerances: no figures to quote")
    parser.add_argument("--figure", type=Path, help="picture to draw")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in arguments.problems:
        panel = PANELS[name]
        problem = (panel.quick if arguments.quick else panel.problem)()
        found[problem.name] = measure(problem, panel.methods, QUICK if arguments.quick else TOLERANCES)
        print_table(problem, found[problem.name])
    if arguments.out is not None:
        arguments.out.write_text(json.dumps([p._asdict() for points in found.values() for p in points], indent=1))
    if arguments.figure is not None:
        draw(found, arguments.figure)


if __name__ == "__main__":
    main()
