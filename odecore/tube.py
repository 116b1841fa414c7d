"""Tubes that hold all states reachable from a ball, at a stated probability (GoTube)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from odecore.caps import cap_arc, cap_fraction, lipschitz_bound, sphere_points
from odecore.driver.solve import solve
from odecore.explicit.embedded import DORMAND_PRINCE
from odecore.stepper import Stepper


class Flowed(NamedTuple):
    """Where points have gone, and how their surroundings were deformed.

    Attributes:
        states: at all times, of shape (points, times, size).
        columns: derivatives of the states along the directions of the ball, of shape (points, times, size, k).
    """

    states: Tensor
    columns: Tensor


Flow = Callable[[Tensor], Flowed]
"""From start points of shape (points, size)."""

Metric = Callable[[Tensor], Tensor]
"""From the centre's sensitivities of shape (times, size, k) to matrices A: distances are ``‖A (x - centre)‖``."""


def balls(sensitivity: Float[Tensor, "times size k"]) -> Float[Tensor, "times size size"]:
    """Measure distances as they are: the sets of the tube are balls."""
    size = sensitivity.shape[1]
    return torch.eye(size, dtype=sensitivity.dtype, device=sensitivity.device).expand(len(sensitivity), size, size)


def ellipsoids(sensitivity: Float[Tensor, "times size size"]) -> Float[Tensor, "times size size"]:
    """Measure distances in the initial ball, ``A = F⁻¹``: sets are ellipsoids, the tightest where the flow is linear.

    Raises:
        ValueError: a sensitivity that cannot be inverted in its precision.
    """
    extremes = torch.linalg.svdvals(sensitivity) if sensitivity.shape[1] == sensitivity.shape[2] else None
    if extremes is None or bool((extremes[:, -1] <= extremes[:, 0] * torch.finfo(extremes.dtype).eps).any()):
        raise ValueError("metric=ellipsoids: the sensitivity of the centre is singular in its precision; use "
                         "metric=balls")
    return torch.linalg.inv(sensitivity)


@dataclass(frozen=True, slots=True)
class Tube:
    """Sets ``‖A_j (x - c_j)‖ ≤ r_j`` that hold the states reachable at each time.

    Args:
        times: t_j, of shape (times,).
        centres: c_j, the solution from the ball's centre, of shape (times, size).
        metrics: A_j, of shape (times, size, size).
        radii: r_j, of shape (times,).
        probability: at which each set is stated to hold all of them, for each time by itself.
        samples: points whose solutions were computed.
    """

    times: Tensor
    centres: Tensor
    metrics: Tensor
    radii: Tensor
    probability: Tensor
    samples: int

    def distances(self, points: Float[Tensor, "points times size"]) -> Float[Tensor, "points times"]:
        """Measure how far points are from the centre, in the metric of their time.

        Raises:
            ValueError: points of another shape.
        """
        if points.ndim != 3 or points.shape[1:] != self.centres.shape:
            raise ValueError(f"points have shape {tuple(points.shape)}: give (points, "
                             f"{', '.join(map(str, self.centres.shape))}), one state for each time")
        return _distances(self.metrics, points - self.centres)

    def contains(self, points: Float[Tensor, "points times size"]) -> Bool[Tensor, "points times"]:
        """Tell which points are inside, at each time."""
        return self.distances(points) <= self.radii * (1 + 1e-12)

    @property
    def log_volumes(self) -> Float[Tensor, " times"]:
        """Logarithms of the volumes of the sets, for the dimensions in which volumes underflow."""
        size = self.centres.shape[1]
        unit = size / 2 * math.log(math.pi) - math.lgamma(size / 2 + 1)
        return unit + size * self.radii.log() - torch.linalg.slogdet(self.metrics).logabsdet

    @property
    def volumes(self) -> Float[Tensor, " times"]:
        """Volumes of the sets, of shape (times,)."""
        return self.log_volumes.exp()

    @property
    def mean_volume(self) -> float:
        """Average of the volumes over the times, as the paper reports it."""
        return self.volumes.mean().item()


def reach_tube(
    field: Callable[[Tensor, Tensor], Tensor],
    centre: Float[Tensor, " size"],
    radius: float,
    times: Sequence[float] | Tensor,
    *,
    metric: Metric = ellipsoids,
    mu: float = 1.5,
    gamma: float = 0.2,
    batch: int = 100,
    most: int = 200_000,
    seed: int = 0,
    stepper: Stepper = DORMAND_PRINCE,
    rtol: float = 1e-10,
    atol: float = 1e-10,
) -> Tube:
    """Enclose the states that ``dy/dt = f(y, t)`` reaches from a ball, with probability 1 - γ at each time.

    Points x of the ball's surface are followed together with their sensitivities ``dF/dt = (∂f/∂y) F``; see
    :func:`cover` for the radii.

    Args:
        field: f, of states of shape (points, size) and one time a point; points must not mix.
        centre: of the ball; its dtype (float64 for default tolerances) and device are those of the computation.
        radius: of the ball, positive.
        times: t_0 < t_1 < …, the first being that of the ball.
        metric: ``ellipsoids`` or ``balls``, or another function of the centre's sensitivities.
        mu: radius over the largest distance seen, greater than 1: less needs more samples.
        gamma: probability with which a set may be too small, between 0 and 1.
        batch: points that are solved at once.
        most: samples after which to give up.
        seed: of the samples.
        stepper: the method.
        rtol: relative tolerance of states and sensitivities.
        atol: absolute tolerance; distances below it mean nothing, so a flow that contracts needs a small one.

    Returns:
        The tube.

    Raises:
        ValueError: an argument is out of range, or the metric does not exist.
        RuntimeError: more than ``most`` samples would be needed.

    Cost: for each batch a solve of ``size · (1 + size)`` numbers a point, each evaluation with ``size``
        Jacobian–vector products. Samples grow like ``(mu - 1)^(1 - size)``.

    Source: Gruenbacher et al. 2021, GoTube, arXiv:2107.08467. We follow the abstract and the published code; arcs
        stay on the surface, where the code's chords leave it.
    """
    nodes = torch.as_tensor(times, dtype=torch.float64)

    def flow(points: Tensor) -> Flowed:
        size = points.shape[1]
        units = torch.eye(size, dtype=points.dtype, device=points.device).expand(len(points), size, size)
        start = torch.cat((points.unsqueeze(1), units), 1)  # the state, then the columns of F
        with torch.no_grad():
            found = solve(stepper, with_columns(field), start, float(nodes[0]), float(nodes[-1]), rtol=rtol, atol=atol,
                          ts=nodes).ys
        assert found is not None
        return Flowed(found[:, :, 0], found[:, :, 1:].transpose(2, 3))

    return cover(flow, centre, radius, nodes, metric=metric, mu=mu, gamma=gamma, batch=batch, most=most, seed=seed)


def with_columns(field: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """The field of a state and tangents at it: ``(y, v_1, …) → (f, (∂f/∂y) v_1, …)``, stacked along axis 1."""
    def augmented(stacked: Tensor, t: Tensor) -> Tensor:
        y, tangents = stacked[:, 0], stacked[:, 1:]

        def along(tangent: Tensor) -> tuple[Tensor, Tensor]:
            dual = torch.func.jvp(lambda point: field(point, t), (y,), (tangent,))
            return dual[0], dual[1]

        values, products = torch.func.vmap(along, in_dims=1, out_dims=1)(tangents)
        return torch.cat((values[:, :1], products), 1)

    return augmented


def cover(
    flow: Flow, centre: Float[Tensor, " size"], radius: float, times: Float[Tensor, " times"], *,
    directions: Float[Tensor, "size k"] | None = None, metric: Metric = ellipsoids, mu: float = 1.5, gamma: float = 0.2,
    batch: int = 100, most: int = 200_000, seed: int = 0,
) -> Tube:
    """Enclose what a flow makes of a ball, or of its part in a subspace.

    With d(x) the distance of a sample's state from the centre's and d* the largest seen, the set's radius is μ d*.
    A sample rules out a larger distance on the cap within the arc s of it, ``λ s + Δ s²/2 = μ d* - d``, where
    ``λ = ‖A F(x)‖₂`` is the stretching at the sample and Δ a bound on the Lipschitz constant of λ on the surface, at
    confidence ``√(1-γ)`` by the extreme values of difference quotients. Samples are added until a point of the
    surface is in some cap with probability ``√(1-γ)`` at least.

    Args:
        flow: from points to states and their derivatives along the directions.
        centre: of the ball.
        radius: of the ball.
        times: of the states that the flow returns, the first being that of the points themselves.
        directions: orthonormal columns that span the subspace; None for the whole space.
        metric: as in :func:`reach_tube`; ``balls`` for a subspace.
        mu: as in :func:`reach_tube`, as all that follow.
        gamma: likewise.
        batch: likewise.
        most: likewise.
        seed: likewise.

    Raises:
        ValueError: as :func:`reach_tube`.
        RuntimeError: likewise.
    """
    _check(centre, radius, times, directions, mu, gamma, batch, most)
    basis = torch.eye(len(centre), dtype=centre.dtype, device=centre.device) if directions is None else directions
    middle = flow(centre.unsqueeze(0))
    metrics = metric(middle.columns[0])
    generator = torch.Generator().manual_seed(seed)
    level = math.sqrt(1 - gamma)
    evidence = _Evidence.none(len(times))
    covered = np.zeros(len(times))
    while covered.min() < level:
        if len(evidence.distances) + batch > most:
            raise RuntimeError(f"{len(evidence.distances)} samples cover {covered.min():.3g} of the surface at some "
                               f"time, and {level:.3g} are wanted: raise mu, gamma or most")
        points = sphere_points(batch, basis.shape[1], generator)
        flowed = flow(centre + radius * points.to(centre) @ basis.T)
        evidence = evidence.more(radius * points.numpy(), *(
            _on_host(values) for values in (_distances(metrics, flowed.states - middle.states[0]),
                                            torch.linalg.matrix_norm(metrics @ flowed.columns, 2))))
        covered = evidence.covered(mu, radius, basis.shape[1], level)
    radii, probability = mu * evidence.distances.max(0), level * covered
    radii[0], probability[0] = radius, 1.0  # the ball itself
    return Tube(times, middle.states[0], metrics, torch.from_numpy(radii).to(centre),
                torch.from_numpy(probability), len(evidence.distances))


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What the samples tell: distances, stretchings, and how fast these change, at each time."""

    distances: NDArray[np.float64]
    stretchings: NDArray[np.float64]
    quotients: NDArray[np.float64]

    @classmethod
    def none(cls, times: int) -> _Evidence:
        return cls(*(np.zeros((0, times)) for _ in range(3)))

    def more(
        self, points: NDArray[np.float64], distances: NDArray[np.float64], stretchings: NDArray[np.float64]
    ) -> _Evidence:
        """Add a batch; its points are independent, and so are their pairs."""
        half = len(points) // 2
        apart = np.linalg.norm(points[:half] - points[half:2 * half], axis=1)[:, None]
        quotients = np.abs(stretchings[:half] - stretchings[half:2 * half]) / np.maximum(apart, 1e-300)
        pairs = ((self.distances, distances), (self.stretchings, stretchings), (self.quotients, quotients))
        return _Evidence(*(np.concatenate(pair) for pair in pairs))

    def covered(self, mu: float, radius: float, size: int, level: float) -> NDArray[np.float64]:
        """How probable it is that a point of the surface is in some cap, at each time."""
        room = mu * self.distances.max(0) - self.distances
        arcs = cap_arc(room, self.stretchings, lipschitz_bound(self.quotients, level))
        missed = np.log1p(-np.minimum(cap_fraction(arcs / radius, size), 1 - 1e-16)).sum(0)
        covered = -np.expm1(missed)
        covered[0] = 1.0
        return covered


def _distances(metrics: Tensor, differences: Tensor) -> Tensor:
    return torch.einsum("tij,ntj->nti", metrics, differences).norm(dim=2)


def _on_host(values: Tensor) -> NDArray[np.float64]:
    return values.detach().cpu().double().numpy()


def _check(
    centre: Tensor, radius: float, times: Tensor, directions: Tensor | None, mu: float, gamma: float, batch: int,
    most: int,
) -> None:
    if centre.ndim != 1 or not len(centre) or not centre.is_floating_point() or not bool(centre.isfinite().all()):
        raise ValueError(f"centre has shape {tuple(centre.shape)} and dtype {centre.dtype}: give a vector of finite "
                         "floating-point numbers")
    if not 0 < radius < math.inf:
        raise ValueError(f"radius={radius}: give a positive length")
    if times.ndim != 1 or len(times) < 2 or not bool((times[1:] > times[:-1]).all()):
        raise ValueError(f"times={times.tolist()}: give at least two, increasing")
    if not 1 < mu < math.inf:
        raise ValueError(f"mu={mu}: give a factor greater than 1")
    if not 0 < gamma < 1:
        raise ValueError(f"gamma={gamma} is outside (0, 1)")
    if batch < 2 or most < batch:
        raise ValueError(f"batch={batch}, most={most}: give at least 2 points a batch, and no fewer in all")
    if directions is not None:
        wrong = directions.ndim != 2 or len(directions) != len(centre) or not directions.shape[1]
        if wrong or bool(((directions.T @ directions).diagonal() - 1).abs().max() > 1e-4):
            raise ValueError(f"directions have shape {tuple(directions.shape)}: give orthonormal columns of length "
                             f"{len(centre)}")
