"""Reproduce Taylor–Lagrange neural ODEs: `python scripts/reproduce/taylor_lagrange.py`.

The paper (Djeumou et al. 2022, arXiv:2201.05715) says that a Taylor step whose remainder is learned trains
neural ODEs more than ten times faster than adaptive solvers, at no loss. Here:

* a stiff linear system, whose best possible remainders follow from a linear programme, independently;
* a neural ODE that classifies Fashion-MNIST (14×14 pixels), and a flow with the density of two moons, each trained
  through Taylor–Lagrange steps and through Dormand–Prince steps at two tolerances, ours and torchdiffeq's;
* a sampler of the embedded model whose remainder is learned, against DPM-Solver (taylor_lagrange_sampler.py).

Training times are those of the processor, on one thread. Every trained model is judged by a tight solution of its
ODE, whatever it was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Claim, parser, print_claims, write
from numpy.typing import NDArray
from scipy.linalg import expm
from scipy.optimize import linprog
from taylor_lagrange_sampler import sampler_claims
from taylor_lagrange_training import Trained, classification, density, seconds_of, training_claims
from torch import Tensor, nn

from odecore.explicit.taylor import nested_derivatives, total_derivatives
from odecore.learn.fit import fit
from odecore.learn.taylor_lagrange import DiagonalMidpoint, MatrixMidpoint, Midpoint, TaylorLagrange

RATES = np.diag([-1000.0, -1.0])
BASIS = np.array([[3.0, 1.0], [1.0, -2.0]])
STIFF: NDArray[np.float64] = np.linalg.inv(BASIS) @ RATES @ BASIS


@cache
def stiff_data(count: int, h: float) -> tuple[Tensor, Tensor]:
    """Starts in [-.5, .5]² and the exact states a step later."""
    y = torch.rand(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    return y, y @ torch.from_numpy(expm(h * STIFF)).T


def least_error(degree: int, h: float, count: int) -> float:
    """Least mean L1 error of a step that a constant diagonal can reach, by a linear programme."""
    y, exact = (part.numpy() for part in stiff_data(count, h))
    taylor = sum(np.linalg.matrix_power(h * STIFF, k) / math.factorial(k) for k in range(degree + 2))
    weight = h ** (degree + 1) / math.factorial(degree + 1) * np.linalg.matrix_power(STIFF, degree + 1)
    matrix = np.einsum("ij,nj->nij", weight, y @ STIFF.T).reshape(-1, 2)
    q, _ = np.linalg.qr(matrix)
    wanted = (y @ (expm(h * STIFF) - taylor).T).reshape(-1)
    left = wanted - q @ (q.T @ wanted)
    size, rows = np.abs(left).max(), len(left)
    found = linprog(np.r_[0, 0, np.ones(rows)], A_ub=np.block([[q, -np.eye(rows)], [-q, -np.eye(rows)]]),
                    b_ub=np.r_[left, -left] / size, bounds=[(None, None)] * 2 + [(0, None)] * rows)
    return float(found.fun * size / count)


def stiff_step(stepper: TaylorLagrange, h: float, count: int) -> tuple[Tensor, Tensor]:
    """A step of the stiff system, and how it should end."""
    y, exact = stiff_data(count, h)
    matrix = torch.from_numpy(STIFF)
    t0 = torch.zeros(count, dtype=torch.float64)
    return stepper.step(lambda y, t: y @ matrix.T, t0, t0 + h, y, ()).y, exact


def lbfgs(parameters: Any) -> torch.optim.Optimizer:
    """A quasi-Newton method, to the last digit."""
    return torch.optim.LBFGS(parameters, max_iter=200, history_size=20, tolerance_grad=0, tolerance_change=0,
                             line_search_fn="strong_wolfe")


def stiff_error(midpoint: Midpoint, degree: int, h: float, count: int) -> float:
    """Mean L1 error of a step after its midpoint was fitted."""
    def loss(module: nn.Module, batch: None) -> Tensor:
        reached, exact = stiff_step(TaylorLagrange(degree, module), h, count)
        return (reached - exact).square().mean()

    fit(midpoint, loss, lambda step: None, steps=3, optimizer=lbfgs)
    if isinstance(midpoint, MatrixMidpoint):  # ill-conditioned: the step is linear in Γ, so least squares finish it
        for _ in range(3):
            refine(midpoint, degree, h, count)
    reached, exact = stiff_step(TaylorLagrange(degree, midpoint), h, count)
    return (reached - exact).abs().sum(1).mean().item()


@torch.no_grad()
def refine(midpoint: Midpoint, degree: int, h: float, count: int) -> None:
    """One Gauss–Newton step of the numbers of a constant midpoint."""
    def residual(constant: Tensor) -> Tensor:
        stepper = TaylorLagrange(degree, lambda *a: torch.func.functional_call(midpoint, {"constant": constant}, a))
        reached, exact = stiff_step(stepper, h, count)
        return (reached - exact).flatten()

    jacobian = torch.func.jacfwd(residual)(midpoint.constant)[:, :-1]  # the time plays no part
    midpoint.constant[:-1] -= torch.linalg.lstsq(jacobian, residual(midpoint.constant).unsqueeze(1)).solution[:, 0]


def stiff_claims(quick: bool) -> list[Claim]:
    """Errors of one step of the stiff system, without remainder, with the best one, and with the learned one."""
    count, claims = 100 if quick else 500, []
    for degree in (1, 2):
        for h in (0.01, 0.1):
            best = least_error(degree, h, count)
            found = stiff_error(DiagonalMidpoint(2, degree).double(), degree, h, count)
            claims.append(Claim(f"stiff system, order {degree}, h = {h}: L1 error with a learned diagonal", found, best,
                                "linear programme in this run", 2 * best))
        found = stiff_error(MatrixMidpoint(2, degree).double(), degree, 0.01, count)
        claims.append(Claim(f"stiff system, order {degree}, h = 0.01: L1 error with a learned full matrix", found,
                            "round-off", "computed independently", 1e-11))
    return claims


def jet_claims(quick: bool) -> list[Claim]:
    """The time of derivatives of a network by Taylor arithmetic and by nested dual numbers, in evaluations."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        network = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 64))
    y, t = torch.randn(128, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(128)

    def field(y: Tensor, t: Tensor) -> Tensor:
        return network(y)

    with torch.no_grad():
        one = seconds_of(lambda: field(y, t), 20)
        return [Claim(f"derivatives to order {order} by Taylor arithmetic: time in evaluations",
                      seconds_of(lambda order=order: total_derivatives(field, y, t, order), 9) / one,
                      seconds_of(lambda order=order: nested_derivatives(field, y, t, order), 3) / one,
                      "nested dual numbers in this run") for order in range(2, 4 if quick else 6)]


def draw(runs: Mapping[str, Sequence[Trained]], curves: Mapping[str, list[tuple[float, float]]], path: Path) -> None:
    """Quality against training time, and trajectory error against evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (name, trained) in zip(axes, runs.items(), strict=False):
        for run in trained:
            axis.plot(run.seconds, run.quality, label=run.solver, linewidth=2.2 if run is trained[0] else 1.2)
        axis.set(title=name, xlabel="training, seconds of the processor", xscale="log",
                 ylabel="test error" if "classifier" in name else "negative log-likelihood")
        axis.legend(fontsize=7, framealpha=0.5)
    for name, points in curves.items():
        axes[2].plot(*zip(*sorted(points), strict=True), marker="o", label=name,
                     linestyle="-" if name.startswith("taylor") else "--")
    axes[2].set(title="sampler of the embedded model", xlabel="evaluations, derivatives by their time",
                ylabel="error of a trajectory", yscale="log")
    axes[2].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.savefig(path, dpi=85)
    print(f"wrote {path}")


def main() -> None:
    """Run everything, print the figures beside their anchors, and save them if asked to."""
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    claims = [*stiff_claims(arguments.quick), *jet_claims(arguments.quick)]
    runs = {}
    for task in (classification(arguments.quick), density(arguments.quick)):
        found, runs[task.name] = training_claims(task)
        claims += found
    found, curves = sampler_claims(arguments.quick)
    claims += found
    print_claims("Taylor–Lagrange neural ODEs (Djeumou et al. 2022)", claims)
    write(arguments, claims, curves=curves,
          training={name: [run._asdict() for run in trained] for name, trained in runs.items()})
    if arguments.figure is not None:
        draw(runs, curves, arguments.figure)


if __name__ == "__main__":
    main()
