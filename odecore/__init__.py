"""Generic integration of ordinary differential equations; knows no noise and no image."""

from odecore.driver.solve import Solution, solve
from odecore.facade.adjoint import odeint_adjoint
from odecore.facade.odeint import odeint, odeint_event
from odecore.plan import Plan, Registers, Row, execute

__all__ = [
    "Plan", "Registers", "Row", "Solution", "execute", "odeint", "odeint_adjoint", "odeint_event", "solve",
]
