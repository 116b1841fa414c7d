"""Schemes: each turns a grid, an order and a variable into the rows of a plan."""

from odecore.schemes.adams import adams_bashforth, adams_bashforth_moulton
from odecore.schemes.exponential import exponential_multistep, exponential_singlestep
from odecore.schemes.exponential_runge_kutta import exponential_runge_kutta
from odecore.schemes.runge_kutta import runge_kutta
from odecore.schemes.variable import Node, Variable, exact_flow, ode

__all__ = ["Node", "Variable", "adams_bashforth", "adams_bashforth_moulton", "exact_flow", "exponential_multistep",
           "exponential_runge_kutta", "exponential_singlestep", "ode", "runge_kutta"]
