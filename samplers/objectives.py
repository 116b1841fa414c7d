"""What a learned plan is to be near to: distances between its samples and those of the converged solution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Objective = Callable[[Tensor, Tensor], Tensor]
"""(samples, solution from the same noises) -> a number to be small, which autograd can follow."""


@dataclass(frozen=True, slots=True)
class Squared:
    """Mean square of the differences, ``mean |x - y|²``: a few samples that end in another mode dominate it."""

    def __call__(self, samples: Float[Tensor, "batch ..."], solution: Float[Tensor, "batch ..."]) -> Tensor:
        """Measure."""
        return (samples - solution).square().mean()


@dataclass(frozen=True, slots=True)
class Huber:
    """Mean over samples of ``sqrt(d² + δ²) - δ``, d being the RMS difference of a sample: each counts about alike.

    Args:
        delta: δ > 0, the distance from which on a sample counts by its distance, not by the square.

    Source: Charbonnier et al. 1997, doi:10.1109/83.551699; of whole samples in Song & Dhariwal 2023, arXiv:2310.14189.
    """

    delta: float = 0.03

    def __post_init__(self) -> None:
        if not self.delta > 0.0:
            raise ValueError(f"delta={self.delta}: give a positive distance")

    def __call__(self, samples: Float[Tensor, "batch ..."], solution: Float[Tensor, "batch ..."]) -> Tensor:
        """Measure."""
        squares = (samples - solution).square().flatten(1).mean(1)
        return ((squares + self.delta**2).sqrt() - self.delta).mean()


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy distance of two sets, ``2 E|x - y| - E|x - x'| - E|y - y'|``: of distributions, not of pairs.

    Unbiased, so that it may fall below zero; of a batch of n samples it knows little beyond n numbers.

    Source: Székely & Rizzo 2013, doi:10.1016/j.jspi.2013.03.018.
    """

    def __call__(self, samples: Float[Tensor, "batch ..."], solution: Float[Tensor, "batch ..."]) -> Tensor:
        """Measure."""
        x, y = samples.flatten(1), solution.flatten(1)
        # The sample of the same noise is no independent draw: it is left out, as a sample's distance to itself is.
        count = len(x) * (len(x) - 1)
        between, of_x, of_y = (_distances(a, b).sum() / count for a, b in ((x, y), (x, x), (y, y)))
        return 2.0 * between - of_x - of_y


@dataclass(frozen=True, slots=True)
class Features:
    """Another objective on features of the samples.

    Args:
        extract: images to features, differentiable.
        objective: of the features.
    """

    extract: Callable[[Tensor], Tensor]
    objective: Objective = Squared()

    def __call__(self, samples: Float[Tensor, "batch ..."], solution: Float[Tensor, "batch ..."]) -> Tensor:
        """Measure."""
        with torch.no_grad():
            wanted = self.extract(solution)
        return self.objective(self.extract(samples), wanted)


@dataclass(frozen=True, slots=True)
class Weighted:
    """Sum of objectives, each with its weight."""

    terms: tuple[tuple[float, Objective], ...]

    def __call__(self, samples: Float[Tensor, "batch ..."], solution: Float[Tensor, "batch ..."]) -> Tensor:
        """Measure."""
        return torch.stack([weight * objective(samples, solution) for weight, objective in self.terms]).sum()


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances of all pairs but those of one index; smooth at zero."""
    squares = (x[:, None] - y[None]).square().sum(2)
    apart = 1.0 - torch.eye(len(x), dtype=x.dtype, device=x.device)
    return (squares + 1e-12).sqrt() * apart
