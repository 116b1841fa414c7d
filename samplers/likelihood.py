"""Log-likelihoods and bits per dimension of a model, through its probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from odecore.divergence import Divergence, estimated_divergence, exact_divergence
from odecore.driver.integrate import integrate
from odecore.driver.solve import solve, summed_tolerance
from odecore.explicit.embedded import DORMAND_PRINCE
from odecore.stepper import Stepper, column
from samplers.noise import SampleNoise
from scoremodels.model import ScoreModel

LARGEST = 255
"""Largest byte; with 0 it stands for the ends of a model's range."""


@dataclass(frozen=True, slots=True)
class Exact:
    """The whole trace of the Jacobian, at D vector–Jacobian products an evaluation.

    Args:
        chunk: how many of them at once.
    """

    chunk: int = 64


@dataclass(frozen=True, slots=True)
class Hutchinson:
    """An unbiased estimate of the trace, with probes that stay the same through the solve.

    Args:
        probes: for each sample, one vector–Jacobian product an evaluation each.
        distribution: "rademacher" (signs; of the least variance) or "gaussian".
        seed: of the first sample's probes; sample i has seed + i, whatever its batch.

    Raises:
        ValueError: no probes, or an unknown distribution.
    """

    probes: int = 1
    distribution: str = "rademacher"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(f"probes={self.probes}: give at least 1")
        if self.distribution not in ("rademacher", "gaussian"):
            raise ValueError(f"distribution={self.distribution!r}: choose 'rademacher' or 'gaussian'")

    def draw(self, x: Tensor) -> Float[Tensor, "samples probes ..."]:
        """The probes of each sample."""
        seeds = range(self.seed, self.seed + len(x))
        draws = SampleNoise(seeds, (self.probes, *x.shape[1:]), device=x.device, dtype=x.dtype)()
        return torch.where(draws < 0, -1.0, 1.0).to(x.dtype) if self.distribution == "rademacher" else draws


class LogLikelihood(NamedTuple):
    """What :func:`log_likelihood` returns.

    Attributes:
        log_prob: ``log p_t(x)`` in nats, one a sample, float64.
        x_T: where each sample comes from in the noise.
        nfe: evaluations of the network for the batch, each with its vector–Jacobian products.
    """

    log_prob: Tensor
    x_T: Tensor  # noqa: N815 (the field's name for the start noise)
    nfe: int


@torch.no_grad()
def log_likelihood(
    model: ScoreModel,
    x: Float[Tensor, "samples ..."],
    *,
    condition: Int[Tensor, " samples"] | None = None,
    trace: Exact | Hutchinson | None = None,
    t: float | None = None,
    times: Sequence[float] | None = None,
    stepper: Stepper = DORMAND_PRINCE,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    prior: Callable[[Tensor], Tensor] | None = None,
) -> LogLikelihood:
    """Evaluate ``log p_t(x)``, the density of the model's probability flow at the time t of least noise.

    With ``(α, σ) = r (cos φ, sin φ)`` and ``u = x / r`` the flow of every schedule is that of one angle, with both
    ends finite whether the schedule starts at pure noise or ends without any::

        du/dφ = cos φ ε̂ - sin φ x̂0 =: v(u, φ)        d log p(u)/dφ = -tr ∂v/∂u

    so that ``log p_t(x) = log p_T(x_T) + D log(r_T / r_t) + ∫ tr ∂v/∂u dφ``.

    Args:
        model: a model, or one that is guided; its density is then that of the guided flow.
        x: states at the time t; float64 for accurate results, if the network takes it.
        condition: class labels, one a sample.
        trace: how the divergence is computed; None for Hutchinson's estimate with one probe a sample.
        t: where x lives; None for the least noisy time that the network knows.
        times: network times from t to the noise, in order, for one step of the stepper between each two; None
            lets each sample choose its steps.
        stepper: the method.
        rtol: relative tolerance, of u and of the log-density per dimension alike.
        atol: absolute tolerance likewise.
        prior: log-density of states at the noisiest time; None for centred normal noise with the scale that
            sampling starts with, as sampling assumes.

    Returns:
        Log-densities, noises, evaluations.

    Raises:
        ValueError: an argument out of range or of the wrong shape, before any evaluation.
        SolveError: a sample met a value that is not finite, or more steps than the driver takes.

    Cost: with tolerances some tens to hundreds of evaluations, each with ``trace.probes`` or D vector–Jacobian
        products. Memory of one evaluation and its graph.

    Source: Chen et al. 2018, arXiv:1806.07366; Song et al. 2021, arXiv:2011.13456, section 4.3 and appendix D.2.
    """
    schedule = model.schedule
    if tuple(x.shape[1:]) != model.shape or not x.is_floating_point() or not len(x):
        raise ValueError(f"x has shape {tuple(x.shape)} and dtype {x.dtype}: give floating-point states of shape "
                         f"(samples, {', '.join(map(str, model.shape))})")
    nodes = np.asarray([schedule.t_min if t is None else t, schedule.t_max] if times is None else times, np.float64)
    if nodes.ndim != 1 or len(nodes) < 2 or not (np.diff(nodes) > 0).all() or not np.isfinite(nodes).all():
        raise ValueError(f"times={times}, t={t}: give at least two network times from data to noise, in order, or a t "
                         f"below {schedule.t_max}")
    if times is not None and t is not None and t != nodes[0]:
        raise ValueError(f"t={t}, but times start at {nodes[0]}: leave t out")
    angles, scales = _polar(model, nodes)
    if angles[0] == 0.0:
        raise ValueError(f"t={nodes[0]}: the density of data without noise need not exist; give a time from "
                         f"{schedule.t_min}")
    trace = Hutchinson() if trace is None else trace
    field = _Flow(model, trace, condition is not None)
    args = (*([] if condition is None else [condition]), *([trace.draw(x)] if isinstance(trace, Hutchinson) else []))
    start = torch.cat([x.flatten(1) / scales[0], x.new_zeros(len(x), 1)], 1)
    if times is None:
        solution = solve(stepper, field, start, float(angles[0]), float(angles[-1]), rtol=rtol, atol=atol, args=args,
                         norm=_larger_of_both)
    else:
        solution = integrate(stepper, field, start, angles.tolist(), args=args)
    size = x[0].numel()
    x_T = (solution.y[:, :-1] * scales[-1]).reshape(x.shape)  # noqa: N806
    of_noise = _normal(x_T, float(schedule.prior_scale(nodes[-1]))) if prior is None else prior(x_T)
    stretched = size * (solution.y[:, -1].double() + math.log(scales[-1] / scales[0]))
    return LogLikelihood(of_noise.double() + stretched, x_T, solution.nfe)


class Bits(NamedTuple):
    """What :func:`bits_per_dim` returns.

    Attributes:
        values: bits per dimension of each image, float64.
        nfe: evaluations of the network for the slowest batch.
    """

    values: Tensor
    nfe: int

    @property
    def mean(self) -> float:
        """Mean over the images."""
        return self.values.mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error of the mean: spread of images, dequantisation and trace estimate together."""
        return (self.values.std() / math.sqrt(len(self.values))).item() if len(self.values) > 1 else math.inf


def bits_per_dim(
    model: ScoreModel,
    images: UInt8[Tensor, "samples ..."],
    *,
    condition: Int[Tensor, " samples"] | None = None,
    trace: Exact | Hutchinson | None = None,
    seed: int = 0,
    batch: int = 32,
    t: float | None = None,
    times: Sequence[float] | None = None,
    stepper: Stepper = DORMAND_PRINCE,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    progress: Callable[[int], None] | None = None,
) -> Bits:
    """Bound the bits per dimension that the model needs for images of bytes.

    Byte b stands for the value ``l_b = low + w b`` with ``w = (high - low) / 255``, as in training, and is spread
    evenly over the values that are nearest to it (uniform dequantisation), which gives a bound above the true
    value, on average over u::

        x = l_b + w u, u in [-1/2, 1/2]        bits = -log2 p_t(x) / D - log2 w

    For data in [-1, 1] the offset ``-log2 w`` is 6.9944.

    Args:
        model: as for :func:`log_likelihood`.
        images: bytes, of shape (samples, …) as the model makes them.
        condition: class labels, one an image.
        trace: as for :func:`log_likelihood`.
        seed: of the noise of the first image; image i has seed + i, and so have its probes.
        batch: images at once.
        t: as for :func:`log_likelihood`.
        times: as for :func:`log_likelihood`.
        stepper: the method.
        rtol: relative tolerance.
        atol: absolute tolerance.
        progress: called with the number of images done after each batch.

    Returns:
        Bits per dimension of each image; mean and standard error.

    Raises:
        ValueError: as :func:`log_likelihood`; images that are not bytes.

    Cost: as :func:`log_likelihood`, for each batch.

    Source: Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images have dtype {images.dtype}: give bytes, from 0 to 255")
    if batch < 1:
        raise ValueError(f"batch={batch}: give at least 1 image")
    parts, spent = [], 0
    for k in range(0, len(images), batch):
        some = images[k:k + batch].to(model.device)
        labels = None if condition is None else condition[k:k + batch].to(model.device)
        here = _seeded(Hutchinson() if trace is None else trace, k)
        x, offset = dequantised(some, model.value_range, range(seed + k, seed + k + len(some)))
        result = log_likelihood(model, x, condition=labels, trace=here, t=t, times=times, stepper=stepper, rtol=rtol,
                                atol=atol)
        parts.append(offset - result.log_prob.cpu() / (math.log(2) * some[0].numel()))
        spent = max(spent, result.nfe)
        if progress is not None:
            progress(len(some))
    return Bits(torch.cat(parts), spent)


@dataclass(frozen=True, slots=True)
class _Flow:
    """The flow of u and of the mean log-density, ``(du/dφ, tr ∂v/∂u / D)``, of flat states."""

    model: ScoreModel
    trace: Exact | Hutchinson
    labelled: bool

    def __call__(self, y: Tensor, angles: Tensor, *args: Tensor) -> Tensor:
        model, size = self.model, y.shape[1] - 1
        condition = args[0] if self.labelled else None
        schedule = model.schedule
        # Looking for a first step may lead beyond the ends.
        within = np.clip(angles.detach().cpu().numpy(), 0.0, np.pi / 2)
        times = schedule.time_of_ratio(np.tan(within)).clip(schedule.t_clean, schedule.t_max)
        pairs = [schedule.conversion(model.prediction, "v_prediction", time) for time in times.tolist()]
        scale = column(torch.from_numpy(_polar(model, times)[1]), y)
        a, b = (column(weight, y) for weight in torch.tensor(pairs, dtype=torch.float64).unbind(1))
        u, on_device = y[:, :-1], torch.from_numpy(times).to(y.device)
        raw, trace = self._divergence(lambda x: model(x, on_device, condition),
                                      (scale * u).reshape(-1, *model.shape), args)
        velocity = a * u + b / scale * raw.flatten(1)
        return torch.cat([velocity, a + b * trace.unsqueeze(1) / size], 1)

    def _divergence(self, network: Callable[[Tensor], Tensor], x: Tensor, args: tuple[Tensor, ...]) -> Divergence:
        if isinstance(self.trace, Exact):
            return exact_divergence(network, x, chunk=self.trace.chunk)
        return estimated_divergence(network, x, args[-1])


def _polar(model: ScoreModel, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Angle and radius of (α, σ)."""
    alpha, sigma = model.schedule.alpha(times), model.schedule.sigma(times)
    return np.arctan2(sigma, alpha), np.hypot(alpha, sigma)


def _larger_of_both(error: Tensor, magnitude: Tensor, rtol: float, atol: float) -> Tensor:
    """The error of the state and that of the log-density, which must not drown among the pixels."""
    parts = [summed_tolerance(error[:, k], magnitude[:, k], rtol, atol) for k in (slice(None, -1), slice(-1, None))]
    return torch.maximum(*parts)


def _normal(x: Tensor, scale: float) -> Tensor:
    """Log-density of centred normal noise."""
    z = x.double().flatten(1) / scale
    return -(z.square().sum(1) + z.shape[1] * math.log(2 * math.pi * scale**2)) / 2


def _seeded(trace: Exact | Hutchinson, first: int) -> Exact | Hutchinson:
    """The probes of the images from the given one on."""
    return trace if isinstance(trace, Exact) else Hutchinson(trace.probes, trace.distribution, trace.seed + first)


def dequantised(
    images: UInt8[Tensor, "samples ..."], value_range: tuple[float, float], seeds: Sequence[int]
) -> tuple[Tensor, float]:
    """Spread bytes evenly over the values that are nearest to them.

    Args:
        images: bytes.
        value_range: values of the bytes 0 and 255.
        seeds: of the noise, one an image.

    Returns:
        Values in float32, and the offset ``-log2 w`` from the bits of their density to those of bytes.
    """
    low, high = value_range
    width = (high - low) / LARGEST
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    u = torch.stack([torch.rand(images.shape[1:], generator=generator) for generator in generators])
    return low + width * (images + u.to(images.device) - 0.5), -math.log2(width)
