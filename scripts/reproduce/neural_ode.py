"""Reproduce the experiments of neural ODEs (Chen et al. 2018): `python scripts/reproduce/neural_ode.py`.

Two noisy circles as a continuous normalising flow, whose negative log-likelihood is held against the exact
entropy of the circles; spirals by a latent ODE against a recurrent network, beyond what they observed; a
classifier with an ODE for its residual blocks, and how its error and its evaluations follow the
tolerance; then the use in sampling: bits per dimension of the embedded models on test images.
All training is by `odecore.learn.fit`, all integration by odecore's solvers.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from claims import Claim, parser, print_claims, write
from scipy.special import ive
from torch import Tensor, nn

from eval.data import fashion_mnist
from odecore.explicit.embedded import DORMAND_PRINCE
from odecore.facade.methods import stepper
from odecore.learn.blocks import NeuralODE, OnGrid, WithTime, WithTolerance
from odecore.learn.callbacks import cosine_decay
from odecore.learn.fields import MLP
from odecore.learn.fit import adam, fit, minibatches
from odecore.learn.flows import ContinuousFlow, negative_log_likelihood
from odecore.learn.latent import LatentODE
from samplers.likelihood import Hutchinson, bits_per_dim
from scoremodels.loaders import load

RADII, BLUR = (0.5, 1.0), 0.06
RK4 = stepper("classic_rk4")
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
MODELS = ("fashion-mnist-edm", "fashion-mnist-ddpm", "fashion-mnist-flow")


@dataclass(frozen=True, slots=True)
class Size:
    """How much to run: steps of each training, test points and images, and the tolerance of likelihoods."""

    flow: int = 1000
    spirals: int = 700
    classifier: int = 350
    points: int = 2000
    tested: int = 2000
    images: int = 16
    tolerance: float = 1e-3


QUICK = Size(flow=12, spirals=8, classifier=4, points=200, tested=100, images=2, tolerance=0.1)


def seeded(seed: int) -> torch.Generator:
    """A generator of a seed."""
    return torch.Generator().manual_seed(seed)


# Two circles


def circles(count: int, seed: int) -> Tensor:
    """Points of two noisy circles."""
    generator = seeded(seed)
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    radius = torch.tensor(RADII)[torch.randint(0, 2, (count,), generator=generator)]
    return (torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
            + BLUR * torch.randn(count, 2, generator=generator))


def circles_log_density(x: Tensor) -> Tensor:
    """Density of the noisy circles: a circle of radius R blurred by N(0, s²) has a Bessel function in rR/s²."""
    r = x.double().norm(dim=1)
    parts = [torch.log(torch.from_numpy(ive(0, (r * big / BLUR**2).numpy()))) - (r - big).square() / (2 * BLUR**2)
             for big in RADII]
    return torch.logsumexp(torch.stack(parts), 0) - math.log(2 * 2 * math.pi * BLUR**2)


def two_circles(size: Size, seed: int) -> tuple[list[Claim], ContinuousFlow]:
    """Train a flow on the circles and compare its density with theirs."""
    flow = ContinuousFlow(WithTime(MLP((3, 64, 64, 2), seed=seed)), 2, OnGrid(RK4, 4))
    trained = fit(flow, negative_log_likelihood(), lambda step: (circles(512, 10_000_019 * (seed + 1) + step), step),
                  steps=size.flow, optimizer=adam(1e-2), callbacks=[cosine_decay(size.flow, floor=0.02)])
    flow.integrator = WithTolerance(rtol=1e-6, atol=1e-6)
    x = circles(size.points, seed)
    with torch.no_grad():
        ours, exact = flow(x).double(), circles_log_density(x)
    gap = exact - ours
    return [
        Claim(f"two circles: negative log-likelihood of the flow, nats ({size.flow} steps, width 64)",
              -ours.mean().item(), -exact.mean().item(), "entropy of the data on the same points, in closed form",
              error=gap.std().item() / math.sqrt(size.points)),
        Claim("two circles: KL(data ‖ flow), nats", gap.mean().item(), 0.0, "closed form", goal=0.1,
              error=gap.std().item() / math.sqrt(size.points)),
        Claim("two circles: seconds of training a step", trained.seconds / size.flow)], flow


# Spirals

SEEN, TOTAL, ALL = 100, 200, 500
STAMPS = tuple(np.linspace(0.0, 6 * math.pi, ALL)[:TOTAL].tolist())


def spirals(count: int, seed: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Stretches of two spirals, one outwards and one inwards: so many observed points with noise, and the clean path.

    Each is 200 points of 500, from a random start; only the first 100 are observed.
    """
    generator, t = seeded(seed), torch.linspace(0.0, 6 * math.pi, ALL)
    there, back = 0.3 * t, 15.0 / (6 * math.pi + 1 - t)
    angle = 6 * math.pi + 1 - t
    paths = torch.stack([torch.stack([there * t.cos() + 5, there * t.sin()], 1),
                         torch.stack([back * angle.cos() - 5, back * angle.sin()], 1)])
    which = torch.randint(0, 2, (count,), generator=generator)
    start = torch.randint(SEEN, ALL - TOTAL, (count,), generator=generator)
    clean = torch.stack([paths[k, s:s + TOTAL] for k, s in zip(which.tolist(), start.tolist(), strict=True)])
    return clean[:, :SEEN] + noise * torch.randn(count, SEEN, 2, generator=generator), clean


class Recurrent(nn.Module):
    """The baseline: a GRU that predicts the next point, and goes on from its own predictions."""

    def __init__(self, hidden: int = 25) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(2, hidden, batch_first=True), nn.Linear(hidden, 2)

    def forward(self, x: Tensor, more: int = 0) -> Tensor:
        """The predictions that follow each point, and so many more."""
        out, state = self.cell(x)
        steps = [x + self.head(out)]
        for _ in range(more):
            last = steps[-1][:, -1:]
            out, state = self.cell(last, state)
            steps.append(last + self.head(out))
        return torch.cat(steps, 1)


def extrapolation(size: Size, seed: int) -> tuple[list[Claim], dict[str, Tensor]]:
    """Train both on the same spirals and compare them on others, beyond the observations."""
    torch.manual_seed(seed)
    data = minibatches(spirals(1000, seed)[0], torch.arange(1000), size=128, seed=seed)
    latent = LatentODE(Autonomous(MLP((4, 20, 20, 4), activation=nn.functional.elu, seed=seed)),
                       MLP((4, 20, 2), activation=torch.relu, seed=seed), size=2, latent=4, noise=0.3)
    baseline = Recurrent()
    options: dict[str, Any] = {"steps": size.spirals, "optimizer": adam(1e-2), "clip": 10.0}
    seen = STAMPS[:SEEN]
    fit(latent, lambda m, batch: m.negative_elbo(batch[0], seen, int(batch[1][0])), data,
        callbacks=[cosine_decay(size.spirals, floor=0.05)], **options)
    fit(baseline, lambda m, batch: (m(batch[0][:, :-1]) - batch[0][:, 1:]).square().mean(), data,
        callbacks=[cosine_decay(size.spirals, floor=0.05)], **options)
    observed, clean = spirals(200, seed + 1)
    with torch.no_grad():
        paths = {"latent ODE": latent(observed, seen, STAMPS)[:, SEEN:],
                 "GRU": baseline(observed, SEEN - 1)[:, SEEN - 1:]}
    errors = {name: (path - clean[:, SEEN:]).square().mean((1, 2)) for name, path in paths.items()}
    ours, other = (errors[name].mean().sqrt().item() for name in paths)
    spread = errors["latent ODE"].std().item() / math.sqrt(len(clean)) / (2 * ours)
    claim = Claim(f"spirals: RMSE of the {TOTAL - SEEN} points after {SEEN} observed ({size.spirals} steps)", ours,
                  other, "a GRU of the same width, in this run", goal=other, error=spread)
    return [claim], {"observed": observed, "clean": clean, **paths}


class Autonomous(nn.Module):
    """A field that does not depend on time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, y: Tensor, t: Tensor) -> Tensor:
        """The value at y."""
        return self.network(y)


# Classifier


class Residual(nn.Module):
    """Two normalised convolutions: the field of the ODE, and the block of the residual network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.GroupNorm(4, channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1),
                                  nn.GroupNorm(4, channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """What is added to x, or its derivative."""
        self.calls += 1
        return self.body(x)


class Block(Residual):
    """A residual block."""

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """X and what is added to it."""
        return x + self.body(x)


def classifier(middle: nn.Module, channels: int) -> nn.Module:
    """Two strided convolutions, the middle, and a linear head on means."""
    return nn.Sequential(nn.Conv2d(1, channels, 3, 2, 1), nn.ReLU(), nn.Conv2d(channels, channels, 3, 2, 1), middle,
                         nn.GroupNorm(4, channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(channels, 10))


def classification(size: Size, seed: int, channels: int = 24) -> tuple[list[Claim], dict[str, list[float]]]:
    """Train the ODE classifier and the residual one alike; then vary the tolerance of the former."""
    pictures, labels = ((x.float() / 127.5 - 1 if x.ndim == 4 else x) for x in fashion_mnist("train"))
    tested, truth = ((x[:size.tested].float() / 127.5 - 1 if x.ndim == 4 else x[:size.tested])
                     for x in fashion_mnist("test"))
    torch.manual_seed(seed)
    block = NeuralODE(Residual(channels), OnGrid(RK4, 2))
    networks = {"ODE": classifier(block, channels),
                "ResNet": classifier(nn.Sequential(*[Block(channels) for _ in range(6)]), channels)}
    data = minibatches(pictures, labels, size=128, seed=seed)
    accuracy, counts = {}, {}
    for name, network in networks.items():
        fit(network, lambda m, batch: nn.functional.cross_entropy(m(batch[0]), batch[1]), data, steps=size.classifier,
            optimizer=adam(3e-3), callbacks=[cosine_decay(size.classifier, floor=0.02)])
        with torch.no_grad():
            accuracy[name] = 100 * (network(tested).argmax(1) == truth).double().mean().item()
        counts[name] = sum(p.numel() for p in network.parameters())
    error = 100 * math.sqrt(accuracy["ODE"] / 100 * (1 - accuracy["ODE"] / 100) / size.tested)
    return [
        Claim(f"classifier: accuracy of the ODE, % of {size.tested} ({size.classifier} batches of 128)",
              accuracy["ODE"], accuracy["ResNet"], "residual network of 6 blocks, in this run",
              goal=accuracy["ResNet"] - 2,
              more=True, error=error),
        Claim("classifier: parameters of the ODE", counts["ODE"], counts["ResNet"], "residual network, in this run",
              goal=counts["ResNet"] / 2),
    ], tolerances(block, networks["ODE"][:3](tested[:64]).detach())


def tolerances(block: NeuralODE, x: Tensor) -> dict[str, list[float]]:
    """Error, evaluations forwards and backwards, and seconds of the trained layer at each tolerance."""
    field = block.field
    with torch.no_grad():
        block.integrator = WithTolerance(DORMAND_PRINCE, 1e-7, 1e-7)
        exact = block(x)
    table: dict[str, list[float]] = {"tolerance": [], "error": [], "forward": [], "backward": [], "seconds": []}
    for tolerance in TOLERANCES:
        block.integrator = WithTolerance(DORMAND_PRINCE, tolerance, tolerance, "continuous")
        field.calls, began = 0, time.perf_counter()
        out = block(x)
        forward, seconds = field.calls, time.perf_counter() - began
        out.square().mean().backward()
        row = (tolerance, ((out - exact).norm() / exact.norm()).item(), forward, field.calls - forward, seconds)
        for column, value in zip(table.values(), row, strict=True):
            column.append(value)
    return table


def tolerance_claims(table: dict[str, list[float]]) -> list[Claim]:
    """What the table of tolerances says: error falls and evaluations grow with the tolerance."""
    slope = np.polyfit(np.log10(table["tolerance"]), np.log10(table["error"]), 1)[0]
    ratio = float(np.mean(np.array(table["backward"]) / np.array(table["forward"])))
    time_slope = float(np.corrcoef(table["forward"], table["seconds"])[0, 1])
    return [
        Claim("tolerance: decades of error for a decade of tolerance", float(slope), 1.0, "error follows tolerance"),
        Claim("tolerance: evaluations at the loosest", table["forward"][0]),
        Claim("tolerance: evaluations at the tightest", table["forward"][-1]),
        Claim("tolerance: evaluations backwards (continuous adjoint) over forwards", ratio),
        Claim("tolerance: correlation of time and evaluations", time_slope, 1.0, "time is proportional to evaluations")]


# Bits per dimension


def likelihoods(size: Size, seed: int) -> list[Claim]:
    """Bits per dimension of the embedded models on the first test images."""
    images, labels = (x[:size.images] for x in fashion_mnist("test"))
    claims = []
    for name in MODELS:
        model = load(name).eval().requires_grad_(False)
        found = bits_per_dim(model, images, condition=labels if model.num_classes else None, rtol=size.tolerance,
                             atol=size.tolerance, trace=Hutchinson(seed=seed), seed=seed)
        claims.append(Claim(f"{name}: bits/dim of {size.images} test images, {found.nfe} NFE", found.mean,
                            8.0, "bytes as they are", error=found.standard_error))
    return claims


def draw(path: Path, flow: ContinuousFlow, paths: dict[str, Tensor], table: dict[str, list[float]]) -> None:
    """Four panels: density, samples, spirals, tolerances."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.8), layout="constrained")
    axis = torch.linspace(-1.5, 1.5, 120)
    with torch.no_grad():
        density = flow(torch.cartesian_prod(axis, axis)).exp().reshape(120, 120).T
        samples = flow.sample(2000)
    axes[0].imshow(density, origin="lower", extent=(-1.5, 1.5, -1.5, 1.5), cmap="magma")
    axes[1].plot(*samples.T, ".", ms=1.5)
    axes[1].set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    index = 0
    axes[2].plot(*paths["clean"][index].T, "k", lw=0.8, label="truth")
    axes[2].plot(*paths["observed"][index].T, ".", ms=3, label="observed")
    for name in ("latent ODE", "GRU"):
        axes[2].plot(*paths[name][index].T, label=name)
    axes[2].legend(fontsize=8)
    axes[3].loglog(table["error"], table["forward"], "o-", label="forward")
    axes[3].loglog(table["error"], table["backward"], "s-", label="backward")
    axes[3].set(xlabel="relative error", ylabel="evaluations")
    axes[3].legend(fontsize=8)
    for panel, title in zip(axes, ("density of the flow", "samples of the flow", "a spiral, extrapolated",
                                   "tolerance of the classifier"), strict=True):
        panel.set_title(title, fontsize=10)
    figure.savefig(path, dpi=72)


def main() -> None:
    """Run, print, save."""
    arguments = parser(__doc__).parse_args()
    size, seed = (QUICK if arguments.quick else Size()), arguments.seed
    claims: list[Claim] = []
    found, flow = two_circles(size, seed)
    claims += found
    found, paths = extrapolation(size, seed)
    claims += found
    found, table = classification(size, seed)
    claims += found + tolerance_claims(table)
    claims += likelihoods(size, seed)
    print_claims("Neural ODE (Chen et al. 2018, arXiv:1806.07366)", claims)
    if arguments.figure is not None:
        draw(arguments.figure, flow, paths, table)
    write(arguments, claims, tolerances=table)


if __name__ == "__main__":
    main()
