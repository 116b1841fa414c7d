"""Robertson's kinetics for `pnode.py`: learned through an implicit scheme, and through an explicit one.

The rates span nine decades. On the times {0} and 40 from 1e-5 to 100, evenly in their logarithm, the last steps are
ten thousand times longer than explicit methods may take.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from claims import Claim
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from odecore.driver.integrate import integrate
from odecore.driver.solution import SolveError, Status
from odecore.facade.methods import stepper
from odecore.learn.callbacks import cosine_decay
from odecore.learn.fields import MLP
from odecore.learn.fit import Loss, adam, fit

TIMES = np.concatenate([[0.0], np.logspace(-5, 2, 40)])
METHODS = {"Crank-Nicolson": "trapezoid", "RK4": "classic_rk4"}


@functools.cache
def robertson() -> tuple[Tensor, Tensor, Tensor]:
    """The solution at the times, between 0 and 1, with the minimum and the width that normalised it."""
    def rates(t: float, y: np.ndarray) -> np.ndarray:
        slow, fast, back = 0.04 * y[0], 3e7 * y[1] ** 2, 1e4 * y[1] * y[2]
        return np.array([back - slow, slow - back - fast, fast])

    found = solve_ivp(rates, (0, 100), [1.0, 0.0, 0.0], "Radau", TIMES, rtol=1e-10, atol=1e-13).y.T
    low, width = found.min(0), np.ptp(found, 0)
    return torch.from_numpy((found - low) / width), torch.from_numpy(low), torch.from_numpy(width)


def true_field(y: Tensor, t: Tensor) -> Tensor:
    """The right-hand side itself, of normalised concentrations."""
    _, low, width = robertson()
    a, b, c = (low + width * y).unbind(1)
    slow, fast, back = 0.04 * a, 3e7 * b.square(), 1e4 * b * c
    return torch.stack([back - slow, slow - back - fast, fast], 1) / width


class Kinetics(nn.Module):
    """A network for the rates, each in units of the largest difference quotient in its data; at first they are 0."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        data = robertson()[0]
        self.network = MLP((3, 50, 50, 3), activation=nn.functional.gelu, seed=seed, dtype=torch.float64)
        for parameter in self.network.layers[-1].parameters():
            nn.init.zeros_(parameter)
        quotients = data.diff(dim=0) / torch.from_numpy(np.diff(TIMES))[:, None]
        self.register_buffer("unit", quotients.abs().amax(0))

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        """The rates."""
        return self.unit * self.network(2 * y - 1)


def one_step(method: str) -> Loss:
    """The mean error over the intervals, each from the data at its start, where its step can be taken."""
    data, times = robertson()[0], torch.from_numpy(TIMES)
    columns = torch.stack([times[:-1], times[1:]])

    def loss(field: nn.Module, batch: None) -> Tensor:
        found = integrate(stepper(method), field, data[:-1], columns, partial=True)
        taken = (found.status == Status.FINISHED)[:, None]
        return torch.where(taken, (found.y - data[1:]).abs(), 0.0).sum() / data[1:].numel()

    return loss


def path(method: str, field: Callable[..., Tensor]) -> Tensor:
    """The path on the times of the data."""
    states = integrate(stepper(method), field, robertson()[0][:1], TIMES.tolist(), trajectory=True).ys
    assert states is not None
    return states[0]


def rollout(method: str) -> Loss:
    """The mean error along the path from the start."""
    data = robertson()[0]
    return lambda field, batch: (path(method, field) - data).abs().mean()


def learn(method: str, steps: tuple[int, int], seed: int) -> tuple[float, str]:
    """Train by single steps, then along the path; the path's mean error, or inf and why there is none."""
    field = Kinetics(seed)
    try:
        for loss, count, rate in ((one_step(method), steps[0], 1e-2), (rollout(method), steps[1], 1e-3)):
            fit(field, loss, lambda step: None, steps=count, optimizer=adam(rate), clip=1.0,
                callbacks=[cosine_decay(count, floor=0.02)])
        with torch.no_grad():
            return (path(method, field) - robertson()[0]).abs().mean().item(), ""
    except (SolveError, FloatingPointError) as error:
        return math.inf, str(error)


def robertson_claims(steps: tuple[int, int], seed: int) -> list[Claim]:
    """Both methods on the true rates, then both in training."""
    claims, data = [], robertson()[0]
    for name, method in METHODS.items():
        try:
            error = (path(method, true_field) - data).abs().mean().item()
        except SolveError:
            error = math.inf
        claims.append(Claim(f"Robertson, true rates: mean error of {name} on the data's times", error))
    for name, method in METHODS.items():
        error, why = learn(method, steps, seed)
        if why:
            print(f"learning Robertson with {name} ended early: {why}")
        implicit = name == "Crank-Nicolson"
        claims.append(Claim(f"Robertson, learned with {name}: mean error of the path", error,
                            "trains" if implicit else "fails", "abstract of PNODE", goal=0.05 if implicit else None))
    return claims
