"""Symplectic methods for separable Hamiltonian systems: kicks and drifts with coefficients as data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest

import torch
from torch import Tensor

from odecore.problem import Separable, require
from odecore.stepper import Carry, Field, Step, column, send


@dataclass(frozen=True, slots=True)
class Symplectic:
    """A splitting of ``dq/dt = v(p, t)``, ``dp/dt = a(q, t)``, whose two parts are solved exactly in turn.

    Kicks and drifts alternate, a kick first::

        p ← p + d_i h a(q, t_0 + h Σ_{j<i} c_j)        q ← q + c_i h v(p, t_0 + h Σ_{j≤i} d_j)

    Each is a shear, so the flow keeps the symplectic form (with v and a gradients) and has
    determinant one. In the field of a kick time is that of the drifts done, and the reverse, which
    is the splitting of the autonomous problem with time as a further position and momentum.
    There is no error estimate: a step length that changes with the state would lose the structure.

    Args:
        kicks: d_i, one for each drift, or one more where the step ends with a kick.
        drifts: c_i.
        order: order of convergence.
        source: where it comes from.

    Raises:
        ValueError: numbers that do not fit, or do not sum to one.

    Cost: an evaluation is one force and one velocity; ``len(drifts)`` of them a step, as the last
        kick of a step has the force of the next one's first; one force at the start.

    Source: Hairer, Lubich & Wanner 2006, Geometric numerical integration, sections II.5 and VI.3,
        doi:10.1007/3-540-30666-8.
    """

    kicks: tuple[float, ...]
    drifts: tuple[float, ...]
    order: int
    source: str = ""

    def __post_init__(self) -> None:
        if len(self.drifts) == 0 or len(self.kicks) - len(self.drifts) not in (0, 1):
            raise ValueError(f"kicks={self.kicks}: give one for each of the {len(self.drifts)} drifts, or one more")
        for name, weights in (("kicks", self.kicks), ("drifts", self.drifts)):
            if not math.isclose(math.fsum(weights), 1.0, rel_tol=0, abs_tol=1e-14):
                raise ValueError(f"{name}={weights}: they must sum to one")

    @property
    def error_order(self) -> int:
        """0: there is no error estimate."""
        return 0

    @property
    def first_same_as_last(self) -> bool:
        """Whether a step ends with a kick, whose force begins the next step."""
        return len(self.kicks) > len(self.drifts)

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """The force at the start, if steps hand theirs on."""
        problem = _separable(field, y)
        return ((problem.force(y.select(1, 0), send(t0, y.device)),), 1) if self.first_same_as_last else ((), 0)

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1."""
        problem = _separable(field, y)
        position, momentum = y.unbind(1)
        length, forces = column(t1 - t0, position), list(carry)
        drifted = (0.0, *accumulate(self.drifts[:-1]), 1.0)
        kicked = (*accumulate(self.kicks[:len(self.drifts) - 1]), 1.0 - sum(self.kicks[len(self.drifts):]))
        for index, (kick, drift) in enumerate(zip_longest(self.kicks, self.drifts)):
            if index >= len(carry):
                forces.append(problem.force(position, send(torch.lerp(t0, t1, drifted[index]), y.device)))
            momentum = torch.addcmul(momentum, length, forces[index], value=kick)
            if drift is not None:
                velocity = problem.velocity(momentum, send(torch.lerp(t0, t1, kicked[index]), y.device))
                position = torch.addcmul(position, length, velocity, value=drift)
        new = torch.stack((position, momentum), 1)
        handed_on = (forces[-1],) if self.first_same_as_last else ()
        return Step(new, handed_on, torch.zeros_like(new), torch.maximum(y.abs(), new.abs()), len(self.drifts))


def _separable(field: object, y: Tensor) -> Separable:
    """The parts of the problem, if the state has them too."""
    if y.ndim < 2 or y.shape[1] != 2:
        raise ValueError(f"y0 has shape {tuple(y.shape)}: give positions and momenta in axis 1, of size 2")
    return require(field, Separable, "a symplectic method")


def _leapfrogs(fractions: Sequence[float], order: int, source: str) -> Symplectic:
    """Leapfrog steps of fractions of the step, one after the other; kicks that meet become one."""
    ends = (0.0, *fractions, 0.0)
    kicks = tuple((before + after) / 2 for before, after in zip(ends[:-1], ends[1:], strict=True))
    return Symplectic(kicks, tuple(fractions), order, source)


SYMPLECTIC_EULER = Symplectic((1.0,), (1.0,), order=1, source="de Vogelaere 1956")
LEAPFROG = _leapfrogs((1.0,), 2, "Verlet 1967, doi:10.1103/PhysRev.159.98")

_THREE = 1 / (2 - 2 ** (1 / 3))
FOREST_RUTH = _leapfrogs((_THREE, 1 - 2 * _THREE, _THREE), 4, "Forest & Ruth 1990, doi:10.1016/0167-2789(90)90019-L")

_FIVE = 1 / (4 - 4 ** (1 / 3))
SUZUKI = _leapfrogs((_FIVE, _FIVE, 1 - 4 * _FIVE, _FIVE, _FIVE), 4,
                    "Suzuki 1990, doi:10.1016/0375-9601(90)90962-N; smaller errors than Forest & Ruth's")

_SEVEN = (0.78451361047755726382, 0.23557321335935813368, -1.17767998417887100695)
YOSHIDA = _leapfrogs((*_SEVEN, 1 - 2 * sum(_SEVEN), *reversed(_SEVEN)), 6,
                     "Yoshida 1990, solution A, doi:10.1016/0375-9601(90)90092-3")
