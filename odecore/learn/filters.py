"""The linear part of a state observer, and what it tends to along a plant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import solve_discrete_lyapunov
from scipy.signal import bessel
from torch import Tensor

from odecore.driver.solution import Status
from odecore.driver.solve import solve
from odecore.explicit.embedded import DORMAND_PRINCE
from odecore.phi import phis_dense


@dataclass(frozen=True, slots=True)
class Plant:
    """What is observed: ``dx/dt = f(x, t)``, ``y = h(x)``.

    Args:
        field: f, of states of shape (samples, n) and one time a sample.
        output: h, of states of shape (…, n), with values of shape (…, q).
    """

    field: Callable[[Tensor, Tensor], Tensor]
    output: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """The linear part of an observer, ``dz/dt = D z + F y`` with all eigenvalues of D left of the axis.

    Args:
        D: of shape (m, m).
        F: of shape (m, q).

    Raises:
        ValueError: shapes that do not fit, or a D that is not stable.
    """

    D: Tensor
    F: Tensor

    def __post_init__(self) -> None:
        size = len(self.D)
        if self.D.shape != (size, size) or self.F.ndim != 2 or len(self.F) != size:
            raise ValueError(f"D has shape {tuple(self.D.shape)}, F {tuple(self.F.shape)}: give (m, m) and (m, q)")
        if not self.rate > 0:
            raise ValueError(f"D has an eigenvalue with real part {-self.rate}: all must be negative")

    @classmethod
    def bessel(cls, states: int, outputs: int = 1, *, cutoff: float) -> Filter:
        """Make a filter of outputs · (states + 1) numbers, with the poles of Bessel's filter at 2π cutoff; F is 1.

        Each output has a block of its own, so that every one reaches states + 1 independent modes.

        Args:
            states: n of the plant.
            outputs: q of the plant.
            cutoff: w_c, in cycles per unit of time: larger is faster, and lets more noise through.

        Raises:
            ValueError: a size below 1, or a cutoff that is not positive.
        """
        if states < 1 or outputs < 1 or not 0 < cutoff < math.inf:
            raise ValueError(f"states={states}, outputs={outputs}, cutoff={cutoff}: give sizes of at least 1 and a "
                             "positive cutoff")
        poles = bessel(states + 1, 2 * math.pi * cutoff, analog=True, output="zpk")[1]
        scale = 1e-9 * np.abs(poles).max()
        blocks = [torch.tensor([[p.real]] if abs(p.imag) < scale else [[p.real, p.imag], [-p.imag, p.real]],
                               dtype=torch.float64) for p in poles if p.imag > -scale]
        one = torch.block_diag(*blocks)
        return cls(torch.block_diag(*[one] * outputs),
                   torch.block_diag(*[torch.ones(states + 1, 1, dtype=torch.float64)] * outputs))

    @property
    def rate(self) -> float:
        """The slowest decay, ``min |Re λ|``; not positive where D is unstable."""
        return -float(torch.linalg.eigvals(self.D).real.max())

    @property
    def memory(self) -> float:
        """``10 / rate``, the time after which what came before counts for less than 1e-4."""
        return 10 / self.rate

    def steps(self, step: float) -> tuple[Tensor, Tensor, Tensor]:
        """E, A, B of ``z⁺ = E z + A y + B y⁺``, exact for outputs that are linear between their times."""
        e, first, second = phis_dense(2, step * self.D)
        return e, step * (first - second) @ self.F, step * second @ self.F

    @torch.no_grad()
    def states(
        self, outputs: Float[Tensor, "runs times q"], step: float, *, start: Float[Tensor, "runs m"] | None = None
    ) -> Float[Tensor, "runs times m"]:
        """Run the filter along measured outputs, from zero unless a start is given.

        Raises:
            ValueError: outputs of another size, or a step that is not positive.
        """
        if outputs.ndim != 3 or outputs.shape[-1] != self.F.shape[1] or not 0 < step < math.inf:
            raise ValueError(f"outputs have shape {tuple(outputs.shape)}, step={step}: give (runs, times, "
                             f"{self.F.shape[1]}) and a positive step")
        e, a, b = (matrix.to(outputs) for matrix in self.steps(step))
        pushes = outputs[:, :-1] @ a.T + outputs[:, 1:] @ b.T
        z = [outputs.new_zeros(len(outputs), len(self.D)) if start is None else start.to(outputs)]
        for push in pushes.unbind(1):
            z.append(z[-1] @ e.T + push)
        return torch.stack(z, 1)

    def noise(self, step: float) -> Float[Tensor, "m m"]:
        """Covariance of z in the long run, for outputs that are white noise of variance 1 at times a step apart.

        With ``w = z - B y`` the recurrence is ``w⁺ = E w + (A + E B) y``, whose covariance a Lyapunov equation gives.
        """
        e, a, b = (matrix.numpy() for matrix in self.steps(step))
        drive = a + e @ b
        return torch.from_numpy(solve_discrete_lyapunov(e, drive @ drive.T) + b @ b.T)


class Pairs(NamedTuple):
    """States of a plant and of a filter that has forgotten its start: samples of z = T(x), a row each."""

    x: Tensor
    z: Tensor


@torch.no_grad()
def rewound(
    plant: Plant, points: Float[Tensor, "samples n"], duration: float, *, tolerance: float = 1e-8
) -> Float[Tensor, "kept n"]:
    """Follow a plant back in time from points; those whose past leaves the finite numbers are left out.

    Raises:
        ValueError: no point has a past of that length.
    """
    found = solve(DORMAND_PRINCE, plant.field, points, 0.0, -duration, rtol=tolerance, atol=tolerance, partial=True)
    kept = (found.status == Status.FINISHED).to(points.device)
    if not kept.any():
        raise ValueError(f"points: none has a past of duration={duration}; settle the filter from states on an "
                         "attractor instead")
    return found.y[kept]


@torch.no_grad()
def settled(
    plant: Plant, filter: Filter, starts: Float[Tensor, "samples n"], *, duration: float | None = None,
    tolerance: float = 1e-8,
) -> Pairs:
    """Run plant and filter from starts and z = 0 until the filter has forgotten, and return both states.

    From starts on an attractor the pairs lie on it; from ``rewound(plant, points, filter.memory)`` x are the points.

    Args:
        plant: f and h.
        filter: D and F.
        starts: states to start from.
        duration: of the run; the filter's memory unless given.
        tolerance: relative and absolute, of the solver.
    """
    size = starts.shape[-1]
    d, f = filter.D.to(starts), filter.F.to(starts)

    def both(s: Tensor, t: Tensor) -> Tensor:
        x, z = s[:, :size], s[:, size:]
        return torch.cat((plant.field(x, t), z @ d.T + plant.output(x) @ f.T), 1)

    s = torch.cat((starts, starts.new_zeros(len(starts), len(d))), 1)
    end = solve(DORMAND_PRINCE, both, s, 0.0, filter.memory if duration is None else duration, rtol=tolerance,
                atol=tolerance).y
    return Pairs(end[:, :size], end[:, size:])
