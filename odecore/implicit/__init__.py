"""Implicit methods, the equations they solve, and the gradients of the solutions."""
