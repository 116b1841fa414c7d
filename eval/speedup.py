"""How many times fewer evaluations one sampler needs than another for equal quality."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


def evaluations_for(nfes: Sequence[int], values: Sequence[float], level: float) -> float:
    """Find where a falling curve first comes down to a level, by straight lines in log–log.

    Args:
        nfes: numbers of evaluations, increasing, at least 1.
        values: distances or errors there, positive.
        level: the value to reach, positive.

    Returns:
        The number of evaluations; ``nfes[0]`` if the curve starts at or below the level (fewer may
        do), infinity if it never gets there.

    Raises:
        ValueError: numbers of evaluations that do not increase, or values that are not positive.
    """
    if len(nfes) != len(values) or len(nfes) == 0 or nfes[0] < 1 or any(b <= a for a, b in pairwise(nfes)):
        raise ValueError(f"nfes={list(nfes)}: give one increasing number of evaluations for each of the "
                         f"{len(values)} values")
    if not (level > 0 and all(v > 0 and math.isfinite(v) for v in values)):
        raise ValueError(f"values={list(values)}, level={level}: a logarithm takes positive, finite numbers")
    if values[0] <= level:
        return float(nfes[0])
    for (n, v), (m, w) in pairwise(zip(nfes, values, strict=True)):
        if w <= level:
            part = math.log(v / level) / math.log(v / w)
            return n * (m / n) ** part
    return math.inf


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], Sequence[float]], count: int, *, draws: int = 100, seed: int = 0
) -> NDArray[np.float64]:
    """Let statistics of samples vary as they would over new sets of as many samples.

    A statistic that is biased at ``count`` samples, as a Fréchet distance is, comes out with that bias
    twice: take the spread of its draws, or a ratio in which the bias cancels, not their mean.

    Args:
        statistic: maps indices of samples, drawn with replacement, to numbers (infinity allowed). Several
            quantities of the *same* samples belong in one call, so that what they share cancels.
        count: number of samples.
        draws: how many times to draw.
        seed: seed of the draws.

    Returns:
        The numbers of each draw, of shape (draws, numbers).

    Source: Efron 1979, doi:10.1214/aos/1176344552.
    """
    generator = np.random.default_rng(seed)
    return np.array([statistic(generator.integers(count, size=count)) for _ in range(draws)], dtype=np.float64)


def interval(draws: NDArray[np.float64], coverage: float = 0.9) -> tuple[float, float]:
    """The bounds between which a part of the draws of one number lies, the same part beyond either."""
    tails = ((1 - coverage) / 2, (1 + coverage) / 2)
    low, high = np.quantile(draws, tails, method="nearest")  # no mean of a number and infinity
    return float(low), float(high)
