"""Brownian motion as a function of its seed: any time, any order, no memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_LOW = 0xFFFFFFFF


class BrownianIncrement(NamedTuple):
    """What a path does on an interval of length h.

    Attributes:
        w: ``W_t - W_s``, normal with variance h.
        levy: the space-time Lévy area ``H = (1/h) ∫_s^t (W_r - W_s - (r - s)/h (W_t - W_s)) dr``,
            normal with variance h/12 and independent of w.
    """

    w: Tensor
    levy: Tensor


@dataclass(frozen=True, slots=True)
class BrownianMotion:
    """Independent paths W on [start, end] with W(start) = 0, one family for each seed.

    A virtual tree: the path's increment and Lévy area on an interval give those on its two
    halves, with normal numbers that a counter-based generator makes from the seed, the node of the
    tree and the element's index. A value thus depends on nothing else: not on the batch, not on
    what was asked before. Between the ends of the smallest intervals the path is continued by its
    mean, a parabola with the right increment and area.

    Args:
        seeds: one for each sample, from -2^63 to 2^63 - 1.
        shape: shape of one sample's path, at most 2^32 numbers.
        start: first time.
        end: last time.
        levels: L: the tree's smallest intervals are 2^-L of the whole; 1 to 48. Steps must be
            far longer for their increments to be normal.
        stream: tells apart several motions of the same seeds, 0 to 2^32 - 1.
        dtype: of the values; float64 inside.
        device: where the values are made; the integers behind them are the same everywhere.

    Raises:
        ValueError: an argument out of range.

    Cost: L hashes per number, made at once: some 150 operations on L tensors of the result's size.

    Source: virtual Brownian tree: Jelinčič, Foster & Kidger 2024, arXiv:2405.06464; halves of
        increment and area: Foster, Lyons & Oberhauser 2020, doi:10.1137/18M1222934; generator:
        Salmon et al. 2011, Philox4x32-10, doi:10.1145/2063384.2063405.
    """

    seeds: Sequence[int]
    shape: tuple[int, ...]
    start: float = 0.0
    end: float = 1.0
    levels: int = 24
    stream: int = 0
    dtype: torch.dtype = torch.float64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", tuple(int(seed) for seed in self.seeds))
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "device", torch.device(self.device))
        if not self.seeds or not all(-(2**63) <= seed < 2**63 for seed in self.seeds):
            raise ValueError(f"seeds={self.seeds}: give one or more, each from -2^63 to 2^63 - 1")
        if math.prod(self.shape) < 1 or math.prod(self.shape) > 2**32:
            raise ValueError(f"shape={self.shape}: give a shape of 1 to 2^32 numbers")
        if not (math.isfinite(self.start) and math.isfinite(self.end) and self.start < self.end):
            raise ValueError(f"start={self.start}, end={self.end}: give finite times, start before end")
        if not 1 <= self.levels <= 48:
            raise ValueError(f"levels={self.levels}: give 1 to 48")
        if not 0 <= self.stream < 2**32:
            raise ValueError(f"stream={self.stream}: give 0 to 2^32 - 1")

    def __call__(self, t: float | Float[Tensor, " samples"]) -> Float[Tensor, "samples ..."]:
        """Evaluate ``W(t)``, at one time or one a sample."""
        return self._evaluate(t)[0].to(self.dtype)

    def increment(
        self, s: float | Float[Tensor, " samples"], t: float | Float[Tensor, " samples"]
    ) -> BrownianIncrement:
        """Increment and space-time Lévy area from s to t; t < s runs the path backwards.

        Backwards, w changes its sign and the area does not. Areas come from differences of
        integrals, so their rounding grows like the tree's length over t - s.

        Raises:
            ValueError: s = t, where the area has no meaning, or times outside the motion's.
        """
        h = self._times(t) - self._times(s)
        if bool((h == 0).any()):
            raise ValueError(f"s={s}, t={t}: give two times that differ")
        w_s, area_s = self._evaluate(s)
        w_t, area_t = self._evaluate(t)
        w = w_t - w_s
        mean = (area_t - area_s) / self._column(h) - w_s
        return BrownianIncrement(w.to(self.dtype), (mean - 0.5 * w).to(self.dtype))

    def _times(self, t: float | Tensor) -> Tensor:
        times = torch.as_tensor(t, dtype=torch.float64).detach().cpu()
        if times.ndim > 1 or (times.ndim == 1 and len(times) != len(self.seeds)):
            raise ValueError(f"t has shape {tuple(times.shape)}: give one time, or {len(self.seeds)} of them")
        rounding = 1e-12 * (self.end - self.start)
        if not bool(((times >= self.start - rounding) & (times <= self.end + rounding)).all()):
            raise ValueError(f"t={times.tolist()} lies outside [{self.start}, {self.end}]: make the motion longer")
        return times.clamp(self.start, self.end)

    def _column(self, host: Tensor) -> Tensor:
        """A host number for each sample, or for all, as a factor of the values."""
        return host.to(self.device).reshape(-1, *[1] * len(self.shape))

    def _evaluate(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """``W(t)`` and ``∫_start^t W dr``."""
        times = self._times(t).reshape(-1)
        cells = 2**self.levels
        position = (times - self.start) / (self.end - self.start) * cells
        cell = position.floor().clamp(max=cells - 1)
        index = cell.long()
        # Heap numbers: node 1 is the whole interval, 2n and 2n + 1 are the halves of n; node 0 holds the root's law.
        nodes = torch.stack([torch.zeros_like(index),
                             *((index + cells) >> (self.levels - level) for level in range(self.levels))])
        first, second = self._normals(nodes)
        length = self.end - self.start
        w, levy = math.sqrt(length) * first[0], math.sqrt(length / 12) * second[0]
        left_w, left_area = torch.zeros_like(w), torch.zeros_like(w)
        for level in range(self.levels):
            z, n = math.sqrt(length / 16) * first[level + 1], math.sqrt(length / 12) * second[level + 1]
            w_left, levy_left = 0.5 * w + 1.5 * levy + z, 0.25 * levy - 0.5 * z + 0.5 * n
            w_right, levy_right = w - w_left, 0.25 * levy - 0.5 * z - 0.5 * n
            length *= 0.5
            right = self._column((index >> (self.levels - 1 - level)) & 1).bool()
            left_area = torch.where(right, left_area + length * (left_w + 0.5 * w_left + levy_left), left_area)
            left_w = torch.where(right, left_w + w_left, left_w)
            w, levy = torch.where(right, w_right, w_left), torch.where(right, levy_right, levy_left)
        r = self._column(position - cell)
        inside = left_w + r * w + 6 * r * (1 - r) * levy
        area = left_area + length * (r * left_w + 0.5 * r**2 * w + (3 * r**2 - 2 * r**3) * levy)
        return inside, area

    def _normals(self, nodes: Int64[Tensor, "depth times"]) -> tuple[Tensor, Tensor]:
        """Two standard normal numbers for each node and element, of shape (depth, samples, *shape)."""
        size, samples = math.prod(self.shape), len(self.seeds)
        nodes = nodes.to(self.device).unsqueeze(-1)
        seeds = torch.tensor(self.seeds, dtype=torch.int64, device=self.device).reshape(1, samples, 1)
        element = torch.arange(size, dtype=torch.int64, device=self.device)
        counter = (nodes & _LOW, nodes >> 32, element, torch.full_like(element, self.stream))
        words = philox(counter, (seeds & _LOW, (seeds >> 32) & _LOW))
        radius = torch.sqrt(-2.0 * torch.log(_uniform(words[0], words[1])))
        angle = 2.0 * math.pi * _uniform(words[2], words[3])
        shape = (len(nodes), samples, *self.shape)
        return (radius * torch.cos(angle)).reshape(shape), (radius * torch.sin(angle)).reshape(shape)


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hash a counter to four random 32-bit words: Philox4x32 with ten rounds.

    Args:
        counter: four int64 tensors of numbers from 0 to 2^32 - 1, of shapes that broadcast.
        key: two such tensors.

    Returns:
        Four int64 tensors of numbers from 0 to 2^32 - 1.

    Source: Salmon, Moraes, Dror & Shaw 2011, Parallel random numbers: as easy as 1, 2, 3,
        doi:10.1145/2063384.2063405.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wraps modulo 2^64, which keeps all 64 bits of the product
        c0, c1, c2, c3 = (p1 >> 32) & _LOW ^ c1 ^ k0, p1 & _LOW, (p0 >> 32) & _LOW ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def _uniform(high: Tensor, low: Tensor) -> Tensor:
    """A number strictly between 0 and 1 from the 53 leading bits of two words."""
    bits = ((high >> 5) << 26) | (low >> 6)
    # The largest would round up to 1; half a unit above the lowest keeps the logarithm finite.
    return ((bits.double() + 0.5) * 2.0**-53).clamp(max=1.0 - 2.0**-53)
