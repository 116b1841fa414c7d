"""Measured orders of what takes a whole grid at once: plans of :mod:`odecore.schemes`, and the reversible coupling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eval.order_ode import MULTISTEP_RANGES, RANGES, ROUNDING, Line, constants, fitted, judge, rungs_between
from eval.order_problems import GENERAL, ClosedForm
from odecore import schemes
from odecore.explicit import pairs, tableaus
from odecore.explicit.adams import HIGHEST_ORDER
from odecore.explicit.tableaus import Tableau
from odecore.exponential import tableaus as exponential_tableaus
from odecore.exponential.linear import Diagonal
from odecore.exponential.tableaus import ExponentialTableau
from odecore.gradients.reversible import reversible, runge_kutta_increment
from odecore.plan import Plan, Row, Weight, execute
from odecore.problem import ODE, Problem, RightHandSide, Semilinear
from odecore.schemes.exponential import inner_nodes
from odecore.schemes.predictor_corrector import with_corrector
from odecore.schemes.variable import Variable

Compile = Callable[[Variable, Sequence[float]], Sequence[Row]]
"""Turns a variable and a grid into the rows of a plan."""

RUNGS = 8

HIGHEST_EXPONENTIAL = 6
"""Highest order of an exponential Adams scheme that is measured: above, rounding comes before the first term."""

_SINGLESTEP = {1: (), 2: (0.5,), 3: (1 / 3, 2 / 3)}
"""Places of the inner nodes by order."""


class Scheme(NamedTuple):
    """A scheme as the sweep runs it.

    Attributes:
        family: what it is listed under.
        name: its order, or the name of its tableau.
        order: order of convergence.
        form: kind of problem that it takes.
        integrate: ``(problem, y0, end, steps) -> y(end)`` from time 0.
        multistep: whether its steps look back.
    """

    family: str
    name: str
    order: int
    form: type
    integrate: Callable[[Problem, Tensor, float, int], Tensor]
    multistep: bool = False


def all_schemes() -> Iterator[Scheme]:
    """Every scheme of odecore, in its classical and its exponential form."""
    explicit = constants(tableaus, Tableau) | constants(pairs, Tableau)
    for family, form in (("plan: runge_kutta", ODE), ("plan: runge_kutta, Lawson", Semilinear)):
        for name, tableau in explicit.items():
            yield Scheme(family, name, tableau.order, form, planned(_repeated(schemes.runge_kutta, tableau)))
    for name, method in constants(exponential_tableaus, ExponentialTableau).items():
        rows = _repeated(schemes.exponential_runge_kutta, method)
        yield Scheme("plan: exponential_runge_kutta", name, method.order, Semilinear, planned(rows))
    for order in _SINGLESTEP:
        rows = partial(_singlestep, order)
        yield Scheme("plan: exponential_singlestep", str(order), order, Semilinear, planned(rows))
    for suffix, form in (("", ODE), (", exponential", Semilinear)):
        for order in range(1, 5):
            grid = partial(_graded, order)
            yield Scheme(f"plan: exponential_multistep{suffix}", str(order), order, form,
                         planned(partial(_multistep, order), grid), True)
        for order in range(2, 5):
            yield Scheme(f"plan: with_corrector{suffix}", str(order), order, form,
                         planned(partial(_corrected, order), partial(_graded, order)), True)
        for least, scheme in ((1, schemes.adams_bashforth), (2, schemes.adams_bashforth_moulton)):
            for order in range(least, 1 + (HIGHEST_ORDER if form is ODE else HIGHEST_EXPONENTIAL)):
                compiled = planned(partial(_of_order, scheme, order))
                yield Scheme(f"plan: {scheme.__name__}{suffix}", str(order), order, form, compiled, True)
    for name, tableau in explicit.items():
        yield Scheme("reversible", name, tableau.order, ODE, partial(_reversible, tableau))


def planned(
    rows: Compile, grid: Callable[[float, int], Sequence[float]] | None = None
) -> Callable[[Problem, Tensor, float, int], Tensor]:
    """What integrates a problem by a plan: a plain one by its field, a semilinear one in the variable of its rate."""
    def integrate(problem: Problem, y0: Tensor, end: float, steps: int) -> Tensor:
        times = list(np.linspace(0.0, end, steps + 1)) if grid is None else list(grid(end, steps))
        variable = schemes.ode()
        part: RightHandSide = problem
        if isinstance(problem, Semilinear):
            assert isinstance(problem.linear, Diagonal)
            variable, part = _variable(problem.linear), problem.nonlinear

        def model(point: Tensor, t: Weight) -> Tensor:
            return part(point, torch.full((len(point),), float(t), dtype=torch.float64))

        return execute(Plan(tuple(rows(variable, times)), 0.0), model, y0)

    return integrate


def _variable(linear: Diagonal) -> Variable:
    assert isinstance(linear.values, Tensor)
    return schemes.ode(linear.values)


def sweep(scheme: Scheme) -> Line:
    """Measure a scheme on all problems that have its form, with a linear part that is diagonal."""
    found = [(case.name, order) for case in GENERAL if (order := measure(scheme, case)) is not None]
    return Line(scheme.family, scheme.name, tuple(name for name, _ in found),
                judge(scheme.order, [order for _, order in found]), None, None)


@torch.no_grad()
def measure(scheme: Scheme, case: ClosedForm) -> float | None:
    """The slope of the error at the end; None where the problem has no form that the scheme takes."""
    problem = case.form(scheme.form)
    if problem is None or (isinstance(problem, Semilinear) and not isinstance(problem.linear, Diagonal)):
        return None
    numbers = rungs_between(*(MULTISTEP_RANGES if scheme.multistep else RANGES)[scheme.order], RUNGS)
    start, exact = case.exact(0.0), case.exact(case.end)
    errors = [float((scheme.integrate(problem, start, case.end, n) - exact).abs().max()) for n in numbers]
    return fitted(numbers, errors, ROUNDING)


def _repeated(scheme: Callable[..., Sequence[Row]], tableau: Tableau | ExponentialTableau) -> Compile:
    return lambda variable, times: scheme(variable, times, [tableau] * (len(times) - 1))


def _of_order(
    scheme: Callable[..., Sequence[Row]], order: int, variable: Variable, times: Sequence[float]
) -> Sequence[Row]:
    return scheme(variable, times, order)


def _singlestep(order: int, variable: Variable, times: Sequence[float]) -> Sequence[Row]:
    steps = [inner_nodes(variable, a, b, _SINGLESTEP[order]) for a, b in zip(times[:-1], times[1:], strict=True)]
    return schemes.exponential_singlestep(variable, steps)


def _multistep(order: int, variable: Variable, times: Sequence[float]) -> Sequence[Row]:
    return schemes.exponential_multistep(variable, times, [min(order, i + 1) for i in range(len(times) - 1)])


def _corrected(order: int, variable: Variable, times: Sequence[float]) -> Sequence[Row]:
    return with_corrector(variable, _multistep(order - 1, variable, times))


def _graded(order: int, end: float, steps: int) -> Sequence[float]:
    """Equal steps, the first and last in eight parts that grow from its outer end.

    The scheme starts with orders below its own, and ends without a corrector.
    """
    h, parts = end / steps, (np.arange(1, 8) / 8) ** max(order, 2)
    inner = np.linspace(h, end - h, steps - 1)
    return [0.0, *(h * parts), *inner, *(end - h * parts[::-1]), end]


def _reversible(tableau: Tableau, problem: Problem, y0: Tensor, end: float, steps: int) -> Tensor:
    def field(y: Tensor, t: Tensor) -> Tensor:
        return problem(y, t.expand(len(y)))

    return reversible(runge_kutta_increment(tableau, field), y0, list(np.linspace(0.0, end, steps + 1)))
