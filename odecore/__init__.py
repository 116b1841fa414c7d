"""Generic integration of ordinary differential equations; knows no noise and no image."""

from odecore.plan import Plan, Registers, Row, execute

__all__ = ["Plan", "Registers", "Row", "execute"]
