"""A library of functions with known derivatives, sampled in windows: what a differential operator learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
KINDS = ("polynomial", "trigonometric", "exponential", "product", "sigmoid")


class Windows(NamedTuple):
    """Samples of functions, a row each.

    Attributes:
        values: with noise.
        times: increasing.
        slopes: derivatives without noise.
    """

    values: Tensor
    times: Tensor
    slopes: Tensor


@dataclass(frozen=True, slots=True)
class Library:
    """Random functions of u in [-1, 1] at random times, with random noise.

    A fifth of the windows each: polynomials to degree 5; sums of two waves; exponentials; waves times exponentials or
    waves; steps as sharp as an interval. Half of the grids are uniform, half have intervals that vary.

    Args:
        length: times of a window.
        waves: most periods in a window.
        noise: least and largest standard deviation of the noise, relative to that of the window, evenly in its
            logarithm.
        clean: fraction of windows without noise.

    Raises:
        ValueError: a length below 4, or numbers out of range.
    """

    length: int = 25
    waves: float = 3.0
    noise: tuple[float, float] = (1e-3, 1.0)
    clean: float = 0.2

    def __post_init__(self) -> None:
        if self.length < 4 or not self.waves > 0 or not 0 < self.noise[0] <= self.noise[1] or not 0 <= self.clean <= 1:
            raise ValueError(f"{self}: give a length of at least 4, positive waves, two noise levels in order, and a "
                             "fraction")

    def sample(self, count: int, seed: int) -> Windows:
        """Draw windows; the same seed gives the same ones."""
        generator = torch.Generator().manual_seed(seed)
        times = self.times(count, generator)
        u = 2 * (times - times[:, :1]) / (times[:, -1:] - times[:, :1]) - 1
        function = self.functions(count, generator)
        values, slopes = torch.func.jvp(function, (u,), (torch.ones_like(u),))[:2]
        slopes = slopes * 2 / (times[:, -1:] - times[:, :1])
        low, high = (torch.tensor(level).log() for level in self.noise)
        level = torch.exp(low + (high - low) * _uniform(generator, count, 1))
        level = torch.where(_uniform(generator, count, 1) < self.clean, 0.0, level)
        noise = torch.randn(count, self.length, generator=generator, dtype=torch.float64)
        return Windows(values + level * values.std(1, keepdim=True) * noise, times, slopes)

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Grids from 0, of mean interval 1."""
        spread = 0.6 * _uniform(generator, count, 1) * (_uniform(generator, count, 1) < 0.5)
        gaps = torch.exp(spread * torch.randn(count, self.length - 1, generator=generator, dtype=torch.float64))
        gaps = gaps / gaps.mean(1, keepdim=True)
        return torch.nn.functional.pad(gaps.cumsum(1), (1, 0))

    def functions(self, count: int, generator: torch.Generator) -> Function:
        """A function a row, of each kind in turn."""
        makers = (_polynomials, _waves, _exponentials, _products, _sigmoids)
        made = [maker(count, generator, self) for maker in makers]
        kind = (torch.arange(count) % len(made)).unsqueeze(1)

        def function(u: Tensor) -> Tensor:
            values = torch.stack([one(u) for one in made])
            return values.gather(0, kind.expand_as(u).unsqueeze(0)).squeeze(0)

        return function


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def _polynomials(count: int, generator: torch.Generator, library: Library) -> Function:
    coefficients = torch.randn(count, 6, generator=generator, dtype=torch.float64)

    def function(u: Tensor) -> Tensor:
        value = torch.zeros_like(u)
        for k in reversed(range(6)):
            value = value * u + coefficients[:, k:k + 1]
        return value

    return function


def _waves(count: int, generator: torch.Generator, library: Library) -> Function:
    rates = torch.pi * library.waves * _uniform(generator, count, 2)
    phases, sizes = 2 * torch.pi * _uniform(generator, count, 2), torch.randn(
        count, 2, generator=generator, dtype=torch.float64)

    def function(u: Tensor) -> Tensor:
        return sum((sizes[:, k:k + 1] * torch.sin(rates[:, k:k + 1] * u + phases[:, k:k + 1]) for k in range(2)),
                   torch.zeros_like(u))

    return function


def _exponentials(count: int, generator: torch.Generator, library: Library) -> Function:
    rate = 8 * _uniform(generator, count, 1) - 4
    return lambda u: torch.exp(rate * u)


def _products(count: int, generator: torch.Generator, library: Library) -> Function:
    wave, other = _waves(count, generator, library), _waves(count, generator, library)
    rate, damped = 4 * _uniform(generator, count, 1) - 2, _uniform(generator, count, 1) < 0.5
    return lambda u: wave(u) * torch.where(damped, torch.exp(rate * u), other(u))


def _sigmoids(count: int, generator: torch.Generator, library: Library) -> Function:
    place = 2.4 * _uniform(generator, count, 1) - 1.2
    width = 2 / (library.length - 1) * (library.length / 2) ** _uniform(generator, count, 1)
    drift = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    return lambda u: torch.tanh((u - place) / width) + 0.5 * drift * u
