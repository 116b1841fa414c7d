"""Reproduce GoTube: `python scripts/reproduce/gotube.py`.

Gruenbacher et al. 2021 (arXiv:2107.08467): tubes that hold what a ball reaches, at a stated probability. Here: the
Brusselator, Van der Pol's oscillator, Dubins' car, a pole on a cart under a neural controller; the volume, averaged
over time, beside that of the smallest correct tube of the same metric and the same factor mu, which many dense samples
give; how often fresh samples stay inside; and how far a small ball of start noise is spread by a sampler.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from claims import Claim, parser, print_claims, write
from torch import Tensor

from odecore.caps import sphere_points
from odecore.driver.solve import solve
from odecore.explicit.embedded import DOP853
from odecore.learn.fields import MLP
from odecore.learn.fit import adam, fit
from odecore.tube import Flowed, Tube, balls, cover, reach_tube
from samplers import sample
from samplers.noise import SampleNoise
from scoremodels.loaders import load

Field = Callable[[Tensor, Tensor], Tensor]


def brusselator(y: Tensor, t: Tensor) -> Tensor:
    """With a = 1, b = 1.5, as in the authors' benchmarks."""
    a, b = y[:, 0], y[:, 1]
    return torch.stack((1 + a**2 * b - 2.5 * a, 1.5 * a - a**2 * b), 1)


def van_der_pol(y: Tensor, t: Tensor) -> Tensor:
    """Backwards in time, as in the authors' benchmarks: the origin attracts."""
    return torch.stack((y[:, 1], (y[:, 0] ** 2 - 1) * y[:, 1] - y[:, 0]), 1)


def dubins(y: Tensor, t: Tensor) -> Tensor:
    """A car with a steering wheel that swings; its last state is a clock."""
    x, _, heading, clock = y.unbind(1)
    return torch.stack((heading.cos(), heading.sin(), x * clock.sin(), torch.ones_like(x)), 1)


def cart_pole(controller: Callable[[Tensor], Tensor]) -> Field:
    """A pole upright on a cart; states are (rate of the angle, velocity, angle, place)."""
    def field(y: Tensor, t: Tensor) -> Tensor:
        rate, velocity, angle, _ = y.unbind(1)
        force, mass, light = controller(y[:, [0, 2]])[:, 0], 1.0, 0.001
        below = mass + light * angle.sin() ** 2
        turn = (force * angle.cos() - light * rate**2 * angle.cos() * angle.sin()
                + (light + mass) * 9.81 * angle.sin()) / below
        push = (force + light * angle.sin() * (9.81 * angle.cos() - rate**2)) / below
        return torch.stack((turn, push, rate, velocity), 1)

    return field


def neural_controller(steps: int, seed: int) -> Callable[[Tensor], Tensor]:
    """A network of rate and angle that has learned the force that keeps the pole upright, ``-1.1 · 9.81 θ - θ'``."""
    network = MLP((2, 16, 16, 1), seed=seed, dtype=torch.float64)

    def loss(module: torch.nn.Module, step: int) -> Tensor:
        y = 0.3 * torch.randn(256, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        return (module(y)[:, 0] + 1.1 * 9.81 * y[:, 1] + y[:, 0]).square().mean()

    fit(network, loss, lambda step: step, steps=steps, optimizer=adam(1e-2))
    return network.requires_grad_(False)


@dataclass(frozen=True, slots=True)
class System:
    """A benchmark: its ball, times, the tube's factor, and the anchor of `sources`, if there is one."""

    name: str
    field: Field
    centre: tuple[float, ...]
    radius: float
    until: float
    mu: float = 1.1
    anchor: float | None = None


def systems(quick: bool, seed: int) -> list[System]:
    """The benchmarks, with the volumes of a correct tube at mu = 1.1 that were computed independently."""
    first = System("Brusselator", brusselator, (1.0, 1.0), 0.01, 9.0, anchor=8.42e-5)
    if quick:
        return [first]
    return [first, System("Van der Pol", van_der_pol, (-1.0, -1.0), 0.01, 40.0, anchor=4.67e-4),
            System("Dubins", dubins, (0.0, 0.0, 0.7854, 0.0), 0.01, 15.0, mu=1.5),
            System("cart and pole", cart_pole(neural_controller(600, seed)), (0.0, 0.0, 0.001, 0.0), 0.05, 5.0, mu=1.5)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A tube, the volume of the smallest correct one with its metric and mu, and how many fresh points it holds."""

    system: System
    tube: Tube
    seconds: float
    dense: float
    inside: float


def run(system: System, times: int, fresh: int, seed: int) -> Outcome:
    """Make a tube and try it on fresh points of the ball's surface."""
    centre = torch.tensor(system.centre, dtype=torch.float64)
    nodes = torch.linspace(0.0, system.until, times, dtype=torch.float64)
    started = time.perf_counter()
    tube = reach_tube(system.field, centre, system.radius, nodes, mu=system.mu, gamma=0.1, batch=100, seed=seed,
                      rtol=1e-8)
    seconds = time.perf_counter() - started
    points = centre + system.radius * sphere_points(fresh, len(centre), torch.Generator().manual_seed(seed + 999))
    states = solve(DOP853, system.field, points, 0.0, system.until, rtol=1e-8, atol=1e-10, ts=nodes).ys
    assert states is not None
    largest = tube.distances(states).amax(0)
    sizes = (system.mu * largest / tube.radii) ** len(centre)  # of the smallest correct tube, times mu, over ours
    return Outcome(system, tube, seconds, (tube.volumes * sizes)[1:].mean().item(),
                   tube.contains(states).all(1).double().mean().item())


def spread(nfes: tuple[int, ...], ball: float) -> dict[int, float]:
    """Radius of the set that a sampler makes of a ball of start noise in two random directions, over the ball's."""
    model = load("fashion-mnist-edm")
    size = 28 * 28
    start = 80.0 * SampleNoise([7], model.shape)()[0].double().flatten()
    drawn = torch.randn(size, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    directions, times = torch.linalg.qr(drawn).Q, torch.tensor([0.0, 1.0])

    def flow_of(nfe: int) -> Callable[[Tensor], Flowed]:
        def ends(points: Tensor) -> Tensor:
            states = points.reshape(-1, *model.shape).float()
            return sample(model, x_T=states, nfe=nfe, solver="dpm-solver++-2m", condition=3).samples.double().flatten(1)

        def flow(points: Tensor) -> Flowed:
            step = ball / 4
            around = [points, *(points + sign * step * column for column in directions.T for sign in (1, -1))]
            found = ends(torch.cat(around)).chunk(len(around))
            columns = torch.stack([(found[1 + 2 * k] - found[2 + 2 * k]) / (2 * step) for k in range(2)], 2)
            first = directions.expand(len(points), size, 2)
            return Flowed(torch.stack((points, found[0]), 1), torch.stack((first, columns), 1))

        return flow

    return {nfe: (cover(flow_of(nfe), start, ball, times, directions=directions, metric=balls, mu=1.3, gamma=0.1,
                        batch=6, most=120).radii[1] / ball).item() for nfe in nfes}


def draw(path: Path, outcomes: list[Outcome], spreads: dict[int, float]) -> None:
    """Tubes in the plane of the first two states, and the sampler's spread."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    angle = torch.linspace(0, 2 * torch.pi, 60, dtype=torch.float64)
    circle = torch.stack((angle.cos(), angle.sin()))
    for panel, outcome in zip(panels, outcomes[:2], strict=False):
        tube = outcome.tube
        for centre, metric, radius in zip(tube.centres, tube.metrics, tube.radii, strict=True):
            panel.plot(*(centre[:, None] + radius * torch.linalg.solve(metric, circle)), color="C0", lw=0.7)
        panel.plot(*tube.centres.T, color="C1", lw=1)
        panel.set(title=f"{outcome.system.name}, {tube.samples} samples", xlabel="$y_1$", ylabel="$y_2$")
    panels[2].plot(list(spreads), list(spreads.values()), "o-")
    panels[2].set(title="Ball of start noise after sampling", xlabel="evaluations", ylabel="radius of set over ball's")
    panels[2].set_ylim(bottom=0)
    figure.savefig(path, dpi=80)
    print(f"wrote {path}")


def main(arguments: argparse.Namespace) -> None:
    """Make all tubes and print their figures."""
    times, fresh = (10, 500) if arguments.quick else (61, 5000)
    outcomes = [run(system, times, fresh, arguments.seed) for system in systems(arguments.quick, arguments.seed)]
    spreads = spread((5,) if arguments.quick else (4, 6, 10, 20), 1.0)
    claims = []
    for one in outcomes:
        name, volume = f"{one.system.name}, mu = {one.system.mu}", one.tube.volumes[1:].mean().item()
        claims += [
            Claim(f"{name}: mean volume", volume, one.dense, "the smallest correct tube times mu, in this run",
                  1.5 * one.dense),
            Claim(f"{name}: fresh samples inside at all times", one.inside, "≥ .9 at each", "stated probability", 0.9,
                  True),
            Claim(f"{name}: samples", one.tube.samples), Claim(f"{name}: seconds", one.seconds)]
        if one.system.anchor is not None:
            claims.append(Claim(f"{name}: mean volume, all times", one.tube.mean_volume, one.system.anchor,
                                "computed independently", 1.5 * one.system.anchor))
    claims += [Claim(f"fashion-mnist-edm, {nfe} evaluations: radius of the set over that of the ball of noise", value)
               for nfe, value in spreads.items()]
    print_claims("Reach tubes", claims)
    if arguments.figure is not None:
        draw(arguments.figure, outcomes, spreads)
    write(arguments, claims)


if __name__ == "__main__":
    main(parser(__doc__).parse_args())
