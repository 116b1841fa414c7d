"""Taylor–Lagrange steps on the probability-flow ODE: the rest of each step is taken at a point that is learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from odecore.driver.integrate import integrate
from odecore.explicit.taylor import total_derivatives
from odecore.stepper import Carry, Field, Step, column, send
from scoremodels.model import ScoreModel
from scoremodels.schedule import NoiseSchedule

DIFFERENCE = 1e-3
"""Distance in log-SNR for the derivatives of a schedule, which knows only its values."""


class TaylorResult(NamedTuple):
    """What :func:`sample_taylor` returns: states at the end, and evaluations by the count of linear operations."""

    samples: Tensor
    nfe: int


class Flow:
    """The probability-flow ODE in log-SNR λ: ``y = x/σ``, ``dy/dλ = e^λ x0(σ y, λ)``, differentiable in both.

    Args:
        schedule: noise schedule of the model.
        prediction: what the network predicts.
        network: ``(x, t) -> raw``.
    """

    def __init__(self, schedule: NoiseSchedule, prediction: str, network: Field) -> None:
        self.schedule, self.prediction, self.network = schedule, prediction, network

    def __call__(self, y: Tensor, log_snr: Tensor) -> Tensor:
        """``dy/dλ``, from states and one log-SNR each."""
        time, sigma, of_state, of_raw = (_expanded(log_snr, values) for values in self._expansions(log_snr.detach()))
        x = _times(sigma, y) * y
        clean = _times(of_state, y) * x + _times(of_raw, y) * self.network(x, time)
        return _times(torch.exp(log_snr), y) * clean

    def _expansions(self, log_snr: Tensor) -> list[Tensor]:
        """Values of t, σ and the conversion to x0, and two derivatives of each, of shape (4, 3, samples)."""
        centre = log_snr.double().cpu().numpy()
        first, last = self.schedule.log_snr(self.schedule.t_max), self.schedule.log_snr(self.schedule.t_min)
        inner = centre.clip(first + DIFFERENCE, last - DIFFERENCE)
        before, at, after, value = (self._values(place) for place in
                                    (inner - DIFFERENCE, inner, inner + DIFFERENCE, centre))
        once, twice = (after - before) / (2 * DIFFERENCE), (after - 2 * at + before) / DIFFERENCE**2
        return list(send(torch.from_numpy(np.stack((value, once, twice), 1)), log_snr.device))

    def _values(self, log_snr: NDArray[np.float64]) -> NDArray[np.float64]:
        times = self.schedule.time_of_log_snr(log_snr)
        pairs = [self.schedule.conversion(self.prediction, "sample", t) for t in times.tolist()]
        return np.stack((times, self.schedule.sigma(times), *np.array(pairs).T))


def _expanded(log_snr: Tensor, values: Tensor) -> Tensor:
    """A function of λ from its value and two derivatives at the present one, for derivatives of any kind."""
    shift = log_snr - log_snr.detach()
    return values[0] + shift * (values[1] + shift * (values[2] / 2))


def _times(factor: Tensor, y: Tensor) -> Tensor:
    return factor.to(y.dtype).reshape(-1, *[1] * (y.ndim - 1))


def _integral(h: Tensor, power: int) -> Tensor:
    """``∫_0^h e^u u^power du`` for powers of 0, 1 and 2."""
    grown = torch.expm1(h)
    if power == 0:
        return grown
    if power == 1:
        return h * (grown + 1) - grown
    return h * h * (grown + 1) - 2 * _integral(h, 1)


class Remainder(nn.Module):
    """Where each step of a grid takes its remainder: how far in λ, and a gain for each element of the state.

    ``τ = λ + r h`` and ``ξ = y + (1 + Γ) ⊙ e^λ (e^{r h} - 1) x0``: before training r is where the remainder
    agrees with the flow to one order more than anywhere else, and Γ is zero.

    Args:
        log_snrs: the grid, increasing, of one number more than there are steps.
        degree: p, 0 or 1: whether the derivative of x0 is computed at ξ, or x0 itself.
        shape: of one sample.

    Raises:
        ValueError: a degree other than 0 and 1, or a grid that does not increase.
    """

    log_snrs: Tensor

    def __init__(self, log_snrs: Sequence[float], degree: int, shape: Sequence[int]) -> None:
        super().__init__()
        if degree not in (0, 1):
            raise ValueError(f"degree={degree!r}: choose 0 or 1")
        grid = torch.as_tensor(log_snrs, dtype=torch.float64)
        if grid.ndim != 1 or len(grid) < 2 or not bool((grid.diff() > 0).all()) or not bool(grid.isfinite().all()):
            raise ValueError(f"log_snrs={list(log_snrs)}: give two finite numbers or more that increase")
        self.degree = degree
        self.register_buffer("log_snrs", grid)
        h = grid.diff()
        self.fractions = nn.Parameter(_integral(h, degree + 1) / ((degree + 1) * h * _integral(h, degree)))
        self.gains = nn.Parameter(torch.zeros(len(h), *shape))

    def forward(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """(r, Γ) of steps of the grid, one a sample."""
        return self.fractions[steps].clamp(0.0, 1.0), self.gains[steps]


@dataclass(frozen=True, slots=True)
class TaylorLagrangeSampler:
    """A step in log-SNR with exact exponential weights and a learned remainder.

    With ``W_k = e^λ ∫_0^h e^u u^k du`` and the point (ξ, τ) of :class:`Remainder`::

        degree 0:  y⁺ = y + W_0 x0(ξ, τ)
        degree 1:  y⁺ = y + W_0 x0(y, λ) + W_1 dx0/dλ(ξ, τ)

    where dx0/dλ is the derivative along the flow through ξ. The weights are positive, so that by the mean value
    theorem each element is exact for a point of its own. The error estimate is the remainder.

    Args:
        schedule: noise schedule of the model.
        prediction: what the network predicts.
        remainder: the points; its grid is the one that the step must be run on.

    Cost: 2 + degree evaluations by the count of linear operations.

    Source: Djeumou et al. 2022, arXiv:2201.05715, with the exponential weights of Lu et al. 2022,
        arXiv:2211.01095; the combination is ours.
    """

    schedule: NoiseSchedule
    prediction: str
    remainder: Remainder

    @property
    def order(self) -> int:
        """The order of convergence with any points."""
        return self.remainder.degree + 1

    @property
    def error_order(self) -> int:
        """The power of h with which the remainder shrinks."""
        return self.remainder.degree + 1

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """Count the steps from the first."""
        return (torch.zeros(len(y), dtype=torch.int64, device=y.device),), 0

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from log-SNR t0 to t1; the field is the network, ``field(x, t) -> raw``, and y is x/σ."""
        flow, degree = Flow(self.schedule, self.prediction, field), self.remainder.degree
        start, h = send(t0, y.device), send(t1 - t0, y.device)
        clean = flow(y, start) * column(torch.exp(-t0), y)
        fractions, gains = self.remainder(carry[0])
        reach = _times(torch.exp(start) * torch.expm1(fractions * h), y)
        place, moment = y + reach * (1 + gains.to(y.dtype)) * clean, start + fractions * h
        value, *further = total_derivatives(flow, place, moment, degree + 1)
        # y' = e^λ x0, so that y'' = e^λ (x0 + dx0/dλ).
        highest = _times(torch.exp(-moment), y) * (further[0] - value if degree else value)
        rest = column(torch.exp(t0) * _integral(t1 - t0, degree), y) * highest
        new = y + rest if degree == 0 else y + column(torch.exp(t0) * torch.expm1(t1 - t0), y) * clean + rest
        return Step(new, (carry[0] + 1,), rest, torch.maximum(y.abs(), new.abs()), 2 + degree)


@torch.no_grad()
def sample_taylor(
    model: ScoreModel, x: Float[Tensor, "samples ..."], remainder: Remainder, *,
    condition: Int[Tensor, " samples"] | None = None,
) -> TaylorResult:
    """Walk the grid of a remainder from noise to data.

    Args:
        model: the model.
        x: start states at the first log-SNR of the grid.
        remainder: from :func:`remainder_loss` or fresh.
        condition: class labels, one a sample.

    Returns:
        States at the last log-SNR, and evaluations; those of degree 1 take the time of more, see
        :func:`odecore.explicit.taylor.total_derivatives`.

    Raises:
        ValueError: a grid outside the schedule.

    Cost: 2 + degree evaluations a step.
    """
    grid, schedule = remainder.log_snrs.cpu(), model.schedule
    times: NDArray[np.float64] = schedule.time_of_log_snr(grid.numpy())
    first, last = (float(schedule.sigma(float(t))) for t in (times[0], times[-1]))
    stepper = TaylorLagrangeSampler(schedule, model.prediction, remainder)
    solution = integrate(stepper, model, x / first, grid, args=() if condition is None else (condition,))
    return TaylorResult(solution.y * last, solution.nfe)


class OwnSteps(NamedTuple):
    """Steps of converged trajectories of a model, one a row: number in the grid, x/σ before and after, labels."""

    number: Tensor
    before: Tensor
    after: Tensor
    condition: tuple[Tensor, ...] = ()


def remainder_loss(model: ScoreModel) -> Callable[[nn.Module, OwnSteps], Tensor]:
    """The loss that trains a remainder in :func:`odecore.learn.fit.fit`: mean L1 of a step, in units of the samples.

    Args:
        model: whose parameters stay as they are.
    """
    def loss(remainder: nn.Module, batch: OwnSteps) -> Tensor:
        assert isinstance(remainder, Remainder)
        stepper = TaylorLagrangeSampler(model.schedule, model.prediction, remainder)
        grid = remainder.log_snrs.cpu()
        index = batch.number.cpu()
        step = stepper.step(lambda x, t: model(x, t, *batch.condition), grid[index], grid[index + 1], batch.before,
                            (batch.number,))
        sigma = model.schedule.sigma(model.schedule.time_of_log_snr(grid[index + 1].numpy()))
        return (column(torch.from_numpy(sigma), step.y) * (step.y - batch.after)).abs().mean()

    return loss
