"""Problems as data: what a method may know of a right-hand side beyond its values.

Each is a function ``(y, t, *args) -> dy/dt`` of states of shape (samples, …) and one time a sample,
so that every method runs every problem; a method that can, uses the parts. A plain function is a
problem too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    from odecore.exponential.linear import Functions
    from odecore.exponential.phi_sums import PhiSum

RightHandSide = Callable[..., Tensor]
"""``(y, t, *args) -> value`` of the shape of y."""

Change = Callable[[RightHandSide], RightHandSide]
"""What turns a right-hand side into another, for instance by fixing its arguments."""


@dataclass(frozen=True, slots=True)
class ODE:
    """``dy/dt = f(y, t)``.

    Args:
        field: f.
    """

    field: RightHandSide

    def __call__(self, y: Tensor, t: Tensor, *args: Tensor) -> Tensor:
        """The right-hand side."""
        return self.field(y, t, *args)

    def map(self, change: Change) -> ODE:
        """The problem with its functions changed."""
        return ODE(change(self.field))


@dataclass(frozen=True, slots=True)
class Split:
    """``dy/dt = f(y, t) + g(y, t)`` with a mild part f and a stiff part g, for implicit–explicit methods.

    Args:
        explicit: f.
        implicit: g.
    """

    explicit: RightHandSide
    implicit: RightHandSide

    def __call__(self, y: Tensor, t: Tensor, *args: Tensor) -> Tensor:
        """The sum of both parts."""
        return self.explicit(y, t, *args) + self.implicit(y, t, *args)

    def map(self, change: Change) -> Split:
        """The problem with its functions changed."""
        return Split(change(self.explicit), change(self.implicit))


@dataclass(frozen=True, slots=True)
class Semilinear:
    """``dy/dt = L y + N(y, t)`` with a constant linear part, for exponential methods.

    Args:
        linear: L, one of :mod:`odecore.exponential.linear`.
        nonlinear: N.
    """

    linear: Linear
    nonlinear: RightHandSide

    def __call__(self, y: Tensor, t: Tensor, *args: Tensor) -> Tensor:
        """The sum of both parts."""
        return self.linear.apply(y) + self.nonlinear(y, t, *args)

    def map(self, change: Change) -> Semilinear:
        """The problem with its functions changed."""
        return Semilinear(self.linear, change(self.nonlinear))


@dataclass(frozen=True, slots=True)
class Separable:
    """``dq/dt = v(p, t)``, ``dp/dt = a(q, t)`` with the state (q, p) in axis 1, for symplectic methods.

    Args:
        velocity: v, of momenta of shape (samples, …).
        force: a, of positions of shape (samples, …).
    """

    velocity: RightHandSide
    force: RightHandSide

    def __call__(self, y: Tensor, t: Tensor, *args: Tensor) -> Tensor:
        """Both derivatives, stacked as the state is."""
        position, momentum = y.unbind(1)
        return torch.stack((self.velocity(momentum, t, *args), self.force(position, t, *args)), 1)

    def map(self, change: Change) -> Separable:
        """The problem with its functions changed."""
        return Separable(change(self.velocity), change(self.force))


class Linear(Protocol):
    """A linear operator L that knows the functions of its multiples: one of :mod:`odecore.exponential.linear`."""

    def apply(self, y: Tensor) -> Tensor:
        """``L y`` for states of shape (samples, …)."""

    def phi(self, order: int, h: Tensor, y: Tensor) -> Tensor:
        """``φ_order(h L) y`` with one h a sample, of shape (samples,), float64, on the host; φ_0 is the exponential."""

    def functions(self, sums: Sequence[PhiSum], h: Tensor, like: Tensor) -> Functions:
        """``f(h L)`` for sums of φ-functions f, of states like the one given."""

    def resolvent(self, h: Tensor, y: Tensor) -> Tensor:
        """``(I - h L)^{-1} y`` with one h a sample."""


@runtime_checkable
class Problem(Protocol):
    """Anything that knows its parts."""

    def __call__(self, y: Tensor, t: Tensor, *args: Tensor) -> Tensor:
        """The whole right-hand side."""

    def map(self, change: Change) -> Problem:
        """The problem with its functions changed."""


Kind = TypeVar("Kind")


def bind(problem: RightHandSide | Problem, change: Change) -> RightHandSide | Problem:
    """Change the functions of a problem, or the function that a plain problem is."""
    return problem.map(change) if isinstance(problem, Problem) else change(problem)


def require(problem: object, kind: type[Kind], method: str) -> Kind:
    """Check that a problem is of the kind that a method works on.

    Raises:
        ValueError: it is of another kind.
    """
    if not isinstance(problem, kind):
        raise ValueError(f"{method} needs a {kind.__name__} problem, not {type(problem).__name__}: "
                         f"wrap its parts in odecore.problem.{kind.__name__}")
    return problem
