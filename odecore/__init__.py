"""Generic integration of ordinary differential equations; knows no noise and no image."""

from odecore.odeint import odeint, odeint_event
from odecore.odeint_adjoint import odeint_adjoint
from odecore.plan import Plan, Registers, Row, execute
from odecore.solve import Solution, solve

__all__ = [
    "Plan", "Registers", "Row", "Solution", "execute", "odeint", "odeint_adjoint", "odeint_event", "solve",
]
