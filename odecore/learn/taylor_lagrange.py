"""Taylor steps whose remainder is learned: Lagrange's form of it, at a point that a network predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odecore.driver.integrate import Grid, Times, integrate
from odecore.driver.solve import solve
from odecore.explicit.embedded import DORMAND_PRINCE
from odecore.explicit.taylor import total_derivatives
from odecore.learn.fit import Fit, Optimizer, adam, fit
from odecore.stepper import Carry, Field, Step, column, send


class Midpoint(nn.Module):
    """Where the remainder is taken: a point ``ξ = y + Γ f(y, t)``, ``τ = t + γ`` of step h, with Γ and γ learned.

    With ``Γ = h (1/(p + 2) + C)``, ``γ = h clamp(1/(p + 2) + c, 0, 1)``: the network's C and c start from zero,
    where the remainder ``h^{p+1}/(p+1)! f^{[p]}(ξ, τ)`` agrees with the solution to one order more than any other.

    Args:
        size: elements of a state.
        degree: p of the step that it is for.
        hidden: widths of the layers of a network of (y, t, h); empty for numbers that are the same everywhere.
        entries: numbers of C: ``size`` for a diagonal, ``size²`` for a matrix.
    """

    def __init__(self, size: int, degree: int, hidden: Sequence[int], entries: int) -> None:
        super().__init__()
        if size < 1 or degree < 0 or any(width < 1 for width in hidden):
            raise ValueError(f"size={size}, degree={degree}, hidden={tuple(hidden)}: give a positive size, a degree of "
                             "at least 0, and positive widths")
        self.size, self.start = size, 1 / (degree + 2)
        self.constant = nn.Parameter(torch.zeros(entries + 1))
        widths = (size + 2, *hidden)
        layers: list[nn.Module] = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(before, after), nn.Tanh()]
        self.features = nn.Sequential(*layers) if hidden else None
        self.head = nn.Parameter(torch.zeros(entries + 1, widths[-1])) if hidden else None

    def corrections(self, y: Tensor, t: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """C, of shape (samples or 1, entries), and c, of shape (samples or 1,)."""
        if self.features is None or self.head is None:
            every = self.constant.unsqueeze(0)
        else:
            read = torch.cat((y, t.to(y).unsqueeze(1), h.to(y).unsqueeze(1)), 1)
            every = nn.functional.linear(self.features(read), self.head, self.constant)
        return every[:, :-1], every[:, -1]

    def time(self, t: Tensor, h: Tensor, correction: Tensor) -> Tensor:
        """τ, between the times of the step."""
        return t + h * (self.start + correction.to(h)).clamp(0.0, 1.0)


class DiagonalMidpoint(Midpoint):
    """Γ a diagonal: one number for each element of the state.

    Args:
        size: elements of a state.
        degree: p of the step that it is for.
        hidden: widths of the layers of its network; empty for a constant vector.

    Raises:
        ValueError: a size, degree or width out of range.
    """

    def __init__(self, size: int, degree: int, hidden: Sequence[int] = ()) -> None:
        super().__init__(size, degree, hidden, size)

    def forward(self, y: Tensor, t: Tensor, h: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """(ξ, τ), from states, times, steps and values of the field."""
        weights, correction = self.corrections(y.flatten(1), t, h)
        moved = column(h, y) * ((self.start + weights) * slope.flatten(1)).reshape(y.shape)
        return y + moved, self.time(t, h, correction)


class MatrixMidpoint(Midpoint):
    """Γ a full matrix, for a state of few elements.

    Args:
        size: elements of a state.
        degree: p of the step that it is for.
        hidden: widths of the layers of its network; empty for a constant matrix.

    Raises:
        ValueError: a size, degree or width out of range.
    """

    def __init__(self, size: int, degree: int, hidden: Sequence[int] = ()) -> None:
        super().__init__(size, degree, hidden, size * size)

    def forward(self, y: Tensor, t: Tensor, h: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """(ξ, τ), from states, times, steps and values of the field."""
        weights, correction = self.corrections(y.flatten(1), t, h)
        flat = slope.flatten(1)
        turned = (weights.reshape(-1, self.size, self.size) @ flat.unsqueeze(-1)).squeeze(-1)
        return y + column(h, y) * (self.start * flat + turned).reshape(y.shape), self.time(t, h, correction)


class Pieces(NamedTuple):
    """A step in its parts.

    Attributes:
        derivatives: at the start of the step, y' first.
        remainder: what stands for all further terms.
        y: the state at the end.
        nfe: evaluations.
    """

    derivatives: list[Tensor]
    remainder: Tensor
    y: Tensor
    nfe: int


@dataclass(frozen=True, slots=True)
class TaylorLagrange:
    """A Taylor step with the remainder at a point that is predicted.

    ``y⁺ = y + Σ_{k=1..p} h^k/k! f^{[k-1]}(y) + h^{p+1}/(p+1)! f^{[p]}(ξ)`` with ξ from :class:`Midpoint`. By the
    mean value theorem each element of y⁺ is exact for a point of its own. The error estimate is the remainder: it
    costs nothing and is far too large where the remainder is any good; :class:`OrderDifference` and
    :class:`odecore.half_steps.HalfSteps` estimate better.

    Args:
        degree: p, the terms that are computed; with 0 the step is a midpoint rule.
        midpoint: ``(y, t, h, f(y, t)) -> (ξ, τ)``, often a :class:`Midpoint`.

    Raises:
        ValueError: a negative degree.

    Cost: max(p, 1) + p + 1 evaluations by the count of linear operations; see
        :func:`odecore.explicit.taylor.total_derivatives` for what they take.

    Source: Djeumou, Neary, Goubault, Putot & Topcu 2022, Taylor-Lagrange neural ordinary differential equations,
        arXiv:2201.05715. There Γ does not know h; here it is proportional to h before it is trained.
    """

    degree: int
    midpoint: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

    def __post_init__(self) -> None:
        if isinstance(self.degree, bool) or not isinstance(self.degree, int) or self.degree < 0:
            raise ValueError(f"degree={self.degree!r}: give a whole number, at least 0")

    @property
    def order(self) -> int:
        """The order of convergence with any Γ that is proportional to h; p + 2 before it is trained."""
        return self.degree + 1

    @property
    def error_order(self) -> int:
        """The power of h with which the remainder shrinks."""
        return self.degree + 1

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """Nothing: a step needs no other."""
        return (), 0

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1."""
        pieces = self.pieces(field, t0, t1, y, max(self.degree, 1))
        return Step(pieces.y, (), pieces.remainder, torch.maximum(y.abs(), pieces.y.abs()), pieces.nfe)

    def pieces(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, count: int) -> Pieces:
        """Take a step, with so many derivatives at its start."""
        h, p = t1 - t0, self.degree
        time = send(t0, y.device)
        derivatives = total_derivatives(field, y, time, count)
        place, moment = self.midpoint(y, time, send(h, y.device), derivatives[0])
        remainder = column(self.weight(h), y) * total_derivatives(field, place, moment, p + 1)[-1]
        terms = [column(h**k / math.factorial(k), y) * derivatives[k - 1] for k in range(1, p + 1)]
        new = y + sum(reversed(terms), start=remainder)  # the smallest first
        return Pieces(derivatives, remainder, new, count + p + 1)

    def weight(self, h: Tensor) -> Tensor:
        """The factor ``h^{p+1}/(p+1)!`` of the remainder."""
        return h ** (self.degree + 1) / math.factorial(self.degree + 1)


@dataclass(frozen=True, slots=True)
class OrderDifference:
    """A Taylor–Lagrange step with an error estimate: how far its remainder is from the next Taylor term.

    ``error = h^{p+1}/(p+1)! (f^{[p]}(ξ) - f^{[p]}(y))``, the error of the Taylor step of degree p + 1.

    Args:
        stepper: the step.

    Cost: one evaluation more than the step with p ≥ 1.
    """

    stepper: TaylorLagrange

    @property
    def order(self) -> int:
        """The order of convergence, that of the step."""
        return self.stepper.order

    @property
    def error_order(self) -> int:
        """The power of h with which the estimate shrinks."""
        return self.stepper.degree + 2

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """Nothing: a step needs no other."""
        return (), 0

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from y at t0 to t1."""
        pieces = self.stepper.pieces(field, t0, t1, y, self.stepper.degree + 1)
        error = pieces.remainder - column(self.stepper.weight(t1 - t0), y) * pieces.derivatives[-1]
        return Step(pieces.y, (), error.detach(), torch.maximum(y.abs(), pieces.y.abs()), pieces.nfe)


class Rolled(NamedTuple):
    """What :func:`roll` returns: the states at the last time, and the mean size of all remainders."""

    y: Tensor
    remainder: Tensor


def roll(
    stepper: TaylorLagrange, field: Callable[..., Tensor], y0: Float[Tensor, "samples ..."], times: Times
) -> Rolled:
    """Integrate on a grid and keep what the remainders come to, for ``loss = task + weight · remainder``.

    Args:
        stepper: the step.
        field: ``field(y, t) -> value``.
        y0: initial states.
        times: the grid, as for :func:`odecore.driver.integrate.integrate`.

    Returns:
        The last states, and the mean over steps, samples and elements of the absolute values of the remainders.

    Cost: as :func:`~odecore.driver.integrate.integrate`.
    """
    grid = Grid.of(stepper, field, y0, times, ())
    y, carry, _ = grid.start(y0)
    sizes = []
    for index in range(len(grid.nodes) - 1):
        taken = grid.step(index, y, carry)
        y, carry = taken.y, taken.carry
        sizes.append(taken.error.abs().mean())
    return Rolled(y, torch.stack(sizes).mean())


class Starts(NamedTuple):
    """Where steps start and end: states of shape (steps, …), and times of shape (steps,)."""

    y: Tensor
    t0: Tensor
    t1: Tensor


@torch.no_grad()
def starts(
    stepper: TaylorLagrange, field: Callable[..., Tensor], y0: Float[Tensor, "samples ..."], times: Sequence[float]
) -> Starts:
    """Collect the starts of all steps on a grid, to fit the midpoint there."""
    states = integrate(stepper, field, y0, times, trajectory=True).ys
    assert states is not None
    grid = torch.tensor(times, dtype=torch.float64).repeat(len(y0), 1)
    return Starts(states[:, :-1].flatten(0, 1), grid[:, :-1].flatten(), grid[:, 1:].flatten())


def fit_midpoint(
    stepper: TaylorLagrange, field: Callable[..., Tensor], at: Starts, *, steps: int = 50,
    optimizer: Optimizer | None = None, tolerance: float = 1e-7,
) -> Fit:
    """Train the midpoint of a stepper on the field as it is now, in place.

    ``min_Γ mean |y⁺ - y(t1)|`` over the steps, y(t1) being tight Dormand–Prince solutions: the Γ-step of the
    alternating training, whose θ-step minimises ``task + weight · remainder`` (:func:`roll`) over the field alone.
    As a callback of :func:`odecore.learn.fit.fit`: ``every(400, lambda moment: fit_midpoint(stepper, field, at))``,
    with fresh :func:`starts` there.

    Args:
        stepper: whose midpoint is a module.
        field: ``field(y, t) -> value``.
        at: the steps to train on.
        steps: of the optimiser, each on all of them.
        optimizer: Adam with rate .01 by default.
        tolerance: relative and absolute, of the solutions.

    Returns:
        What the training came to; its losses are mean absolute errors of a step.

    Raises:
        ValueError: a midpoint that is no module.

    Cost: one solution, and ``steps`` steps with their gradients.
    """
    if not isinstance(stepper.midpoint, nn.Module):
        raise ValueError(f"midpoint={stepper.midpoint!r}: give a module, such as a DiagonalMidpoint")
    with torch.no_grad():
        exact = solve(DORMAND_PRINCE, field, at.y, at.t0, at.t1, rtol=tolerance, atol=tolerance).y

    def loss(midpoint: nn.Module, batch: object) -> Tensor:
        return (replace(stepper, midpoint=midpoint).step(field, at.t0, at.t1, at.y, ()).y - exact).abs().mean()

    return fit(stepper.midpoint, loss, lambda step: None, steps=steps, optimizer=optimizer or adam(1e-2))
