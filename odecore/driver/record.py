"""What is kept of accepted steps on the way: states at given times, dense output, and who watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Inexact
from torch import Tensor

from odecore.driver.batch import rows_of
from odecore.driver.dense import DenseSolution, evaluate, fraction
from odecore.driver.fetch import refuse_mapped
from odecore.stepper import Dense, column, send


@dataclass(slots=True)
class Taken:
    """A step that some samples have accepted; tensors have one row for each of them.

    Attributes:
        rows: numbers of the samples in the batch, on the host.
        t0: start of the step, float64, on the host.
        t1: its end.
    """

    rows: Tensor
    t0: Tensor
    t1: Tensor
    _y0: Tensor
    _y1: Tensor
    _kept: Tensor | None
    _make: Callable[[], Dense]
    _coefficients: Tensor | None = None
    nfe: int = 0

    @classmethod
    def of(
        cls, rows: Tensor, good: Tensor, t0: Tensor, t1: Tensor, y0: Tensor, y1: Tensor, make: Callable[[], Dense]
    ) -> Taken:
        """The part of an attempt, which has one row for each of the samples ``rows``, that was good."""
        if bool(good.all()):
            return cls(rows, t0, t1, y0, y1, None, make)
        return cls(rows[good], t0[good], t1[good], y0, y1, good.nonzero().squeeze(1), make)

    @property
    def y0(self) -> Tensor:
        """States at t0."""
        return self._of_samples(self._y0)

    @property
    def y1(self) -> Tensor:
        """States at t1."""
        return self._of_samples(self._y1)

    @property
    def coefficients(self) -> Inexact[Tensor, "rows terms ..."]:
        """The polynomial of the step in ``θ = (t - t0) / (t1 - t0)``; made when first asked for."""
        if self._coefficients is None:
            dense = self._make()
            self.nfe += dense.nfe
            self._coefficients = self._of_samples(dense.coefficients)
        return self._coefficients

    def at(self, times: Float[Tensor, " rows"], positions: Tensor | None = None) -> Inexact[Tensor, "rows ..."]:
        """Evaluate the step at one time for each row, or for each of the rows at ``positions``."""
        coefficients, t0, t1 = self.coefficients, self.t0, self.t1
        if positions is not None:
            coefficients, t0, t1 = rows_of((coefficients,), positions)[0], t0[positions], t1[positions]
        return evaluate(coefficients, fraction(times, t0, t1))

    def _of_samples(self, tensor: Tensor) -> Tensor:
        return tensor if self._kept is None else tensor.index_select(0, send(self._kept, tensor.device))


class StatesAt:
    """Collects the states at given times as the steps pass over them.

    Args:
        ts: times of shape (samples, times), monotone in the direction of each sample.
        t0: start of each sample.
        t1: its end.
        y0: its state at the start.

    Raises:
        ValueError: times of another shape, outside of the interval, not in the order of integration, or mapped.
    """

    def __init__(self, ts: Tensor, t0: Tensor, t1: Tensor, y0: Tensor) -> None:
        refuse_mapped("ts", ts)
        samples = len(t0)
        given = torch.as_tensor(ts, dtype=torch.float64).cpu()
        if given.ndim not in (1, 2) or given.shape[-1] == 0 or (given.ndim == 2 and len(given) != samples):
            raise ValueError(f"ts has shape {tuple(given.shape)}: give one time or more, alone or in {samples} rows")
        self.ts = given.expand(samples, -1)
        self.forward = torch.where(t1 < t0, -1.0, 1.0)
        clock = (self.forward.unsqueeze(1) * self.ts).detach()
        if not bool(((clock >= (self.forward * t0).unsqueeze(1)) & (clock <= (self.forward * t1).unsqueeze(1))).all()):
            raise ValueError(f"ts={given.tolist()}: all times must lie between t0 and t1 of their sample")
        if bool((clock.diff(dim=1) < 0).any()):
            raise ValueError(f"ts={given.tolist()}: sort the times in the direction of integration")
        # Infinity behind the last time, so that there is always a next one.
        self.clock = torch.cat([clock, torch.full((samples, 1), torch.inf)], 1)
        self.done = torch.zeros(samples, dtype=torch.long)
        self.places = torch.full(self.ts.shape, -1)  # of each time, in the order in which values come
        self.count = 0
        self.values: list[Tensor] = []
        # A time that wants a gradient gets it from a polynomial, so it waits for a step if there will be one.
        self.through_polynomials = self.ts.requires_grad
        rows = torch.arange(samples) if not self.through_polynomials else (t0 == t1).nonzero().squeeze(1)
        at, columns = self.due(rows, t0[rows])
        self.values.append(rows_of((y0,), rows[at])[0])

    def add(self, taken: Taken, reached: Tensor, y: Tensor) -> None:
        """Record the times up to ``reached``, where the samples have states y: the end of the step, or before it."""
        at, columns = self.due(taken.rows, reached)
        if len(at):
            self.values.append(self.read(taken, at, columns, reached, y))

    def read(self, taken: Taken, at: Tensor, columns: Tensor, reached: Tensor, y: Tensor) -> Tensor:
        """The states at times that are due, by position in the step and column of ``ts``."""
        times = self.ts[taken.rows[at], columns]
        between = (times != reached[at]) | self.through_polynomials
        if not bool(between.any()):
            return rows_of((y,), at)[0]
        inside = taken.at(times, at)
        return inside if bool(between.all()) else torch.where(column(between, inside), inside, rows_of((y,), at)[0])

    def result(self, dtype: torch.dtype) -> Inexact[Tensor, "samples times ..."]:
        """The states at all times; nan where a sample did not get."""
        missing = self.places < 0
        if bool(missing.any()):
            self.values.append(self.values[0].new_full((1, *self.values[0].shape[1:]), torch.nan))
            self.places[missing] = self.count
        everything = torch.cat(self.values)
        chosen = everything.index_select(0, send(self.places.reshape(-1), everything.device))
        return chosen.reshape(*self.ts.shape, *everything.shape[1:]).to(dtype)

    def due(self, rows: Tensor, reached: Tensor) -> tuple[Tensor, Tensor]:
        """Give places to the times up to ``reached`` that have none yet: positions in ``rows``, and columns of ``ts``.

        Their states are expected next among the values.
        """
        clock = self.forward[rows] * reached
        first = self.done[rows]
        some = (self.clock[rows, first] <= clock).nonzero().squeeze(1)
        if len(some) == 0:
            return some, some
        last = torch.searchsorted(self.clock[rows[some]], clock[some].unsqueeze(1), right=True).squeeze(1)
        self.done[rows[some]] = last
        counts = last - first[some]
        before = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        columns = torch.arange(len(before)) - before + torch.repeat_interleave(first[some], counts)
        at = torch.repeat_interleave(some, counts)
        self.places[rows[at], columns] = torch.arange(self.count, self.count + len(at))
        self.count += len(at)
        return at, columns


class Pieces:
    """Collects the polynomials of all steps for a :class:`~odecore.driver.dense.DenseSolution`."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []
        self.starts: list[Tensor] = []
        self.ends: list[Tensor] = []
        self.coefficients: list[Tensor] = []

    def add(self, rows: Tensor, t0: Tensor, t1: Tensor, coefficients: Tensor) -> None:
        """Record one piece for each of the samples ``rows``."""
        self.rows.append(rows)
        self.starts.append(t0)
        self.ends.append(t1)
        self.coefficients.append(coefficients)

    def result(self, t0: Tensor, t: Tensor, y: Tensor, dtype: torch.dtype) -> DenseSolution:
        """Put them in order; the state y at the end t of each sample is a last piece without length."""
        samples = len(t0)
        self.add(torch.arange(samples), t, t, y.unsqueeze(1))
        rows, starts, ends = torch.cat(self.rows), torch.cat(self.starts), torch.cat(self.ends)
        order = torch.sort(rows, stable=True).indices  # the steps of each sample, still one after the other
        counts = torch.bincount(rows, minlength=samples)
        width = int(counts.max()) if samples else 1
        filled = torch.arange(width) < counts.unsqueeze(1)

        def table(values: Tensor, padding: Tensor) -> Tensor:
            return padding.unsqueeze(1).repeat(1, width).masked_scatter(filled, values[order])

        terms = max(c.shape[1] for c in self.coefficients)
        coefficients = torch.cat([_padded(c, terms) for c in self.coefficients])
        last = torch.arange(len(rows) - samples, len(rows))
        return DenseSolution(t0, t, table(starts, t), table(ends, t), table(torch.arange(len(rows)), last),
                             coefficients, dtype)


def _padded(coefficients: Tensor, terms: int) -> Tensor:
    """Polynomials of a degree written as polynomials of a higher one."""
    missing = terms - coefficients.shape[1]
    if missing == 0:
        return coefficients
    return torch.cat([coefficients, coefficients.new_zeros(len(coefficients), missing, *coefficients.shape[2:])], 1)


class Stop(NamedTuple):
    """Where samples end within a step, one row for each that accepted it.

    Attributes:
        stopped: which of them stop.
        t: time that each reached.
        y: its state there.
    """

    stopped: Tensor
    t: Tensor
    y: Tensor


Watch = Callable[[Taken], Tensor | None]
"""Looks at an accepted step; may return for each of its rows the time in it at which the sample stops, nan for none."""


@dataclass(frozen=True, slots=True)
class Recorder:
    """All that follows the accepted steps.

    Args:
        states: collects states at given times.
        pieces: collects polynomials.
        watch: may stop samples.
    """

    states: StatesAt | None
    pieces: Pieces | None
    watch: Watch | None

    def add(self, taken: Taken) -> Stop | None:
        """Show a step to all; returns where samples stop, if any do."""
        reached, y, stop = taken.t1, taken.y1, None
        ends = None if self.watch is None else self.watch(taken)
        if ends is not None and not bool(torch.isnan(ends).all()):
            stopped = ~torch.isnan(ends)
            reached = torch.where(stopped, ends, reached)
            y = torch.where(column(stopped, y), taken.at(reached), y)
            stop = Stop(stopped, reached, y)
        if self.states is not None:
            self.states.add(taken, reached.detach(), y)
        if self.pieces is not None:
            self.pieces.add(taken.rows, taken.t0, taken.t1, taken.coefficients)
        return stop
