"""Measured orders of every method of odecore: the solution, its error estimate, and between the steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from eval.convergence import slope
from eval.order_problems import GENERAL, MECHANICAL, ClosedForm
from odecore.driver.integrate import Grid
from odecore.explicit import adams, embedded, pairs, symplectic, tableaus
from odecore.explicit.embedded import EmbeddedPair
from odecore.explicit.interpolants import Interpolant
from odecore.explicit.symplectic import Symplectic
from odecore.explicit.tableaus import Tableau
from odecore.explicit.taylor import Taylor
from odecore.exponential import adams as exponential_adams
from odecore.exponential import rosenbrock
from odecore.exponential import tableaus as exponential_tableaus
from odecore.exponential.rosenbrock import ExponentialRosenbrock, RosenbrockTableau
from odecore.exponential.runge_kutta import ExponentialRungeKutta
from odecore.exponential.tableaus import ExponentialTableau
from odecore.half_steps import HalfSteps
from odecore.implicit import additive_tableaus as imex_tableaus
from odecore.implicit import runge_kutta as implicit_runge_kutta
from odecore.implicit.additive import AdditiveRungeKutta
from odecore.implicit.additive_tableaus import AdditiveTableau
from odecore.implicit.newton import Chord
from odecore.implicit.runge_kutta import ImplicitRungeKutta
from odecore.problem import ODE, Problem, Semilinear, Separable, Split
from odecore.stepper import Stepper, column

TOLERANCE, HIGH_TOLERANCE = 0.15, 0.25
"""How far a measured order may be from the declared one: below 7, and from there on, where rounding ends the
measurement before the error is its first term alone."""

POINTS = 4
"""Errors that a slope is fitted to: the last above rounding."""

RANGES = {1: (32, 128), 2: (20, 80), 3: (16, 80), 4: (14, 80), 5: (12, 64), 6: (8, 48), 7: (6, 40), 8: (4, 30)}
"""Least and greatest number of steps by order: where an error is its first term, and above rounding."""

MULTISTEP_RANGES = {1: (32, 128), 2: (32, 128), 3: (32, 160), 4: (40, 160), 5: (48, 160), 6: (64, 200), 7: (44, 200),
                    8: (36, 150)}
"""The same for multistep methods, whose errors are larger, and whose first steps are not theirs."""

ROUNDING = 1.5e-14
"""Errors below are rounding."""

LEFT_OVER = 1e-11
"""Errors below may be what an iteration left over."""

_SOLVER = Chord(tolerance=1e-15)


class Method(NamedTuple):
    """A method as the sweep runs it.

    Attributes:
        family: what it is listed under.
        name: of the method in its module.
        stepper: the method.
        form: kind of problem that it takes.
        between: order of the dense output; 0 if it is not measured.
    """

    family: str
    name: str
    stepper: Stepper
    form: type
    between: int


class Orders(NamedTuple):
    """Measured orders of a method on one problem; nan where too few errors lie above rounding.

    Attributes:
        problem: its name.
        end: of the error at the end.
        estimate: of the mean error estimate in the second half of the time.
        between: of the largest error at four points within the last step.
    """

    problem: str
    end: float
    estimate: float
    between: float


def constants(module: ModuleType, kind: type) -> dict[str, Any]:
    """All public values of a kind in a module, by name, so that a new method is swept by itself."""
    return {name: value for name, value in vars(module).items() if isinstance(value, kind) and name[0] != "_"}


def methods() -> Iterator[Method]:
    """Every method of odecore for ordinary equations."""
    for name, tableau in (constants(tableaus, Tableau) | constants(pairs, Tableau)).items():
        between = tableau.order if tableau.order <= 4 else 0  # bootstrapped; above, two terms of the error compete
        yield Method("explicit", name, pairs.without_error(tableau), ODE, between)
    for name, pair in (constants(embedded, EmbeddedPair) | constants(pairs, EmbeddedPair)).items():
        yield Method("embedded pair", name, pair, ODE, _between(pair.order, pair.interpolant))
    for order in range(1, adams.HIGHEST_ORDER + 1):
        yield Method("Adams", f"Adams-Bashforth {order}", adams.adams_bashforth(order), ODE, order)
    for order in range(2, adams.HIGHEST_ORDER + 1):
        yield Method("Adams", f"Adams-Moulton {order}", adams.adams_bashforth_moulton(order), ODE, order)
    for order in range(1, 7):
        yield Method("Taylor", f"Taylor {order}", Taylor(order), ODE, order)
    for name, method in constants(implicit_runge_kutta, ImplicitRungeKutta).items():
        yield Method("implicit", name, replace(method, solver=_SOLVER), ODE, method.order)
    for family, form in (("IMEX", Split), ("IMEX, linear", Semilinear)):
        for name, tableau in constants(imex_tableaus, AdditiveTableau).items():
            method = AdditiveRungeKutta(tableau, _SOLVER)
            yield Method(family, name, method, form, _between(tableau.order, tableau.interpolant))
    for name, tableau in constants(exponential_tableaus, ExponentialTableau).items():
        yield Method("exponential", name, ExponentialRungeKutta(tableau), Semilinear, tableau.order)
    for order in range(1, exponential_adams.HIGHEST_ORDER + 1):
        yield Method("exponential Adams", f"predictor {order}",
                     exponential_adams.exponential_adams_bashforth(order), Semilinear, order)
        if order > 1:
            yield Method("exponential Adams", f"corrector {order}",
                         exponential_adams.exponential_adams_bashforth_moulton(order), Semilinear, order)
    for name, tableau in constants(rosenbrock, RosenbrockTableau).items():
        yield Method("Rosenbrock", name, ExponentialRosenbrock(tableau, tolerance=1e-15), ODE, tableau.order)
    for name, method in constants(symplectic, Symplectic).items():
        yield Method("symplectic", name, method, Separable, method.order)
    for name, pair in (("HEUN_EULER", embedded.HEUN_EULER), ("DORMAND_PRINCE", embedded.DORMAND_PRINCE)):
        yield Method("half steps", name, HalfSteps(pair), ODE, pair.order)


def _between(order: int, interpolant: Interpolant | None) -> int:
    """Order of the dense output: a step's is O(h^{q+1}) for an interpolant of order q."""
    return order if interpolant is None else min(order, interpolant.order + 1)


def ladder(method: Method, rungs: int = 10) -> list[int]:
    """Even numbers of steps for a method, about evenly spaced on a logarithmic scale."""
    return rungs_between(*(MULTISTEP_RANGES if "Adams" in method.family else RANGES)[method.stepper.order], rungs)


def rungs_between(least: int, most: int, rungs: int) -> list[int]:
    """Even numbers, about evenly spaced on a logarithmic scale."""
    return sorted({2 * round(n / 2) for n in np.geomspace(least, most, rungs)})


def measure(method: Method, case: ClosedForm) -> Orders | None:
    """Measure the orders of a method on a problem; None if the problem has no form that the method takes.

    All numbers of steps are samples of one batch. Those with fewer steps rest at first, so that all
    take their last step together.

    Cost: as many steps as the greatest number.
    """
    problem = case.form(method.form)
    if problem is None:
        return None
    numbers = ladder(method)
    errors = _errors(method, problem, case, numbers)
    floor = LEFT_OVER if method.family in ("implicit", "IMEX") else ROUNDING
    return Orders(case.name, *(fitted(numbers, error, floor) for error in errors))


@torch.no_grad()
def _errors(method: Method, problem: Problem, case: ClosedForm, numbers: Sequence[int]) -> tuple[list[float], ...]:
    """Error at the end, mean late estimate, and error within the last step, for each number of steps."""
    start = case.exact(0.0)
    most, samples = max(numbers), len(start)
    steps = torch.arange(most + 1, dtype=torch.float64)
    nodes = torch.stack([case.end * (steps - (most - n)).clamp(min=0) / n for n in numbers], 1)
    copies = torch.cat([start] * len(numbers))
    grid = Grid.of(method.stepper, problem, copies, nodes.repeat_interleave(samples, 1), ())
    y, carry, _ = grid.start(copies)
    estimate = torch.zeros_like(y)
    for index in range(most):
        before, step = y, grid.step(index, y, carry)
        y, carry = step.y, step.carry
        late = grid.nodes[index] + grid.nodes[index + 1] >= case.end  # the middle of the step
        estimate = estimate + column(late * (grid.nodes[index + 1] - grid.nodes[index]), y) * step.error.abs()

    def largest(values: Tensor) -> list[float]:
        return values.abs().reshape(len(numbers), -1).amax(1).tolist()

    within = torch.zeros(len(y), dtype=torch.float64)
    if method.between:
        taken = grid.taken(most - 1, before, step)
        for share in (0.2, 0.4, 0.6, 0.8):
            times = torch.lerp(taken.t0, taken.t1, share)
            exact = torch.cat([case.exact(t) for t in times[::samples].tolist()])
            off = (taken.at(times) - exact).abs().reshape(len(y), -1).amax(1)
            within = torch.maximum(within, off)
    end = torch.cat([case.exact(case.end)] * len(numbers))
    return largest(y - end), largest(estimate), largest(within)


def fitted(numbers: Sequence[int], errors: Sequence[float], floor: float) -> float:
    """Slope of the last errors above the floor; nan if these are too few."""
    points = [(n, e) for n, e in zip(numbers, errors, strict=True) if floor < e < math.inf][-POINTS:]
    return slope(*zip(*points, strict=True)) if len(points) >= 4 else math.nan


class Verdict(NamedTuple):
    """Declared and measured orders of one quantity.

    Attributes:
        declared: what the method says.
        measured: on each problem.
        met: whether the least of them is the declared one, within the tolerance.
    """

    declared: int
    measured: tuple[float, ...]
    met: bool


def tolerance(order: int) -> float:
    """How far a measured order may be from the declared one."""
    return TOLERANCE if order < 7 else HIGH_TOLERANCE


def judge(declared: int, measured: Sequence[float]) -> Verdict:
    """Compare orders: some problems hide a term of the error, so the least order counts."""
    known = [order for order in measured if not math.isnan(order)]
    return Verdict(declared, tuple(measured), bool(known) and abs(min(known) - declared) <= tolerance(declared))


class Line(NamedTuple):
    """All that was measured of a method; what was not is None."""

    family: str
    name: str
    problems: tuple[str, ...]
    end: Verdict
    estimate: Verdict | None
    between: Verdict | None


def sweep(method: Method) -> Line:
    """Measure a method on all problems."""
    found = [orders for case in (*GENERAL, *MECHANICAL) if (orders := measure(method, case)) is not None]
    k = method.stepper.error_order
    return Line(method.family, method.name, tuple(o.problem for o in found),
                judge(method.stepper.order, [o.end for o in found]),
                judge(k, [o.estimate for o in found]) if k else None,
                judge(method.between, [o.between for o in found]) if method.between else None)


def table(lines: Iterable[Line]) -> Table:
    """Lay out declared orders and, by problem, measured ones."""
    out = Table("", "method", "order", "error estimate", "dense output",
                title=f"Declared order: measured ones, on problems that are {', '.join(c.name for c in GENERAL)} "
                      f"(symplectic methods: {', '.join(c.name for c in MECHANICAL)})",
                caption=f"–: within rounding; ✗: the least differs from the declared order by more than {TOLERANCE}, "
                        f"{HIGH_TOLERANCE} from order 7 on")
    family = ""
    for line in lines:
        if line.family != family and family:
            out.add_section()
        out.add_row("" if line.family == family else line.family, line.name,
                    *map(_cell, (line.end, line.estimate, line.between)))
        family = line.family
    return out


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return ""
    measured = " ".join("   –" if math.isnan(order) else f"{order:4.2f}" for order in verdict.measured)
    return f"{verdict.declared}: {measured} {'✓' if verdict.met else '✗'}"
