"""The solution between the steps: interpolation by bootstrapping, and piecewise polynomials over a whole solve."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from odecore.driver.fetch import refuse_mapped
from odecore.plan import combine
from odecore.stepper import Dense, Field, column, send


def bootstrapped(
    field: Field, t0: Tensor, t1: Tensor, y0: Tensor, y1: Tensor, order: int,
    start: Tensor | None = None, end: Tensor | None = None,
) -> Dense:
    """Interpolate a step of any method of order p with an error of O(h^p), which keeps the order of a solve.

    The cubic Hermite polynomial of the states and slopes at both ends has an error of O(h^4). The
    field at d - 2 points of an interpolant of degree d has an error that h makes one order smaller:
    with these slopes as further data the degree rises by one, until it is p - 1::

        p(0) = y0    p(1) = y1    p'(0) = h f(y0)    p'(1) = h f(y1)    p'(θ_i) = h f(p_before(θ_i))

    Args:
        field: the right-hand side.
        t0: start of the step, of shape (samples,), float64, on the host.
        t1: its end.
        y0: states at t0.
        y1: states at t1.
        order: p.
        start: f at t0 if it is known; None evaluates it.
        end: f at t1 likewise.

    Cost: two evaluations less the known slopes, and (p - 4)(p - 3) / 2 where p > 4.

    Source: Enright, Jackson, Nørsett & Thomsen 1986, Interpolants for Runge–Kutta formulas,
        doi:10.1145/7921.7923.
    """
    length, nfe = column(t1 - t0, y0), (start is None) + (end is None)
    first = field(y0, send(t0, y0.device)) if start is None else start
    last = field(y1, send(t1, y1.device)) if end is None else end
    data = [y1 - y0, length * first, length * last]
    coefficients = torch.stack([y0, *(combine(row, data) for row in _hermite_birkhoff(3))], 1)
    for degree in range(4, order):
        slopes = []
        for theta in _points(degree):
            point = evaluate(coefficients, theta)
            slopes.append(length * field(point, send(torch.lerp(t0, t1, theta), y0.device)))
        nfe += len(slopes)
        rows = _hermite_birkhoff(degree)
        coefficients = torch.stack([y0, *(combine(row, [*data, *slopes]) for row in rows)], 1)
    return Dense(coefficients, nfe)


def evaluate(coefficients: Inexact[Tensor, "rows terms ..."], theta: float | Tensor) -> Inexact[Tensor, "rows ..."]:
    """Sum ``Σ_k coefficients[:, k] θ^k`` by Horner's rule, for one θ or one a row."""
    terms = coefficients.unbind(1)
    factor = column(theta, terms[0]) if isinstance(theta, Tensor) else theta
    value = terms[-1]
    for term in terms[-2::-1]:
        value = term + factor * value
    return value


def fraction(t: Tensor, t0: Tensor, t1: Tensor) -> Tensor:
    """Place of times within steps, 0 in a step of length zero."""
    return (t - t0) / torch.where(t1 == t0, 1.0, t1 - t0)


@dataclass(frozen=True, slots=True)
class DenseSolution:
    """The solution at any time of its range: one polynomial for each accepted step of each sample.

    Attributes:
        t0: first time of each sample, float64, on the host.
        t1: last time that it reached.
        starts: begin of each step, of shape (samples, steps), padded with the last time.
        ends: its end.
        index: row of ``coefficients`` of each step.
        coefficients: of shape (accepted steps of all samples, degree + 1, …).
        dtype: of the values.

    Memory: degree + 1 states for each accepted step of each sample, and one more for its last state.
    """

    t0: Tensor
    t1: Tensor
    starts: Tensor
    ends: Tensor
    index: Tensor
    coefficients: Tensor
    dtype: torch.dtype

    def __call__(
        self, times: float | Float[Tensor, " times"] | Float[Tensor, "samples times"]
    ) -> Inexact[Tensor, "samples *times ..."]:
        """Evaluate at times for all samples, or at a row of times for each; differentiable in them too.

        Args:
            times: one number, a vector, or one row a sample, in any order.

        Returns:
            States of shape (samples, …) for a number, else (samples, times, …).

        Raises:
            ValueError: a shape that does not fit, a time that the solution does not reach, or mapped times.
        """
        refuse_mapped("times", times)
        given = torch.as_tensor(times, dtype=torch.float64).cpu()
        samples = len(self.t0)
        if given.ndim > 2 or (given.ndim == 2 and len(given) != samples):
            raise ValueError(f"times has shape {tuple(given.shape)}: give a number, a vector, or {samples} rows")
        t = given.reshape(-1, given.shape[-1] if given.ndim else 1).expand(samples, -1)
        forward = torch.where(self.t1 < self.t0, -1.0, 1.0).unsqueeze(1)
        clock, low, high = forward * t, forward * self.t0.unsqueeze(1), forward * self.t1.unsqueeze(1)
        inside = (clock >= low) & (clock <= high)
        if not bool(inside.all()):
            sample = int((~inside).nonzero()[0, 0])
            raise ValueError(f"times holds {float(t[~inside][0])}: the solution of sample {sample} goes from "
                             f"{float(self.t0[sample])} to {float(self.t1[sample])}")
        step = torch.searchsorted(forward * self.starts, clock.detach().contiguous(), right=True) - 1
        theta = fraction(t, self.starts.gather(1, step), self.ends.gather(1, step)).reshape(-1)
        chosen = send(self.index.gather(1, step).reshape(-1), self.coefficients.device)
        values = evaluate(self.coefficients.index_select(0, chosen), theta).to(self.dtype)
        return values.reshape(samples, *([t.shape[1]] if given.ndim else []), *values.shape[1:])


def _points(degree: int) -> list[float]:
    """Interior points of the interpolant of a degree: not symmetric, where the conditions would be singular.

    Their largest Lebesgue constant up to degree 9 is .8.
    """
    interior = degree - 3
    return [i / (interior + 2) for i in range(1, interior + 1)]


@cache
def _hermite_birkhoff(degree: int) -> tuple[tuple[float, ...], ...]:
    """Weights of the data (p(1) - p(0), p'(0), p'(1), p'(θ_i)) in each coefficient of θ, …, θ^degree."""
    powers = np.arange(1, degree + 1)
    rows = [np.ones(degree), *(powers * x ** (powers - 1.0) for x in (0.0, 1.0, *_points(degree)))]
    return tuple(tuple(row) for row in np.linalg.inv(np.stack(rows)).tolist())
