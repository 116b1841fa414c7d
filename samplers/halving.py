"""Successive halving: ever fewer trajectories meet ever more noises, and the nearest to the solution wins."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from samplers.lockstep import Walk, run_together
from samplers.noise import SampleNoise
from scoremodels.model import ScoreModel

KEPT, LEAST = 4, 8
"""One in so many entrants meets the next round, and at least so many."""

Progress = Callable[[str, int, int], None]
"""Called with the name of the round, the number of entrants that are done with it, and of all."""


@dataclass(slots=True)
class Entrant:
    """A way from noise to data, and how it fared.

    Args:
        name: what it is called: solver and grid.
        start: makes its walk from standard normal noise.
        total: sum of its mean square distances from the solution; inf once it diverged.
        count: over so many noises.
    """

    name: tuple[str, ...]
    start: Callable[[Tensor], Walk]
    total: float = 0.0
    count: int = 0

    @property
    def rms(self) -> float:
        """RMS distance so far."""
        return math.sqrt(self.total / self.count)


def ranked(entrants: Sequence[Entrant]) -> list[Entrant]:
    """Sort by distance."""
    return sorted(entrants, key=lambda entrant: entrant.rms)


@dataclass(slots=True)
class Trial:
    """Runs entrants of one number of evaluations from the noises that they have not met yet.

    Args:
        model: the network.
        seed: seed of the first noise.
        solution: the end points to be reached, in float64 on the host.
        labels: one label a noise, or None.
        batch: how many states to evaluate at once.
        progress: see ``Progress``.
        states: trajectories run so far.
    """

    model: ScoreModel
    seed: int
    solution: Tensor
    labels: Tensor | None = None
    batch: int = 256
    progress: Progress | None = None
    states: int = 0

    def run(self, entrants: Sequence[Entrant], count: int, name: str) -> None:
        """Let entrants, all of which have met as many noises, meet the first ``count``."""
        if not entrants or entrants[0].count >= count:
            return
        new = slice(entrants[0].count, count)
        together = max(1, self.batch // (count - new.start))
        for done in range(0, len(entrants), together):
            group = entrants[done:done + together]
            for entrant, error in zip(group, self.errors([e.start for e in group], new), strict=True):
                squares = error.square().flatten(1).mean(1).sum().item()
                entrant.total += squares if math.isfinite(squares) else math.inf
                entrant.count = count
            if self.progress is not None:
                self.progress(name, min(done + together, len(entrants)), len(entrants))

    def errors(self, starts: Sequence[Callable[[Tensor], Walk]], noises: slice) -> list[Tensor]:
        """End points less the solution, from some of the noises, in float64 on the host; one tensor a walk."""
        first, last, _ = noises.indices(len(self.solution))
        noise = SampleNoise(range(self.seed + first, self.seed + last), self.model.shape, device=self.model.device)()
        labels = None if self.labels is None else self.labels[noises]
        ends = run_together(self.model, [start(noise) for start in starts], labels, states=last - first,
                            batch=self.batch)
        self.states += len(starts) * (last - first)
        return [end.cpu().double() - self.solution[noises] for end in ends]

    def halve(self, entrants: Sequence[Entrant]) -> list[Entrant]:
        """Go on from the first round until the last ``LEAST`` have met all noises; return these, the best first.

        Each round has twice the noises of the one before.

        Source: successive halving, Jamieson & Talwalkar 2016, arXiv:1502.07943; here three quarters leave a round.
        """
        left, count, num = list(entrants), entrants[0].count, len(self.solution)
        while count < num:
            left = ranked(left)[:max(LEAST, math.ceil(len(left) / KEPT))]
            count = min(2 * count, num)
            self.run(left, count, f"{count} noises")
        return ranked(left)
