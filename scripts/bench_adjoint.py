"""Measure memory and time of gradients through 1000 Runge-Kutta steps: `python scripts/bench_adjoint.py`.

Every way but the two adaptive ones takes as many steps of a fourth-order method with four stages, on
a multilayer perceptron. Memory is what the C library has handed out (`mallinfo2`), above what there
was before the run, at its highest over all evaluations of the field, forwards and backwards; so it
counts every tensor. Linux with glibc only.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torchdiffeq
from torch import Tensor, nn

from odecore.explicit.embedded import DORMAND_PRINCE
from odecore.explicit.tableaus import RK4
from odecore.gradients.adjoint import discrete
from odecore.gradients.backsolve import backsolve
from odecore.gradients.checkpoint import optimal_advances
from odecore.gradients.reversible import reversible, runge_kutta_increment

TOLERANCE = 1e-5
"""Of the two adaptive solves, where steps are not prescribed."""


class Mallinfo(ctypes.Structure):
    """The fields of glibc's ``struct mallinfo2``."""

    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
                 "keepcost")]


class Result(NamedTuple):
    """What one way of taking a gradient cost."""

    forward: float
    backward: float
    peak: int
    calls: int
    gradient: Tensor


class Meter:
    """The highest number of bytes in use since it was made."""

    def __init__(self) -> None:
        self._read = ctypes.CDLL(None).mallinfo2
        self._read.restype = Mallinfo
        self._before = self._in_use()
        self.peak = 0

    def look(self) -> None:
        """Compare what is in use now."""
        self.peak = max(self.peak, self._in_use() - self._before)

    def _in_use(self) -> int:
        info = self._read()
        return info.uordblks + info.hblkhd


class Look(torch.autograd.Function):
    """The identity, which looks at a meter in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, meter: Meter) -> Tensor:
        """Look on the way forth."""
        ctx.meter = meter
        meter.look()
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Look on the way back."""
        ctx.meter.look()
        return gradient, None


class Field(nn.Module):
    """A small network as right-hand side; it counts its calls."""

    def __init__(self, width: int, meter: Meter | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.meter = meter
        self.calls = 0

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """dy/dt in torchdiffeq's order of arguments."""
        self.calls += 1
        slope = self.body(y)
        return slope if self.meter is None else Look.apply(slope, self.meter)


def rk4_step(field: Field, t: float, h: float, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The classical step; torchdiffeq's own "rk4" is Kutta's 3/8 rule, at the same cost."""
    (y,) = state
    k1 = field(t, y)
    k2 = field(t + h / 2, y + h / 2 * k1)
    k3 = field(t + h / 2, y + h / 2 * k2)
    k4 = field(t + h, y + h * k3)
    return (y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4),)


def plain(field: Field, y: Tensor, steps: int) -> Tensor:
    """Autograd through all steps."""
    for n in range(steps):
        (y,) = rk4_step(field, n / steps, 1 / steps, (y,))
    return y


def replayed(field: Field, y: Tensor, steps: int, states: int) -> Tensor:
    """The discrete adjoint in ``states`` states."""
    functions = [partial(rk4_step, field, n / steps, 1 / steps) for n in range(steps)]
    return discrete(functions, (y,), states=states, parameters=field.parameters())[0]


def coupled(field: Field, y: Tensor, steps: int) -> Tensor:
    """The reversible coupling of the same method."""
    return reversible(runge_kutta_increment(RK4, lambda y, t: field(t, y)), y,
                      torch.linspace(0, 1, steps + 1, dtype=torch.float64), parameters=field.parameters())


def torchdiffeq_on_grid(field: Field, y: Tensor, steps: int, adjoint: bool) -> Tensor:
    """Run torchdiffeq with as many steps."""
    solver = torchdiffeq.odeint_adjoint if adjoint else torchdiffeq.odeint
    return solver(field, y, torch.tensor([0.0, 1.0]), method="rk4", options={"step_size": 1 / steps})[-1]


def continuous(field: Field, y: Tensor, steps: int) -> Tensor:
    """The continuous adjoint with adaptive steps."""
    return backsolve(DORMAND_PRINCE, lambda y, t: field(t, y), y, [0.0, 1.0], rtol=TOLERANCE, atol=TOLERANCE,
                     parameters=field.parameters())[-1]


def torchdiffeq_continuous(field: Field, y: Tensor, steps: int) -> Tensor:
    """Run torchdiffeq's continuous adjoint with adaptive steps."""
    return torchdiffeq.odeint_adjoint(field, y, torch.tensor([0.0, 1.0]), method="dopri5", rtol=TOLERANCE,
                                      atol=TOLERANCE, adjoint_options={"norm": "seminorm"})[-1]


def ways(states: int) -> Mapping[str, Callable[[Field, Tensor, int], Tensor]]:
    """All ways, by name."""
    return {
        "autograd through a plain loop": plain,
        "torchdiffeq odeint": partial(torchdiffeq_on_grid, adjoint=False),
        f"discrete, {states} states": partial(replayed, states=states),
        f"discrete, {2 * states} states": partial(replayed, states=2 * states),
        "reversible": coupled,
        "torchdiffeq odeint_adjoint": partial(torchdiffeq_on_grid, adjoint=True),
        "backsolve, adaptive": continuous,
        "torchdiffeq odeint_adjoint, dopri5": torchdiffeq_continuous,
    }


def run(name: str, states: int, steps: int, batch: int, width: int, metered: bool) -> Result:
    """Take one gradient and measure it."""
    torch.set_num_threads(1)
    y0 = torch.randn(batch, width, generator=torch.Generator().manual_seed(1)).requires_grad_()
    way = ways(states)[name]
    way(Field(width, None), y0, 2).sum().backward()  # what is loaded at first use is not the method's
    gc.collect()
    meter = Meter() if metered else None
    field = Field(width, meter)
    started = time.perf_counter()
    final = way(field, y0, steps)
    middle = time.perf_counter()
    if meter is not None:
        meter.look()
    inputs = (y0, *field.parameters())
    gradients = torch.autograd.grad(final.square().mean(), inputs)
    ended = time.perf_counter()
    flat = torch.cat([g.flatten() for g in gradients])
    return Result(middle - started, ended - middle, 0 if meter is None else meter.peak, field.calls, flat)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--states", type=int, default=10, help="stored states of the discrete adjoint")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way for its time; the median is printed")
    arguments = parser.parse_args()
    shape = {"states": arguments.states, "steps": arguments.steps, "batch": arguments.batch, "width": arguments.width}
    state = arguments.batch * arguments.width * 4
    print(f"{arguments.steps} steps, state {arguments.batch} x {arguments.width} float32 = {state / 2**20:.3f} MiB, "
          f"one CPU thread; the schedule of {arguments.states} states advances "
          f"{optimal_advances(arguments.steps, arguments.states)} steps")
    results: dict[str, list[Result]] = {}
    for metered in (True, *[False] * arguments.rounds):  # other load on the machine falls on all ways alike
        for name in ways(arguments.states):
            results.setdefault(name, []).append(run(name, **shape, metered=metered))
    reference = results["autograd through a plain loop"][0]
    base = statistics.median(r.forward + r.backward for r in results["autograd through a plain loop"][1:])
    print(f"{'':36}{'peak':>9}{'states':>9}{'forward':>9}{'backward':>9}{'ratio':>7}{'calls':>7}{'difference':>12}")
    for name, runs in results.items():
        forward, backward = (statistics.median(getattr(r, part) for r in runs[1:]) for part in ("forward", "backward"))
        difference = (runs[0].gradient - reference.gradient).norm() / reference.gradient.norm()
        print(f"{name:36}{runs[0].peak / 2**20:6.1f}MiB{runs[0].peak / state:9.1f}{forward:8.2f}s{backward:8.2f}s"
              f"{(forward + backward) / base:7.2f}{runs[0].calls:7d}{difference:12.1e}")
    print("peak: most bytes in use above the start, and the same in states; ratio: of the times of the whole, to "
          "autograd's;\ndifference: of the gradient to autograd's, relative (float32)")


if __name__ == "__main__":
    main()
