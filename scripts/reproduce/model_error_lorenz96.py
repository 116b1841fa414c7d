"""Close the two-scale Lorenz 96 system from data: `python scripts/reproduce/model_error_lorenz96.py`.

Levine & Stuart 2021 (arXiv:2107.06658), K = 9, J = 8, F = 10, h_x = -.8, h_y = 1, ε = 2⁻⁷::

    dX_k/dt = X_{k-1} (X_{k+1} - X_{k-2}) - X_k + F + h_x ⟨Y_{j,k}⟩_j
    dY_{j,k}/dt = (Y_{j+1,k} (Y_{j-1,k} - Y_{j+2,k}) - Y_{j,k} + h_y X_k) / ε

Only X is seen. f0 is its equation without Y, and what Y adds is learned from differences of X, as one function of X_k
that is the same for every k: by random features and ridge regression, and by a network that `fit` trains. Data alone
learn all of dX_k/dt from X_k and its neighbours. Each is judged by the time until a forecast is wrong by 20 % of the
state, and by the density of X_k in the long run, against one of the truth from other runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
import torch
from claims import Claim, parser, print_claims, write
from model_error import Forecast, valid
from scipy.stats import ks_2samp
from torch import Tensor, nn

from odecore.explicit.embedded import EmbeddedPair
from odecore.explicit.tableaus import RK4
from odecore.learn.callbacks import cosine_decay
from odecore.learn.fields import MLP
from odecore.learn.fit import adam, fit, minibatches
from odecore.learn.model_error import Corrected, Local, RandomFeatures, central_derivatives, fit_ridge
from odecore.learn.rollout import trajectories

SLOW, FAST, FORCE, TO_SLOW, TO_FAST, SCALE = 9, 8, 10.0, -0.8, 1.0, 2.0**-7
FINE, COARSE, SHARE = 2.0**-11, 2.0**-7, 0.2
STEPPER = EmbeddedPair(RK4, embedded=(1.0, 0.0, 0.0, 0.0), error_order=2)
Field = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Size:
    """How much to run: runs, and lengths in units of time."""

    runs: int = 32
    settle: float = 3.0
    horizon: float = 5.0
    rows: int = 30_000
    features: int = 40
    neighbours: int = 300
    steps: int = 800
    long: float = 24.0


QUICK = Size(runs=4, settle=0.25, horizon=0.25, rows=200, features=10, neighbours=20, steps=10, long=1.0)


def known(x: Tensor, t: Tensor) -> Tensor:
    """f0: the slow equation without the fast variables."""
    return x.roll(1, -1) * (x.roll(-1, -1) - x.roll(2, -1)) - x + FORCE


def whole(s: Tensor, t: Tensor) -> Tensor:
    """Both scales; the fast variables lie in one ring, eight for each slow one."""
    x, y = s[:, :SLOW], s[:, SLOW:]
    push = TO_SLOW * y.unflatten(1, (SLOW, FAST)).mean(2)
    drive = TO_FAST * x.repeat_interleave(FAST, 1)
    fast = (y.roll(-1, 1) * (y.roll(1, 1) - y.roll(-2, 1)) - y + drive) / SCALE
    return torch.cat((known(x, t) + push, fast), 1)


def nodes(step: float, length: float) -> list[float]:
    """The grid of a trajectory."""
    return [step * k for k in range(round(length / step) + 1)]


class Data(NamedTuple):
    """X for learning, with its derivatives at some times, and X of other runs in coarse steps."""

    states: Tensor
    slopes: Tensor
    truth: Tensor


def data(size: Size, seed: int) -> Data:
    """Half of the runs to learn from, half to judge by, all from one solution of both scales."""
    noise = torch.randn(size.runs, SLOW * (1 + FAST), dtype=torch.float64,
                        generator=torch.Generator().manual_seed(seed))
    noise[:, :SLOW] = 3 + 4 * noise[:, :SLOW]
    state, half, piece = noise, size.runs // 2, 0.25
    seen, slopes, coarse = [], [], []
    for k in range(round((size.settle + size.horizon) / piece)):
        path = trajectories(STEPPER, whole, state, nodes(FINE, piece))
        state = path[:, -1]
        if k * piece >= size.settle:
            x, dx = central_derivatives(path[:half, :, :SLOW], FINE)
            seen.append(x[::37])
            slopes.append(dx[::37])
            coarse.append(path[half:, :-1:round(COARSE / FINE), :SLOW])
    order = torch.randperm(sum(map(len, seen)), generator=torch.Generator().manual_seed(seed))[:size.rows // SLOW]
    return Data(torch.cat(seen)[order], torch.cat(slopes)[order], torch.cat(coarse, 1))


def by_ridge(base: Field | None, reach: int, features: int, found: Data, *, ridge: float) -> Corrected:
    """Correct a model by random features of so many neighbours."""
    centre, scale = float(found.states.mean()), float(found.states.std())
    local = Local(RandomFeatures(2 * reach + 1, 1, features, centre=centre, scale=scale), reach=reach)
    rest = found.slopes if base is None else found.slopes - base(found.states, found.states)
    assert isinstance(local.network, RandomFeatures)
    fit_ridge(local.network, local.neighbourhoods(found.states).flatten(0, 1), rest.reshape(-1, 1), ridge=ridge)
    return Corrected(base, local)


class Standardised(nn.Module):
    """A network of ``x / 4``, numbers of order one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Its value."""
        return self.network(x / 4)


def by_fit(found: Data, steps: int, seed: int) -> Corrected:
    """Correct f0 by a small network of X_k."""
    network = Local(Standardised(MLP((1, 16, 16, 1), seed=seed, dtype=torch.float64)))
    rest = found.slopes - known(found.states, found.states)

    def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return (module(batch[0]) - batch[1]).square().mean()

    fit(network, loss, minibatches(found.states, rest, size=min(128, len(rest)), seed=seed), steps=steps,
        optimizer=adam(1e-2), callbacks=[cosine_decay(steps)])
    return Corrected(known, network)


class Nothing(nn.Module):
    """The correction of f0 alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(x)


class Judged(NamedTuple):
    """Time of the forecast, distance of the densities (Kolmogorov-Smirnov), long-run values of X_k, and m."""

    forecast: Forecast
    distance: float
    values: Tensor
    correction: nn.Module


def judge(field: Corrected, truth: Tensor, size: Size) -> Judged:
    """Forecast from the first states of the truth, then go on."""
    path = trajectories(STEPPER, field, truth[:, 0], nodes(COARSE, size.long))
    ahead = path[:, :truth.shape[1]]
    late = path[:, round(min(5.0, size.long / 2) / COARSE)::8].flatten()
    return Judged(valid(ahead, truth[:, :ahead.shape[1]], step=COARSE, share=SHARE), distance(late, truth[:, ::8]),
                  late, field.correction)


def distance(one: Tensor, other: Tensor) -> float:
    """Largest difference of two distribution functions; 1 where a model left the finite numbers."""
    return float(ks_2samp(one.flatten(), other.flatten()).statistic) if bool(torch.isfinite(one).all()) else 1.0


def draw(path: str, judged: dict[str, Judged], found: Data) -> None:
    """What was learned, and the densities."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    x, rest = found.states.flatten(), (found.slopes - known(found.states, found.states)).flatten()
    left.plot(x[:2000], rest[:2000], ".", color="#bbbbbb", markersize=2, label="data")
    line = torch.linspace(float(x.min()), float(x.max()), 200, dtype=torch.float64)
    for name, colour in (("ridge", "#1f6fb4"), ("network", "#d8572a")):
        with torch.no_grad():
            left.plot(line, judged[name].correction(line[:, None]), color=colour, label=name)
    left.set(xlabel="X_k", ylabel="what the fast variables add", title="The closure of Lorenz 96")
    bins = torch.linspace(-10, 14, 49, dtype=torch.float64).numpy()
    right.hist(found.truth.flatten(), bins, density=True, color="#dddddd", label="truth")
    for name, colour in (("f0", "#777777"), ("ridge", "#1f6fb4"), ("network", "#d8572a")):
        right.hist(judged[name].values, bins, density=True, histtype="step", color=colour, label=name)
    right.set(xlabel="X_k", title="Density in the long run")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8, markerscale=4)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Run all of it."""
    arguments = parser(__doc__).parse_args()
    size = QUICK if arguments.quick else Size()
    found = data(size, arguments.seed)
    fields = {"f0": Corrected(known, Local(Nothing())), "ridge": by_ridge(known, 0, size.features, found, ridge=1e-6),
              "network": by_fit(found, size.steps, arguments.seed),
              "data alone": by_ridge(None, 2, size.neighbours, found, ridge=1e-7)}
    judged = {name: judge(field, found.truth, size) for name, field in fields.items()}
    base, half = judged["f0"], len(found.truth) // 2
    claims = []
    for name, (forecast, away, _, _) in judged.items():
        goals = (None, None) if name == "f0" else (base.forecast.time, base.distance)
        origin = "" if name == "f0" else "f0 in this run"
        claims.append(Claim(f"{name}: time to 20 % error", forecast.time, goals[0], origin, goals[0], True,
                            forecast.error))
        claims.append(Claim(f"{name}: distance of the density of X_k", away, goals[1], origin, goals[1]))
    claims.append(Claim("two halves of the truth: the same distance", distance(found.truth[:half, ::8],
                                                                              found.truth[half:, ::8])))
    print_claims("Two-scale Lorenz 96", claims)
    write(arguments, claims)
    if arguments.figure is not None:
        draw(arguments.figure, judged, found)


if __name__ == "__main__":
    main()
