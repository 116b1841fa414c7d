"""An ODE as a layer of a network: which solver integrates it, and how gradients come back through it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odecore.driver.integrate import integrate
from odecore.driver.solve import solve
from odecore.explicit.embedded import DORMAND_PRINCE
from odecore.gradients.backsolve import backsolve
from odecore.gradients.checkpointed import integrate_checkpointed, solve_checkpointed
from odecore.stepper import Stepper

GRADIENTS = ("autograd", "discrete", "continuous")


class Integrator(Protocol):
    """What takes a field from a state through times."""

    def __call__(
        self, field: Callable[..., Tensor], y0: Float[Tensor, "samples ..."], times: Sequence[float], *,
        args: tuple[Tensor, ...] = (), parameters: Iterable[Tensor] = (),
    ) -> Float[Tensor, "times samples ..."]:
        """Return the states at all times, that at the first among them."""
        ...


@dataclass(frozen=True, slots=True)
class OnGrid:
    """So many equal steps of any stepper between each two times.

    Args:
        stepper: the method.
        steps: steps between two times.
        states: most states stored for the gradient between two times, by the discrete adjoint; None leaves the
            gradient to autograd, which stores all.

    Raises:
        ValueError: no steps.
    """

    stepper: Stepper
    steps: int = 1
    states: int | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: give at least 1")

    def __call__(
        self, field: Callable[..., Tensor], y0: Tensor, times: Sequence[float], *, args: tuple[Tensor, ...] = (),
        parameters: Iterable[Tensor] = (),
    ) -> Tensor:
        """Return the states at all times."""
        pieces = [torch.linspace(a, b, self.steps + 1, dtype=torch.float64) for a, b in itertools.pairwise(times)]
        if self.states is None:
            nodes = torch.cat([pieces[0][:1], *(piece[1:] for piece in pieces)])
            reached = integrate(self.stepper, field, y0, nodes, args=args, trajectory=True).ys
            assert reached is not None
            return reached[:, ::self.steps].transpose(0, 1)
        states, needed = [y0], tuple(parameters)
        for piece in pieces:
            states.append(integrate_checkpointed(self.stepper, field, states[-1], piece, args=args, states=self.states,
                                                 parameters=needed))
        return torch.stack(states)


@dataclass(frozen=True, slots=True)
class WithTolerance:
    """Steps that each sample chooses for itself.

    Args:
        stepper: a method with an error estimate.
        rtol: relative tolerance.
        atol: absolute tolerance.
        gradient: "autograd" through the accepted steps, the same "discrete" with few stored states, or "continuous",
            the adjoint equation, whose memory does not grow with the steps and whose error is of the tolerance.
        states: most states stored, for the discrete gradient.

    Raises:
        ValueError: an unknown gradient.
    """

    stepper: Stepper = DORMAND_PRINCE
    rtol: float = 1e-5
    atol: float = 1e-5
    gradient: str = "autograd"
    states: int | None = None

    def __post_init__(self) -> None:
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient={self.gradient!r}: choose one of {', '.join(GRADIENTS)}")

    def __call__(
        self, field: Callable[..., Tensor], y0: Tensor, times: Sequence[float], *, args: tuple[Tensor, ...] = (),
        parameters: Iterable[Tensor] = (),
    ) -> Tensor:
        """Return the states at all times."""
        first, last, due = times[0], times[-1], torch.tensor(times[1:], dtype=torch.float64)
        if self.gradient == "continuous":
            return backsolve(self.stepper, field, y0, times, rtol=self.rtol, atol=self.atol, args=args,
                             parameters=parameters)
        if self.gradient == "discrete":
            later = solve_checkpointed(self.stepper, field, y0, first, last, rtol=self.rtol, atol=self.atol, args=args,
                                       ts=due, states=self.states, parameters=parameters)
        elif len(due) == 1:
            later = solve(self.stepper, field, y0, first, last, rtol=self.rtol, atol=self.atol, args=args
                          ).y.unsqueeze(1)
        else:
            found = solve(self.stepper, field, y0, first, last, rtol=self.rtol, atol=self.atol, args=args, ts=due).ys
            assert found is not None
            later = found
        return torch.cat([y0.unsqueeze(0), later.transpose(0, 1)])


class NeuralODE(nn.Module):
    """A layer whose output is the state at the end of ``dy/dt = f(y, t)`` from the layer's input at the start.

    Args:
        field: f, called with states of shape (samples, …) and one time a sample.
        integrator: how it is integrated.
        span: start and end.

    Source: Chen et al. 2018, arXiv:1806.07366.
    """

    def __init__(
        self, field: nn.Module, integrator: Integrator | None = None, span: tuple[float, float] = (0.0, 1.0)
    ) -> None:
        super().__init__()
        self.field = field
        self.integrator = WithTolerance() if integrator is None else integrator
        self.span = span

    def forward(self, x: Float[Tensor, "samples ..."]) -> Float[Tensor, "samples ..."]:
        """The state at the end."""
        return self.integrator(self.field, x, self.span, parameters=self.field.parameters())[-1]


class WithTime(nn.Module):
    """A field of (y, t) by a network of y and t side by side.

    Args:
        network: from D + 1 numbers to D.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, y: Float[Tensor, "samples size"], t: Float[Tensor, " samples"]) -> Float[Tensor, "samples size"]:
        """The value at each sample's time."""
        return self.network(torch.cat([y, t.to(y.device, y.dtype).unsqueeze(1)], 1))
