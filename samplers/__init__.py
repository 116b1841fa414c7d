"""Samplers: which variable, which grid, which plan."""

from samplers.classifier_guidance import ClassifierGuidance, DenoisedGuidance
from samplers.compile import compile_plan
from samplers.compiled import compiled
from samplers.guidance import Autoguidance, ClassifierFreeGuidance, GuidanceInterval, RescaledGuidance
from samplers.inpainting import Inpainting
from samplers.inversion import backwards, ddim_inversion
from samplers.memory import MemoryLimit
from samplers.perturbed_attention import PerturbedAttentionGuidance
from samplers.precision import MixedPrecision
from samplers.preview import Preview
from samplers.registry import GRIDS, SOLVERS
from samplers.sample import Result, sample
from samplers.solver import AdaptiveSolver, Solver
from samplers.thresholding import DynamicThresholding

__all__ = [
    "GRIDS", "SOLVERS", "AdaptiveSolver", "Autoguidance", "ClassifierFreeGuidance", "ClassifierGuidance",
    "DenoisedGuidance", "DynamicThresholding", "GuidanceInterval", "Inpainting", "MemoryLimit", "MixedPrecision",
    "PerturbedAttentionGuidance", "Preview", "RescaledGuidance", "Result", "Solver", "backwards", "compile_plan",
    "compiled", "ddim_inversion", "sample",
]
