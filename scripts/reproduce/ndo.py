"""Reproduce neural differential operators: `python scripts/reproduce/ndo.py`.

Gong et al. 2021 (arXiv:2106.04166) pretrain a network that maps sampled trajectories to derivatives, and train neural
ODEs with ``trajectory fit + w ⟨|f(x_i) - NDO(x)_i|²⟩``. The abstract has no figures; anchors are peers in this run:

* derivatives of Van der Pol, Lorenz and unseen library functions at 0 to 5 % noise, by the operator that comes with
  fewstep, by finite differences, by smoothing splines (generalised cross-validation) and by the operator's parabola;
* forecasts of neural ODEs of Van der Pol and of a stiff system, trained without derivatives, with those of the
  operator, and with finite differences, from several seeds;
* a multistep sampler of the embedded model whose derivative comes from an operator on the history (ndo_sampler.py).

Errors are root mean squares relative to those of what is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from claims import Claim, parser, print_claims, write
from ndo_sampler import sampler_claims
from scipy.interpolate import make_smoothing_spline
from torch import Tensor

from odecore.driver.integrate import integrate
from odecore.explicit.embedded import DOP853
from odecore.explicit.pairs import without_error
from odecore.explicit.tableaus import RK4
from odecore.learn.callbacks import cosine_decay
from odecore.learn.fields import MLP
from odecore.learn.fit import adam, fit, minibatches
from odecore.learn.function_library import Library
from odecore.learn.operators import DerivativeOperator, with_derivatives
from odecore.learn.rollout import rollout_loss, trajectories, windows

FOUR_STAGES = without_error(RK4)
Estimator = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Size:
    """How much to run."""

    runs: int = 5
    seeds: int = 3
    steps: int = 300


QUICK = Size(runs=2, seeds=1, steps=5)


def van_der_pol(x: Tensor, t: Tensor) -> Tensor:
    """Van der Pol with unit damping."""
    return torch.stack((x[:, 1], (1 - x[:, 0] ** 2) * x[:, 1] - x[:, 0]), 1)


def lorenz(x: Tensor, t: Tensor) -> Tensor:
    """Lorenz 63."""
    a, b, c = x.unbind(1)
    return torch.stack((10 * (b - a), 28 * a - b - a * c, a * b - 8 / 3 * c), 1)


def stiff(x: Tensor, t: Tensor) -> Tensor:
    """A fast approach, of rate 30, to the slow manifold x1 = x2²."""
    return torch.stack((-30 * (x[:, 0] - x[:, 1] ** 2), -x[:, 1]), 1)


@dataclass(frozen=True, slots=True)
class System:
    """Trajectories of a plant.

    Args:
        name: of the plant.
        field: its right-hand side.
        size: of a state.
        step: time between samples.
        warm: time before the first sample.
        count: samples of a trajectory.
    """

    name: str
    field: Callable[[Tensor, Tensor], Tensor]
    size: int
    step: float
    warm: float = 0.0
    count: int = 100

    @property
    def times(self) -> Tensor:
        """When it is sampled."""
        return self.step * torch.arange(self.count, dtype=torch.float64)

    def runs(self, count: int, seed: int) -> Tensor:
        """Exact states from random starts."""
        unit = torch.rand(count, self.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        starts = 4 * unit - 2
        if self.warm:
            starts = trajectories(DOP853, self.field, starts, [0.02 * k for k in range(round(self.warm / 0.02))])[:, -1]
        fine = [self.step / 2 * k for k in range(2 * self.count - 1)]
        return trajectories(DOP853, self.field, starts, fine)[:, ::2]


VAN_DER_POL = System("Van der Pol", van_der_pol, 2, 0.1)
LORENZ = System("Lorenz", lorenz, 3, 0.02, warm=3.0)
STIFF = System("stiff system", stiff, 2, 0.04, count=60)


def noisy(x: Tensor, level: float, seed: int) -> Tensor:
    """States with white noise, relative to the deviation of each coordinate."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    return x + level * x.flatten(0, 1).std(0) * noise


def finite_differences(x: Tensor, times: Tensor) -> Tensor:
    """Central ones, of second order at the ends too."""
    return torch.from_numpy(np.gradient(x.numpy(), times.numpy(), axis=1, edge_order=2))


def smoothing_spline(x: Tensor, times: Tensor) -> Tensor:
    """Derivatives of smoothing splines, each with the smoothness that generalised cross-validation chooses."""
    flat = x.movedim(1, 2).flatten(0, 1).numpy()
    slopes = [make_smoothing_spline(times.numpy(), row).derivative()(times.numpy()) for row in flat]
    return torch.from_numpy(np.stack(slopes)).unflatten(0, (len(x), x.shape[2])).movedim(1, 2)


def parabola(window: int) -> DerivativeOperator:
    """An operator without its network."""
    silent = DerivativeOperator(window, (1,))
    with torch.no_grad():
        for parameter in silent.parameters():
            parameter.zero_()
    return silent.requires_grad_(False)


def relative(found: Tensor, exact: Tensor) -> float:
    """Root mean square of the error over that of what is exact, coordinate by coordinate."""
    return float(((found - exact).square().mean((0, 1)) / exact.square().mean((0, 1))).mean().sqrt())


def derivative_claims(operator: DerivativeOperator, size: Size, seed: int) -> tuple[list[Claim], dict]:
    """Errors of derivatives by all estimators."""
    estimators: Mapping[str, Estimator] = {
        "operator": operator, "finite differences": finite_differences, "smoothing spline": smoothing_spline,
        "parabola": parabola(operator.window)}
    data = {}
    for system in (VAN_DER_POL, LORENZ):
        x = system.runs(size.runs, 100 + seed)
        data[system.name] = x, system.field(x.flatten(0, 1), x).unflatten(0, x.shape[:2]), system.times
    rows = Library(100, waves=8.0, clean=1.0).sample(5 * size.runs, 10**9 + seed)
    data["library functions, irregular times"] = rows.values, rows.slopes, rows.times
    claims, curves = [], {}
    for name, (x, exact, times) in data.items():
        for level in (0.0, 0.01, 0.02, 0.05):
            errors = {}
            for method, estimator in estimators.items():
                if times.ndim == 1:
                    errors[method] = relative(estimator(noisy(x, level, seed), times), exact)
                    continue
                wrong = []  # each function has times of its own, and is a coordinate of its own
                for row, slope, clock in zip(x, exact, times, strict=True):
                    one = noisy(row.reshape(1, -1, 1), level, seed)
                    wrong.append(relative(estimator(one, clock), slope.reshape(1, -1, 1)))
                errors[method] = float(np.median(wrong))
            for method, error in errors.items():
                curves.setdefault(name, {}).setdefault(method, []).append((level, error))
            best = min(list(errors)[1:], key=lambda method: errors[method])
            others = "; ".join(f"{method} {errors[method]:.3g}" for method in list(errors)[1:])
            claims.append(Claim(f"{name}, noise {level:.0%}: error of derivatives by the operator", errors["operator"],
                                others, "in this run", errors[best]))
    return claims, curves


def forecast(system: System, estimator: Estimator | None, size: Size, seed: int) -> float:
    """Train a neural ODE on trajectories with 1 % noise; its relative error over 29 steps from unseen starts."""
    clean, test = system.runs(10, 10 + seed), system.runs(10, 1000 + seed)[:, :30]
    x, length = noisy(clean, 0.01, seed), 3
    scale = x.flatten(0, 1).std(0)
    x, test = x / scale, test / scale
    field = MLP((2, 32, 32, 2), seed=seed, dtype=torch.float64)

    def autonomous(module: torch.nn.Module) -> Callable[..., Tensor]:
        return lambda y, t: module(y)

    loss = rollout_loss(FOUR_STAGES, [system.step * k for k in range(length + 1)], field=autonomous)
    if estimator is not None:
        slopes = estimator(x, system.times).flatten(0, 1)
        weight = (system.step * length) ** 2 / 4  # what a constant error of f adds to the mean square along a window
        loss = with_derivatives(loss, x.flatten(0, 1), system.times.repeat(len(x)), slopes, weight=weight,
                                field=autonomous)
    cut = windows(x, length)
    fit(field, loss, minibatches(cut, size=min(100, len(cut)), seed=seed), steps=size.steps, optimizer=adam(1e-2),
        callbacks=[cosine_decay(size.steps, floor=0.02)], clip=1.0)
    with torch.no_grad():
        found = integrate(FOUR_STAGES, autonomous(field), test[:, 0], system.times[:30].tolist(),
                          trajectory=True, partial=True).ys
    assert found is not None
    error = ((found - test).square().mean() / test.var((0, 1)).mean()).sqrt().item()
    return error if math.isfinite(error) else math.inf


def forecast_claims(operator: DerivativeOperator, size: Size, seed: int) -> tuple[list[Claim], dict]:
    """Forecasts with and without derivatives, from several seeds."""
    ways: dict[str, Estimator | None] = {
        "NODE": None, "NDO-NODE": operator, "NODE, finite differences": finite_differences}
    claims, results = [], {}
    for system in (VAN_DER_POL, STIFF):
        errors: dict[str, list[float]] = {how: [] for how in ways}
        for k in range(size.seeds):
            for how, estimator in ways.items():
                errors[how].append(forecast(system, estimator, size, seed + k))
                print(f"{system.name}, seed {seed + k}, {how}: error of forecasts {errors[how][-1]:.3g}", flush=True)
        results[system.name] = errors
        mean = {how: float(np.mean(values)) for how, values in errors.items()}
        better = sum(a < b for a, b in zip(errors["NDO-NODE"], errors["NODE"], strict=True))
        claims += [
            Claim(f"{system.name}: error of forecasts of NDO-NODE, mean of {size.seeds} seeds", mean["NDO-NODE"],
                  f"NODE {mean['NODE']:.3g}; with finite differences {mean['NODE, finite differences']:.3g}",
                  "in this run", mean["NODE"],
                  error=float(np.std(errors["NDO-NODE"]) / math.sqrt(max(1, size.seeds - 1)))),
            Claim(f"{system.name}: seeds in which NDO-NODE forecasts better than NODE", better, f"of {size.seeds}", "",
                  size.seeds, True)]
    return claims, results


def draw(path: Path, curves: dict, forecasts: dict) -> None:
    """Errors of derivatives against noise, and of forecasts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.3), layout="constrained")
    axes = figure.subplots(1, 4)
    for axis, (name, methods) in zip(axes, curves.items(), strict=False):
        for method, points in methods.items():
            levels, errors = zip(*points, strict=True)
            axis.plot([100 * level for level in levels], errors, "o-" if method == "operator" else ".--", label=method,
                      linewidth=2.2 if method == "operator" else 1.2)
        axis.set(title=name, xlabel="noise, %", yscale="log")
    axes[0].set(ylabel="relative error of derivatives")
    axes[0].legend(fontsize=7)
    axis = axes[3]
    for place, ways in enumerate(forecasts.values()):
        for k, (way, values) in enumerate(ways.items()):
            axis.plot([4 * place + k] * len(values), values, "o", color=f"C{k}", label=way if not place else None,
                      alpha=0.7)
    axis.set(title="forecasts, a point for each seed", ylabel="relative error", yscale="log", xticks=[1, 5],
             xticklabels=list(forecasts), xlim=(-1, 7))
    axis.legend(fontsize=7)
    figure.savefig(path, dpi=100)
    print(f"wrote {path}")


def main() -> None:
    """Run everything, print the figures beside their anchors, and save them if asked to."""
    arguments = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    size, operator = QUICK if arguments.quick else Size(), DerivativeOperator.load()
    claims, curves = derivative_claims(operator, size, arguments.seed)
    found, forecasts = forecast_claims(operator, size, arguments.seed)
    claims += [*found, *sampler_claims(arguments.quick, arguments.seed)]
    print_claims("Neural differential operators (Gong et al. 2021): relative errors", claims)
    write(arguments, claims, curves=curves, forecasts=forecasts)
    if arguments.figure is not None:
        draw(arguments.figure, curves, forecasts)


if __name__ == "__main__":
    main()
