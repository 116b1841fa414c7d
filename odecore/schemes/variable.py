"""The change of variables in which a scheme integrates a semilinear problem."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from odecore.phi import exponential_weights
from odecore.plan import Weight

Rule = Callable[[Sequence[float], float, Weight], tuple[Weight, ...]]
"""Weights of a quadrature with kernel e^{-rate (h-u)} on [0, h]: (node offsets, h, rate) -> weights."""


class Node(NamedTuple):
    """One place on the path.

    Attributes:
        t: time as the network counts it.
        clock: the variable τ that the scheme steps in; ±inf at an end of the path.
        scale: s(τ), the solution's factor with no prediction.
        gain: c s(τ) e^{rate τ}, what a prediction contributes per unit of clock.
    """

    t: float
    clock: float
    scale: Weight
    gain: Weight


@dataclass(frozen=True, slots=True)
class Variable:
    """How the state follows from the prediction m along a clock τ.

    With ``x = s(τ) y`` the problem is ``dy/dτ = c e^{rate τ} m``, hence between two nodes::

        x_t = (scale_t / scale_s) x_s + gain_t ∫_0^h e^{-rate (h-u)} m(τ_s + u) du

    Args:
        rate: 0 for a plain integral.
        constant: c.
        at_time: the node at a network time.
        at_clock: the node at a clock value.
        to_prediction: (a, b) at a network time, with m = a x + b raw.
    """

    rate: Weight
    constant: float
    at_time: Callable[[float], Node]
    at_clock: Callable[[float], Node]
    to_prediction: Callable[[float], tuple[Weight, Weight]]

    def decay(self, start: Node, end: Node) -> Weight:
        """Weight of ``x_start`` in ``x_end``.

        Raises:
            ValueError: the solution's scale is zero at the start.
        """
        if isinstance(start.gain, float) and start.gain == end.gain and math.isfinite(end.clock - start.clock):
            # Then s is e^{-rate τ} itself, which may underflow where the ratio does not.
            exponent = self.rate * (start.clock - end.clock)
            return exponent.exp() if isinstance(exponent, Tensor) else math.exp(exponent)
        if isinstance(start.scale, float) and start.scale == 0.0:
            raise ValueError(f"no step can start at t={start.t}, where the solution's scale is zero: choose a solver "
                             "that interpolates the data, or a later start")
        return end.scale / start.scale

    def propagator(
        self, start: Node, end: Node, offsets: Sequence[float] = (0.0,), rule: Rule = exponential_weights
    ) -> tuple[Weight, tuple[Weight, ...]]:
        """Weight of ``x_start``, and of the predictions at the clock offsets from ``start``, in ``x_end``.

        Raises:
            ValueError: an infinite step with more than one prediction, or one that has no limit.
        """
        h = end.clock - start.clock
        decay = self.decay(start, end)
        if math.isfinite(h):
            return decay, tuple(end.gain * w for w in rule(offsets, h, self.rate))
        if len(offsets) > 1 or self.rate == 0:
            raise ValueError(f"the step from t={start.t} to t={end.t} is infinitely long in the solver's clock: "
                             "only a first-order exponential step can take it")
        if self.rate > 0:
            return decay, (end.gain / self.rate,)
        return decay, (self.constant * end.scale * math.exp(self.rate * start.clock) / -self.rate,)


def exact_flow(variable: Variable, t_start: float, t_end: float) -> tuple[Weight, Weight]:
    """``(A, B)`` of the exact solution ``A x + B m`` for a constant prediction m."""
    decay, (weight,) = variable.propagator(variable.at_time(t_start), variable.at_time(t_end))
    return decay, weight


def ode(linear: Weight = 0.0) -> Variable:
    """The variable of ``dx/dt = L x + m(t, x)``: the clock is the time itself.

    Args:
        linear: L, a number, or a tensor that broadcasts over the state (a diagonal or a Fourier
            symbol); 0 for the plain problem ``dx/dt = m``.
    """
    def node(t: float) -> Node:
        growth = math.exp(linear * t) if isinstance(linear, float | int) else (linear * t).exp()
        return Node(t, t, growth, 1.0)

    return Variable(-linear, 1.0, node, node, lambda t: (0.0, 1.0))
