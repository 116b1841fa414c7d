"""Every scheme of odecore converges at its declared order, and no method or scheme is missing from the sweep."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import odecore
from eval import order_sde
from eval.order_ode import methods, tolerance
from eval.order_problems import GENERAL
from eval.order_schemes import HIGHEST_EXPONENTIAL, Scheme, all_schemes, measure, sweep
from odecore import schemes
from odecore.explicit.symplectic import Symplectic
from odecore.explicit.tableaus import ButcherTableau
from odecore.exponential.rosenbrock import RosenbrockTableau
from odecore.exponential.tableaus import ExponentialTableau
from odecore.implicit.additive_tableaus import AdditiveTableau
from odecore.implicit.discrete_gradient import DiscreteGradient
from odecore.schemes import predictor_corrector
from odecore.stochastic import sde

SCHEMES = list(all_schemes())
METHODS = list(methods())
FORCED = next(case for case in GENERAL if case.name == "non-autonomous")
FAST = {"MIDPOINT", "RK4", "1", "2", "ETD_RK3", "LAWSON4"}
"""The others take longer, or are of the same kind."""


@pytest.mark.parametrize("scheme", [pytest.param(s, id=f"{s.family}: {s.name}", marks=[] if s.name in FAST else
                                                 pytest.mark.slow) for s in SCHEMES])
def test_a_scheme_has_its_order(scheme: Scheme) -> None:
    order = measure(scheme, FORCED)
    assert order is not None and (order != order or order > scheme.order - tolerance(scheme.order))


def test_no_order_of_a_plan_is_higher_than_declared() -> None:
    chosen = [s for s in SCHEMES if s.family == "plan: runge_kutta, Lawson" and s.name in ("EULER", "HEUN")]
    lines = [sweep(scheme) for scheme in chosen]
    assert len(lines) == 2 and all(line.end.met and line.estimate is None and line.between is None for line in lines)


def test_a_linear_part_that_is_no_diagonal_is_passed_over() -> None:
    scheme = next(s for s in SCHEMES if s.family == "plan: exponential_singlestep")
    assert measure(scheme, next(case for case in GENERAL if case.name == "vector")) is None


def modules() -> list[ModuleType]:
    names = [info.name for info in pkgutil.walk_packages(odecore.__path__, "odecore.")]
    return [importlib.import_module(name) for name in names]


def test_every_tableau_and_stepper_that_is_exported_is_swept() -> None:
    swept = {m.name for m in METHODS}
    kinds = (ButcherTableau, AdditiveTableau, ExponentialTableau, RosenbrockTableau, Symplectic)
    exported = {name for module in modules() if ".facade" not in module.__name__ for name, value in vars(module).items()
                if name.isupper() and name[0] != "_" and (isinstance(value, kinds) or hasattr(value, "error_order"))}
    assert {"RK4", "KENCARP5", "KROGSTAD", "EXPRB43", "YOSHIDA", "PRINCE_DORMAND8", "GAUSS6"} <= exported
    assert exported <= swept, exported - swept


def test_every_class_of_steppers_is_swept() -> None:
    classes = {value for module in modules() if ".facade" not in module.__name__ for value in vars(module).values()
               if inspect.isclass(value) and {"step", "start", "order", "error_order"} <= set(dir(value))}
    steppers = {c for c in classes if c.__name__ != "Stepper" and not getattr(c, "_is_protocol", False)}
    # Learned ones and those of problems of their own have their orders measured beside them.
    steppers = {c for c in steppers if ".learn." not in c.__module__ and c is not DiscreteGradient}
    assert len(steppers) >= 9
    assert steppers <= {type(m.stepper) for m in METHODS}


def test_every_order_of_the_multistep_factories_is_swept() -> None:
    swept = {(m.family, m.stepper.order) for m in METHODS}
    assert {("Adams", p) for p in range(1, 9)} | {("exponential Adams", p) for p in range(1, 5)} <= swept
    assert {("Taylor", p) for p in range(1, 7)} <= swept


def test_every_scheme_that_makes_rows_is_swept() -> None:
    made = {name for module in (schemes, predictor_corrector) for name, value in vars(module).items()
            if inspect.isfunction(value) and name[0] != "_"
            and str(inspect.signature(value).return_annotation) == "tuple[Row, ...]"}
    assert {"adams_bashforth", "with_corrector", "runge_kutta", "exponential_runge_kutta"} <= made
    swept = {s.family.removeprefix("plan: ").split(",")[0] for s in SCHEMES}
    # corrected() exchanges given weights: with_corrector() is what gives it some that have an order.
    assert made - {"corrected"} <= swept, made - swept
    assert HIGHEST_EXPONENTIAL >= 4


def test_every_method_for_stochastic_equations_is_swept() -> None:
    names = {name for name, value in vars(sde).items() if inspect.isfunction(value) and name[0] != "_" and (
        list(inspect.signature(value).parameters) == ["sde", "t0", "t1", "y", "increment"]
        or str(inspect.signature(value).return_annotation) == "Method")}
    assert len(names) >= 5
    source = inspect.getsource(order_sde.strong_orders)
    assert all(f'"{name}"' in source for name in names)


def test_dense_output_of_every_method_is_measured() -> None:
    without = {m.name for m in METHODS if not m.between}
    assert without <= {"DORMAND_PRINCE", "TSITOURAS", "DOP853"}
    assert not any(not m.between for m in METHODS if m.family != "explicit")
