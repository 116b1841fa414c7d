"""Learn the error of a model of Lorenz 63: `python scripts/reproduce/model_error.py`.

Levine & Stuart 2021 (arXiv:2107.06658) learn what a known model leaves out, ``dx/dt = f0(x) + m(x)``. Here
f0 is Lorenz 63 with its parameter b = 28 wrong by a factor 1 + ε, m is random features by ridge regression on
derivatives from central differences of one trajectory, and the figure is the mean time until a forecast is wrong
by 5 % of the state. Spread and ridge are chosen on validation trajectories; the test ones are seen once.
Then the first coordinate alone is observed, with noise: an observer nudges the state, and m is learned
from what the nudging adds; an ensemble Kalman filter does the same from a fifth of the observations, and once more
with b as part of its state. The discrete twin learns what the map of f0 over five steps leaves out. Last, z is never
observed: a function of (x, y) is set against one with a memory.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
import torch
from claims import Claim, parser, print_claims, write
from torch import Tensor

from odecore.explicit.embedded import DOP853, TSITOURAS
from odecore.learn.assimilation import Assimilated, ensemble_kalman
from odecore.learn.model_error import (
    Corrected,
    RandomFeatures,
    Regression,
    Remembering,
    Reservoir,
    central_derivatives,
    fit_ridge,
)
from odecore.learn.rollout import trajectories

STEP = 0.01
VERIFIED = "computed independently"
ANCHORS = {0.01: (1.3, 11.1), 0.05: (0.18, 11.0), 0.2: (0.08, 10.4), 1.0: (0.03, 9.0)}
DATA_ONLY = 8.4
RIDGES = (1e-13, 1e-12, 1e-11, 1e-10)


@dataclass(frozen=True, slots=True)
class Size:
    """How much to run."""

    train: float = 100.0
    features: int = 600
    validation: int = 15
    test: int = 60
    horizon: float = 16.0
    spreads: tuple[float, ...] = (1.0, 2.0)
    errors: tuple[float, ...] = (0.01, 0.05, 0.2, 1.0)


QUICK = Size(train=10.0, features=60, validation=2, test=3, horizon=3.0, spreads=(1.0,), errors=(0.05,))


def lorenz(b: float = 28.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Lorenz 63 with one parameter to get wrong."""
    def field(s: Tensor, t: Tensor) -> Tensor:
        x, y, z = s.unbind(-1)
        return torch.stack((10.0 * (y - x), b * x - y - x * z, x * y - 8 / 3 * z), -1)

    return field


def times(length: float) -> list[float]:
    """The grid of a trajectory."""
    return [STEP * k for k in range(round(length / STEP) + 1)]


def runs(count: int, length: float, seed: int) -> Tensor:
    """Trajectories of the truth on its attractor."""
    noise = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    settled = trajectories(TSITOURAS, lorenz(), 5 * noise + noise.new_tensor([0.0, 0.0, 25.0]), times(5.0))[:, -1]
    return trajectories(DOP853, lorenz(), settled, times(length))


class Forecast(NamedTuple):
    """Mean time to a relative error of 5 %, and its standard error."""

    time: float
    error: float


def forecast(field: Callable[..., Tensor], truth: Tensor) -> Forecast:
    """Run a model from the first states of the truth."""
    return valid(trajectories(TSITOURAS, field, truth[:, 0], times(STEP * (truth.shape[1] - 1))), truth)


def valid(predicted: Tensor, truth: Tensor, *, step: float = STEP, share: float = 0.05) -> Forecast:
    """When predictions first leave the truth by 5 % of its size, or another share."""
    wrong = ~((predicted - truth).norm(dim=-1) <= share * truth.norm(dim=-1))
    first = torch.where(wrong.any(1), wrong.double().argmax(1), truth.shape[1] - 1) * step
    return Forecast(float(first.mean()), float(first.std() / len(first) ** 0.5))


class Candidate(NamedTuple):
    """A correction that may be chosen, and the model that it corrects: ε, or None for data alone."""

    model: float | None
    features: RandomFeatures


def known_model(model: float | None) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Lorenz 63 with its parameter wrong by ε."""
    return None if model is None else lorenz(28.0 * (1 + model))


def candidates(models: Sequence[float | None], states: Tensor, slopes: Tensor, size: Size) -> list[Candidate]:
    """Corrections of each model for each spread and ridge."""
    made = []
    for spread in size.spreads:
        def fresh(spread: float = spread) -> RandomFeatures:
            return RandomFeatures(3, 3, size.features, centre=states.mean(0), scale=states.std(0), spread=spread)

        features = fresh().features(states)
        for model in models:
            known = known_model(model)
            regression = Regression.of(features, slopes if known is None else slopes - known(states, states))
            for ridge in RIDGES:
                made.append(Candidate(model, fresh()))
                with torch.no_grad():
                    made[-1].features.coefficients.copy_(regression.coefficients(ridge))
    return made


@torch.no_grad()
def chosen(made: Sequence[Candidate], validation: Tensor) -> dict[float | None, Corrected]:
    """Of each model the correction that forecasts the validation trajectories best; all are run as one batch."""
    runs_each = len(validation)

    def field(y: Tensor, t: Tensor) -> Tensor:
        rows = y.split(runs_each)
        return torch.cat([Corrected(known_model(candidate.model), candidate.features)(own, t)
                          for candidate, own in zip(made, rows, strict=True)])

    predicted = trajectories(TSITOURAS, field, validation[:, 0].repeat(len(made), 1), times(
        STEP * (validation.shape[1] - 1)))
    best: dict[float | None, tuple[float, Corrected]] = {}
    for candidate, own in zip(made, predicted.split(runs_each), strict=True):
        time = valid(own, validation).time
        if time > best.get(candidate.model, (-1.0,))[0]:
            best[candidate.model] = time, Corrected(known_model(candidate.model), candidate.features)
    return {model: field for model, (_, field) in best.items()}


def observed(states: Tensor, truth: Tensor, seed: int) -> list[Claim]:
    """Only x is observed, with noise of standard deviation 0.5: nudge, learn from the nudges, and again."""
    known, gain = lorenz(28.0 * 1.2), states.new_tensor([20.0, 40.0, 0.0])
    noise = torch.randn(len(states), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    seen = states[:, 0] + 0.5 * noise
    field: Callable[..., Tensor] = known
    claims, features = [], None
    for _ in range(4):
        analyses, pushes = nudged(field, seen, states[0] + 5.0, gain)
        missed = float((analyses[500:] - states[500:]).square().mean().sqrt())
        claims.append((missed, forecast(field, truth)))
        total = pushes if features is None else pushes + features(analyses).detach()
        features = RandomFeatures(3, 3, 50, centre=analyses.mean(0), scale=analyses.std(0), spread=0.5)
        regression = Regression.of(features.features(analyses[500:]), total[500:])
        with torch.no_grad():
            features.coefficients.copy_(regression.coefficients(1e-4))
        field = Corrected(known, features)
    (first, before), (last, after) = claims[0], claims[-1]
    where = "x with noise, ε=0.2"
    return [Claim(f"{where}: error of the observed state, f0", first),
            Claim(f"{where}: the same, corrected from the pushes", last, first, "f0 in this run", goal=first),
            Claim(f"{where}: forecast of f0", before.time, error=before.error),
            Claim(f"{where}: forecast corrected", after.time, before.time, "f0 in this run", before.time, True,
                  after.error)]


@torch.no_grad()
def nudged(field: Callable[..., Tensor], seen: Tensor, start: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Assimilate x by ``dx̂/dt = f(x̂) + K (x_seen - x̂_0)`` in steps of Heun's method; states and what K added."""
    states, pushes, state, now = [], [], start, start.new_zeros(1)
    for value in seen:
        push = gain * (value - state[0])
        states.append(state)
        pushes.append(push)
        slope = field(state.unsqueeze(0), now)[0]
        ahead = field((state + STEP * (slope + push)).unsqueeze(0), now)[0]
        state = state + STEP * ((slope + ahead) / 2 + push)
    return torch.stack(states), torch.stack(pushes)


@torch.no_grad()
def filtered(states: Tensor, truth: Tensor, seed: int) -> list[Claim]:
    """The same by an ensemble Kalman filter, from every fifth observation."""
    known, every, generator = lorenz(28.0 * 1.2), 5, torch.Generator().manual_seed(seed)
    path, late = states[:4000:every], slice(min(200, len(states) // 50), None)
    noise = torch.randn(len(path) + 20, 4, dtype=torch.float64, generator=generator)
    seen, spread = path[:, :1] + 0.5 * noise[20:, :1], 3 * noise[:20]

    def follow(field: Callable[..., Tensor], ensemble: Tensor, inflation: float) -> Assimilated:
        return ensemble_kalman(TSITOURAS, field, ensemble, seen, interval=every * STEP, steps=2, inflation=inflation,
                               observe=lambda s: s[:, :1], covariance=seen.new_tensor([[0.25]]))

    def missed(found: Assimilated) -> float:
        return float((found.analyses[late, :, :3].mean(1) - path[late]).square().mean().sqrt())

    def whole(s: Tensor, t: Tensor) -> Tensor:
        x, y, z, b = s.unbind(-1)
        return torch.stack((10.0 * (y - x), b * x - y - x * z, x * y - 8 / 3 * z, torch.zeros_like(b)), -1)

    start = path[0] + 5.0
    first = follow(known, start + spread[:, :3], 1.2)
    mean, pushes = first.analyses.mean(1)[1:][late], first.increments(every * STEP)[late]
    features = RandomFeatures(3, 3, 50, centre=mean.mean(0), scale=mean.std(0), spread=0.5)
    fit_ridge(features, mean, pushes, ridge=1e-4)
    second = follow(Corrected(known, features), start + spread[:, :3], 1.2)
    both = follow(whole, torch.cat((start, start.new_tensor([28.0 * 1.2]))) + spread, 1.01)
    b = float(both.analyses[-1, :, 3].mean())
    ahead = forecast(lorenz(b), truth)
    where, base = "x with noise, ensemble filter", missed(first)
    return [Claim(f"{where}: error of the state, f0", base),
            Claim(f"{where}: the same, corrected from increments", missed(second), base, "f0 in this run", base),
            Claim(f"{where}: the same, b in the state", missed(both), base, "f0 in this run", base),
            Claim(f"{where}: b", b, 28.0, "the truth"),
            Claim(f"{where}: forecast with that b", ahead.time, error=ahead.error)]


@torch.no_grad()
def twin(states: Tensor, validation: Tensor, truth: Tensor, size: Size) -> list[Claim]:
    """The discrete twin at ε=.05: a map over five steps, ``x⁺ = Ψ0(x) + m(x)``, and one from data alone."""
    stride = 5

    def flow(y: Tensor, t: Tensor) -> Tensor:
        return trajectories(TSITOURAS, lorenz(28.0 * 1.05), y, times(stride * STEP))[:, -1]

    def iterated(step: Corrected, future: Tensor) -> Forecast:
        path = [future[:, 0]]
        for _ in range((future.shape[1] - 1) // stride):
            path.append(step(path[-1], path[-1]))
        return valid(torch.stack(path, 1), future[:, ::stride][:, :len(path)], step=stride * STEP)

    here, there = states[:-stride], states[stride:]
    claims = []
    for name, known in (("data only", None), ("f0 + m", flow)):
        rest, best = there if known is None else there - flow(here, here), (-1.0, Corrected(known, torch.nn.Identity()))
        features = RandomFeatures(3, 3, size.features, centre=states.mean(0), scale=states.std(0))
        regression = Regression.of(features.features(here), rest)
        for ridge in RIDGES:
            made = copy.deepcopy(features)
            made.coefficients.copy_(regression.coefficients(ridge))
            best = max(best, (iterated(Corrected(known, made), validation).time, Corrected(known, made)),
                       key=lambda pair: pair[0])
        ahead = iterated(best[1], truth)
        claims.append(Claim(f"discrete twin, {name}{', ε=0.05' if known else ''}", ahead.time, error=ahead.error))
    return claims


def hidden(states: Tensor, slopes: Tensor, truth: Tensor) -> list[Claim]:
    """Z is never seen, f0 knows dx/dt = 10 (y - x) and dy/dt = 28 x - y: with and without memory."""
    def known(s: Tensor, t: Tensor) -> Tensor:
        return torch.stack((10.0 * (s[..., 1] - s[..., 0]), 28.0 * s[..., 0] - s[..., 1]), -1)

    seen, settle = states[:, :2], min(500, truth.shape[1] // 2)
    target, centre, scale = slopes[:, :2] - known(seen, seen), seen.mean(0), seen.std(0)
    memory = Reservoir(2, 100, rates=(0.5, 30.0), centre=centre, scale=scale)
    remembered = driven(memory, seen.unsqueeze(0))[0]
    both = torch.cat((seen, remembered), 1)
    plain = RandomFeatures(2, 2, 300, centre=centre, scale=scale)
    aware = RandomFeatures(102, 2, 600, centre=both.mean(0), scale=both[settle:].std(0), spread=2.0)
    for features, inputs in ((plain, seen), (aware, both)):
        regression = Regression.of(features.features(inputs[settle:]), target[settle:])
        with torch.no_grad():
            features.coefficients.copy_(regression.coefficients(1e-9))
    warm = truth[:, :settle + 1, :2]
    future = truth[:, settle:, :2]
    start = torch.cat((warm[:, -1], driven(memory, warm)[:, -1]), 1)
    field = Remembering(known, aware, memory, observed=2)
    length = times(STEP * (future.shape[1] - 1))
    without = valid(trajectories(TSITOURAS, Corrected(known, plain), future[:, 0], length), future)
    with_ = valid(trajectories(TSITOURAS, field, start, length)[:, :, :2], future)
    return [Claim("z hidden: forecast of f0 + m(x, y)", without.time, error=without.error),
            Claim("z hidden: forecast of f0 + m(x, y, r)", with_.time, without.time, "without memory, this run",
                  without.time, True, with_.error)]


@torch.no_grad()
def driven(memory: Reservoir, seen: Tensor) -> Tensor:
    """The memory along observed trajectories, from zero, in steps of Heun's method."""
    r = [seen.new_zeros(len(seen), len(memory.rates))]
    for here, there in itertools.pairwise(seen.unbind(1)):
        slope = memory(torch.cat((here, r[-1]), 1))
        ahead = memory(torch.cat((there, r[-1] + STEP * slope), 1))
        r.append(r[-1] + STEP * (slope + ahead) / 2)
    return torch.stack(r, 1)


def draw(path: str, table: dict[float, tuple[Forecast, Forecast]], data_only: Forecast) -> None:
    """Forecast times against the size of the model's error."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for column, (name, colour) in enumerate((("known model f₀ alone", "#999999"), ("f₀ + learned error", "#1f6fb4"))):
        axes.errorbar(list(table), [row[column].time for row in table.values()],
                      [row[column].error for row in table.values()], fmt="o-", color=colour, label=name, capsize=3)
    axes.axhline(data_only.time, color="#d8572a", linestyle="--", label="learned from data alone")
    axes.set(xscale="log", xlabel="relative error ε of the known model's parameter", ylim=(0, None),
             ylabel="time to 5 % error", title="Lorenz 63: forecasts of a wrong model, corrected")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run all of it."""
    arguments = parser(__doc__).parse_args()
    size = QUICK if arguments.quick else Size()
    (train,), validation, truth = (runs(count, length, 10 * arguments.seed + k) for k, (count, length) in enumerate(
        ((1, size.train), (size.validation, size.horizon), (size.test, size.horizon))))
    states, slopes = central_derivatives(train.unsqueeze(0), STEP)
    fields = chosen(candidates((None, *size.errors), states, slopes, size), validation)
    data_only = forecast(fields[None], truth)
    claims, table = [Claim("data only", data_only.time, DATA_ONLY, VERIFIED, DATA_ONLY, True, data_only.error)], {}
    for error in size.errors:
        alone, hybrid = forecast(lorenz(28.0 * (1 + error)), truth[:, :600]), forecast(fields[error], truth)
        table[error] = alone, hybrid
        anchor = ANCHORS[error]
        claims += [Claim(f"ε={error}: f0 alone", alone.time, anchor[0], VERIFIED, error=alone.error),
                   Claim(f"ε={error}: f0 + m", hybrid.time, anchor[1], VERIFIED, anchor[1], True, hybrid.error)]
    claims += twin(states, validation, truth, size) + hidden(states, slopes, truth)
    claims += observed(states, truth, arguments.seed) + filtered(states, truth, arguments.seed)
    print_claims("Lorenz 63, mean time to a relative error of .05", claims)
    write(arguments, claims)
    if arguments.figure is not None:
        draw(arguments.figure, table, data_only)


if __name__ == "__main__":
    main()
