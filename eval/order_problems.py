"""Initial value problems with solutions in closed form, on which orders of convergence are measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import expm
from scipy.special import ellipj
from torch import Tensor

from odecore.exponential.linear import Dense, Diagonal
from odecore.problem import ODE, Problem, Semilinear, Separable, Split

_ROTATION = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)


@dataclass(frozen=True, slots=True)
class ClosedForm:
    """A problem from time 0 with its solution, in float64.

    Args:
        name: what it is.
        exact: ``t -> y(t)`` of shape (samples, …); the initial states are its value at 0.
        problems: the right-hand side in the forms that methods ask for; all are one function.
        end: last time.
    """

    name: str
    exact: Callable[[float], Tensor]
    problems: tuple[Problem, ...]
    end: float = 1.0

    def form(self, kind: type) -> Problem | None:
        """The right-hand side as a problem of a kind; None if it has no such form."""
        return next((problem for problem in self.problems if isinstance(problem, kind)), None)


def _column(t: Tensor) -> Tensor:
    return t.unsqueeze(1)


def _linear() -> ClosedForm:
    """``y' = M y``, coupled components; the diagonal of M is the stiff or linear part."""
    matrix = torch.tensor([[-1.0, 2.0], [-1.5, -0.5]], dtype=torch.float64)
    diagonal = matrix.diagonal()
    rest = matrix - torch.diag(diagonal)
    y0 = torch.tensor([[1.0, 0.3], [-0.4, 1.2]], dtype=torch.float64)
    return ClosedForm(
        "linear", lambda t: y0 @ torch.from_numpy(expm(t * matrix.numpy())).T,
        (ODE(lambda y, t: y @ matrix.T), Split(lambda y, t: y @ rest.T, lambda y, t: y * diagonal),
         Semilinear(Diagonal(diagonal), lambda y, t: y @ rest.T)))


def _logistic() -> ClosedForm:
    """``y' = y - y²``."""
    y0 = torch.tensor([[0.2], [1.4]], dtype=torch.float64)
    return ClosedForm(
        "non-linear", lambda t: 1 / (1 + (1 / y0 - 1) * math.exp(-t)),
        (ODE(lambda y, t: y - y * y), Split(lambda y, t: y, lambda y, t: -y * y),
         Semilinear(Diagonal(1.0), lambda y, t: -y * y)))


def _forced() -> ClosedForm:
    """``y' = -y + cos 5t``, on which wrong stage times show."""
    y0 = torch.tensor([[0.3], [2.0]], dtype=torch.float64)
    return ClosedForm(
        "non-autonomous",
        lambda t: (y0 - 1 / 26) * math.exp(-t) + (math.cos(5 * t) + 5 * math.sin(5 * t)) / 26,
        (ODE(lambda y, t: torch.cos(5 * _column(t)) - y),
         Split(lambda y, t: torch.cos(5 * _column(t)).expand_as(y), lambda y, t: -y),
         Semilinear(Diagonal(-1.0), lambda y, t: torch.cos(5 * _column(t)).expand_as(y))),
        end=0.7)  # sine and cosine of 5t are both far from zero there, so that all derivatives are


def _spiral() -> ClosedForm:
    """``y' = y (1 - |y|²) + ω(t) R y`` with ``ω = 1 + cos 2t`` and R a quarter turn: a vector, and all of it.

    In polar coordinates ``r' = r - r³`` and ``φ' = ω``.
    """
    r0 = torch.tensor([0.5, 1.1], dtype=torch.float64)
    angle0 = torch.tensor([0.3, 2.0], dtype=torch.float64)
    quarter = _ROTATION.T

    def exact(t: float) -> Tensor:
        r = 1 / torch.sqrt(1 + (r0**-2 - 1) * math.exp(-2 * t))
        angle = angle0 + t + math.sin(2 * t) / 2
        return torch.stack((r * torch.cos(angle), r * torch.sin(angle)), 1)

    def turn(y: Tensor, t: Tensor) -> Tensor:
        return (1 + torch.cos(2 * _column(t))) * (y @ quarter)

    def shrink(y: Tensor) -> Tensor:
        return -y * (y * y).sum(1, keepdim=True)

    return ClosedForm(
        "vector", exact,
        (ODE(lambda y, t: y + shrink(y) + turn(y, t)), Split(turn, lambda y, t: y + shrink(y)),
         Semilinear(Dense(torch.eye(2, dtype=torch.float64) + _ROTATION),
                    lambda y, t: shrink(y) + torch.cos(2 * _column(t)) * (y @ quarter))))


def _oscillator() -> ClosedForm:
    """``q' = p + sin 3t``, ``p' = -q + cos 2t``: both parts depend on time."""
    first, second = (torch.tensor(x, dtype=torch.float64) for x in ((1.0, -0.5), (0.2, 0.8)))

    def exact(t: float) -> Tensor:
        q = first * math.cos(t) + second * math.sin(t) - math.cos(2 * t) / 3 - 3 / 8 * math.cos(3 * t)
        slope = -first * math.sin(t) + second * math.cos(t) + 2 / 3 * math.sin(2 * t) + 9 / 8 * math.sin(3 * t)
        return torch.stack((q, slope - math.sin(3 * t)), 1)

    return ClosedForm("non-autonomous", exact, (Separable(lambda p, t: p + torch.sin(3 * t),
                                                          lambda q, t: torch.cos(2 * t) - q),))


def _pendulum() -> ClosedForm:
    """``q' = p``, ``p' = -sin q`` from the lowest point; k is the sine of half the greatest angle."""
    k = np.array([0.5, 0.9])

    def exact(t: float) -> Tensor:
        sn, cn, *_ = ellipj(t, k**2)
        return torch.from_numpy(np.stack((2 * np.arcsin(k * sn), 2 * k * cn), 1))

    return ClosedForm("non-linear", exact, (Separable(lambda p, t: p, lambda q, t: -torch.sin(q)),))


def _kepler() -> ClosedForm:
    """``q'' = -q/|q|³`` from the nearest point of ellipses with half axis 1."""
    e = np.array([0.2, 0.4])

    def exact(t: float) -> Tensor:
        anomaly = np.full_like(e, t)
        for _ in range(50):  # Newton's method on Kepler's equation
            anomaly -= (anomaly - e * np.sin(anomaly) - t) / (1 - e * np.cos(anomaly))
        rate, minor = 1 / (1 - e * np.cos(anomaly)), np.sqrt(1 - e**2)
        q = np.stack((np.cos(anomaly) - e, minor * np.sin(anomaly)), 1)
        p = np.stack((-np.sin(anomaly) * rate, minor * np.cos(anomaly) * rate), 1)
        return torch.from_numpy(np.stack((q, p), 1))

    return ClosedForm("vector", exact, (Separable(lambda p, t: p, lambda q, t: -q / q.norm(dim=1, keepdim=True)**3),))


GENERAL = (_linear(), _logistic(), _forced(), _spiral())
"""With every form but Separable."""

MECHANICAL = (_pendulum(), _oscillator(), _kepler())
"""Separable ones."""
