"""Solve stiff PDEs by plans with one weight for each Fourier mode: `python scripts/spectral.py --out folder`.

The Kuramoto–Sivashinsky equation in one dimension, and the Swift–Hohenberg and Navier–Stokes equations
in two, become semilinear problems ``dû/dt = L û + N(û)`` of their Fourier coefficients, with a diagonal
L. The rows of a scheme hold a weight for each mode, and the executor that samples images runs them,
with the complex coefficients as its state. Printed are the errors against a run with far more steps,
and the order that they show; drawn are the solutions, and the errors against evaluations.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odecore.exponential import tableaus
from odecore.exponential.tableaus import ExponentialTableau
from odecore.plan import Plan, Registers, Row, execute
from odecore.schemes import adams_bashforth, exact_flow, exponential_runge_kutta, ode

Rows = Callable[[Tensor, Sequence[float]], tuple[Row, ...]]
"""``(symbol, times) -> rows``."""


@dataclass(frozen=True, slots=True)
class Equation:
    """A semilinear PDE in Fourier space.

    Args:
        name: what it is called.
        symbol: L of each mode.
        nonlinear: ``N(û, t)``.
        start: û at time 0, of shape (samples, …).
        physical: from û to the solution on the grid.
        end: time at which errors are measured.
        steps: numbers of steps to compare.
    """

    name: str
    symbol: Tensor
    nonlinear: Callable[[Tensor, object], Tensor]
    start: Tensor
    physical: Callable[[Tensor], Tensor]
    end: float
    steps: tuple[int, ...]


def kuramoto_sivashinsky(n: int = 128, *, end: float = 20.0, steps: Sequence[int] = (40, 80, 160, 320)) -> Equation:
    """``u_t = -u_xx - u_xxxx - u u_x`` on [0, 32π], with Kassam & Trefethen's initial state.

    Source: Kassam & Trefethen 2005, doi:10.1137/S1064827502410633.
    """
    x = 32 * math.pi * torch.arange(n, dtype=torch.float64) / n
    k = torch.arange(n // 2 + 1, dtype=torch.float64) / 16
    derivative = torch.where(torch.arange(n // 2 + 1) <= n // 3, 1j * k, 0.0)  # the upper third holds aliases

    def nonlinear(coefficients: Tensor, t: object) -> Tensor:
        return -0.5 * derivative * torch.fft.rfft(torch.fft.irfft(coefficients, n) ** 2)

    start = torch.fft.rfft(torch.cos(x / 16) * (1 + torch.sin(x / 16)))
    return Equation("Kuramoto–Sivashinsky", k**2 - k**4, nonlinear, start.unsqueeze(0),
                    lambda coefficients: torch.fft.irfft(coefficients, n), end, tuple(steps))


def plane_modes(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Wave numbers of ``rfft2`` along both axes, and the modes that hold no aliases of products."""
    first = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64).unsqueeze(1)
    second = torch.arange(n // 2 + 1, dtype=torch.float64)
    return first, second, (first.abs() <= n // 3) & (second <= n // 3)


def noise(n: int, seed: int) -> Tensor:
    """Coefficients of white noise."""
    return torch.fft.rfft2(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))


def swift_hohenberg(n: int = 64, *, end: float = 8.0, steps: Sequence[int] = (20, 40, 80, 160)) -> Equation:
    """``u_t = u/4 - (1 + Δ)² u + u² - u³`` on [0, 16π]², where stripes and hexagons form.

    Source: Swift & Hohenberg 1977, doi:10.1103/PhysRevA.15.319.
    """
    first, second, kept = plane_modes(n)
    square = (first**2 + second**2) / 64

    def nonlinear(coefficients: Tensor, t: object) -> Tensor:
        u = torch.fft.irfft2(coefficients, (n, n))
        return torch.where(kept, torch.fft.rfft2(u**2 - u**3), 0.0)

    start = torch.where(kept, noise(n, 3) * torch.exp(-square), 0.0)
    return Equation("Swift–Hohenberg", 0.25 - (1 - square) ** 2, nonlinear, start.unsqueeze(0),
                    lambda coefficients: torch.fft.irfft2(coefficients, (n, n)), end, tuple(steps))


def navier_stokes(n: int = 64, *, end: float = 4.0, steps: Sequence[int] = (40, 80, 160, 320)) -> Equation:
    """``ω_t + v·∇ω = ν Δω - ω/10 + f`` for the vorticity of a plane periodic flow with a steady force.

    The velocity v = (ψ_y, -ψ_x) follows from -Δψ = ω; ν = 2e-3 and f = (sin(x + y) + cos(x + y))/10, as
    in the data sets of neural operators, here on [0, 2π]² and with a drag that keeps it steady. Advection,
    which is in N, limits its steps: the mildest of the three.
    """
    first, second, kept = plane_modes(n)
    square = first**2 + second**2
    inverse = torch.where(square > 0, 1 / square.clamp(min=1.0), 0.0)
    x = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
    phase = x.unsqueeze(1) + x
    force = torch.fft.rfft2(0.1 * (torch.sin(phase) + torch.cos(phase)))

    def grid(coefficients: Tensor) -> Tensor:
        return torch.fft.irfft2(coefficients, (n, n))

    def nonlinear(vorticity: Tensor, t: object) -> Tensor:
        stream = inverse * vorticity
        advected = (grid(1j * second * stream) * grid(1j * first * vorticity)
                    - grid(1j * first * stream) * grid(1j * second * vorticity))
        return torch.where(kept, force - torch.fft.rfft2(advected), 0.0)

    start = torch.where(kept, noise(n, 1) * square * torch.exp(-square / 18), 0.0)
    start = start * 2 / grid(start).std()
    return Equation("Navier–Stokes", -2e-3 * square - 0.1, nonlinear, start.unsqueeze(0), grid, end, tuple(steps))


def one_step(tableau: ExponentialTableau) -> Rows:
    """The rows of an exponential Runge–Kutta method."""
    return lambda symbol, times: exponential_runge_kutta(ode(symbol), times, [tableau] * (len(times) - 1))


def multistep(order: int) -> Rows:
    """The rows of an exponential Adams–Bashforth method, started by Krogstad's."""
    return lambda symbol, times: adams_bashforth(ode(symbol), times, order, start=tableaus.KROGSTAD)


SCHEMES: Mapping[str, tuple[int, Rows]] = {
    "ETD-RK2": (2, one_step(tableaus.ETD_RK2)),
    "Lawson 4": (4, one_step(tableaus.LAWSON4)),
    "ETD-RK4": (4, one_step(tableaus.ETD_RK4)),
    "Krogstad": (4, one_step(tableaus.KROGSTAD)),
    "Hochbruck–Ostermann": (4, one_step(tableaus.HOCHBRUCK_OSTERMANN)),
    "exponential Adams 4": (4, multistep(4)),
}
"""Each with its order."""


def compile_plan(equation: Equation, rows: Rows, steps: int) -> Plan:
    """Make the plan of a scheme on a uniform grid, checked on the problem with constant N if the scheme solves it."""
    times = [equation.end * i / steps for i in range(steps + 1)]
    made = rows(equation.symbol, times)
    exact = None if rows is SCHEMES["Lawson 4"][1] else exact_flow(ode(equation.symbol), 0.0, equation.end)
    return Plan(made, 0.0, exact)


@torch.no_grad()
def solution(equation: Equation, plan: Plan) -> Tensor:
    """Run a plan and return the solution on the grid."""
    return equation.physical(execute(plan, equation.nonlinear, equation.start))


def measure(equation: Equation, names: Sequence[str], finest: int) -> dict[str, list[tuple[int, float]]]:
    """Compare schemes with a run of ``finest`` steps: for each number of steps, the evaluations and relative error."""
    reference = solution(equation, compile_plan(equation, SCHEMES["Hochbruck–Ostermann"][1], finest))
    found: dict[str, list[tuple[int, float]]] = {}
    for name in names:
        found[name] = []
        for steps in equation.steps:
            plan = compile_plan(equation, SCHEMES[name][1], steps)
            error = (solution(equation, plan) - reference).norm() / reference.norm()
            found[name].append((plan.nfe, error.item()))
    return found


def slope(equation: Equation, errors: Sequence[float]) -> float:
    """The order that the last three errors show, without those of runs that were not stable."""
    pairs = [pair for pair in zip(equation.steps, errors, strict=True) if math.isfinite(pair[1])][-3:]
    return -float(np.polyfit(*np.log(pairs).T, 1)[0])


def print_table(equation: Equation, found: Mapping[str, Sequence[tuple[int, float]]]) -> None:
    """Print errors and observed orders."""
    stiffness = float(equation.symbol.abs().max()) * equation.end / equation.steps[-1]
    print(f"\n{equation.name}: {math.prod(equation.start.shape)} complex modes to t = {equation.end:g}; "
          f"at the shortest step max |hL| = {stiffness:.3g}")
    print(f"{'relative error at steps':24}" + "".join(f"{steps:>10}" for steps in equation.steps) + f"{'order':>8}")
    for name, pairs in found.items():
        errors = [error for _, error in pairs]
        print(f"{name:24}" + "".join(f"{error:10.1e}" for error in errors) + f"{slope(equation, errors):8.2f}")


@torch.no_grad()
def history(equation: Equation, steps: int, end: float) -> Tensor:
    """The solution after each step of ETD-RK4, from the registers of the run."""
    times = [end * i / steps for i in range(steps + 1)]
    plan = Plan(SCHEMES["ETD-RK4"][1](equation.symbol, times), 0.0)
    states = [equation.start]

    def note(index: int, row: Row, registers: Registers) -> None:
        if index % 4 == 3:
            states.append(registers.anchor.clone())

    execute(plan, equation.nonlinear, equation.start, callback=note)
    return equation.physical(torch.cat(states))


def draw(
    equations: Sequence[Equation], found: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], path: Path
) -> None:
    """Draw the solutions, and below them the errors against evaluations."""
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(2, len(equations), figsize=(5 * len(equations), 8), layout="constrained")
    for equation, above, below in zip(equations, *axes, strict=True):
        shown, title, extent = PICTURES[equation.name](equation)
        image = above.imshow(shown.numpy(), aspect="auto", origin="lower", cmap="RdBu_r", extent=extent,
                             interpolation="bicubic")
        above.set(title=f"{equation.name}: {title}", xlabel="x / π")
        figure.colorbar(image, ax=above)
        for name, pairs in found[equation.name].items():
            finite = [(nfe, error) for nfe, error in pairs if error < 10]
            below.loglog(*zip(*finite, strict=True), marker="o", markersize=4, label=name)
        below.set(title=f"error at t = {equation.end:g}", xlabel="evaluations of N", ylabel="relative error")
        below.grid(alpha=0.3, which="both")
        below.xaxis.set_minor_formatter(ticker.NullFormatter())
        below.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    print(f"\nwrote {path}")


PICTURES: Mapping[str, Callable[[Equation], tuple[Tensor, str, tuple[float, ...]]]] = {
    "Kuramoto–Sivashinsky": lambda equation: (history(equation, 600, 150.0), "u over time", (0, 32, 0, 150)),
    "Swift–Hohenberg": lambda equation: (history(equation, 200, 60.0)[-1].mT, "u at t = 60", (0, 16, 0, 16)),
    "Navier–Stokes": lambda equation: (history(equation, 400, 10.0)[-1].mT, "vorticity at t = 10", (0, 2, 0, 2)),
}
"""What to show of each: values, title and extent."""


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the picture")
    arguments = parser.parse_args()
    equations = (kuramoto_sivashinsky(), swift_hohenberg(), navier_stokes())
    found = {}
    for equation in equations:
        found[equation.name] = measure(equation, list(SCHEMES), 8 * equation.steps[-1])
        print_table(equation, found[equation.name])
    draw(equations, found, arguments.out / "spectral.png")


if __name__ == "__main__":
    main()
