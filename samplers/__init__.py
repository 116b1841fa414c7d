"""Samplers: which variable, which grid, which plan."""

from samplers.compile import compile_plan
from samplers.guidance import ClassifierFreeGuidance, DynamicThresholding
from samplers.registry import GRIDS, SOLVERS
from samplers.sample import Result, sample
from samplers.solver import AdaptiveSolver, Solver

__all__ = ["GRIDS", "SOLVERS", "AdaptiveSolver", "ClassifierFreeGuidance", "DynamicThresholding", "Result", "Solver",
           "compile_plan", "sample"]
