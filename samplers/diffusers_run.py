"""One run of a plan that a host drives step by step, handing states out and taking them back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from odecore.plan import Registers, Row, Weight, combine

_HALF = (torch.float16, torch.bfloat16)


class Run:
    """The registers of a run, the row it has come to, and what it last gave the host.

    A host owns the state between the steps: it may pass another sample than it was given (after
    inpainting, or rebuilt for guidance), and that sample is then the point, and the accepted state
    too where the two are one. A half-precision sample that comes back untouched is not rounded: the
    run goes on from its own float32 copy.

    Args:
        rows: rows of the plan; those before ``begin`` are not run.
        begin: the row to start at.
        depth: number of earlier predictions that any row reads.
        denoise: ``(index, point, raw) -> x0``, where the rows expect the predicted sample in place of the raw output.
        spread: ``(index, variance) -> factor`` of the noise that a row adds, where the network predicts its variance.
        to_datum: weights, for each row, of the point and of the raw output (or the predicted sample in its place) in
            what the host wants to see as ``datum``; None if it wants nothing.

    Attributes:
        index: the row that is run next.
        datum: what the last row predicted of the data, where the host wants to see it.
    """

    __slots__ = ("index", "datum", "_rows", "_depth", "_denoise", "_spread", "_to_datum", "_registers", "_returned",
                 "_version")

    def __init__(
        self, rows: tuple[Row, ...], begin: int, depth: int,
        denoise: Callable[[int, Tensor, Tensor], Tensor] | None = None,
        spread: Callable[[int, Tensor], Tensor] | None = None,
        to_datum: Sequence[tuple[Weight, Weight]] | None = None,
    ) -> None:
        self.index = begin
        self._rows = rows
        self._depth = depth
        self._denoise = denoise
        self._spread = spread
        self._to_datum = to_datum
        self.datum: Tensor | None = None
        self._registers: Registers | None = None
        self._returned: Tensor | None = None
        self._version = -1

    @property
    def finished(self) -> bool:
        """Whether no row is left."""
        return self.index == len(self._rows)

    @property
    def time(self) -> Weight:
        """The time at which the network is evaluated next."""
        return self._rows[self.index].t

    def advance(
        self, raw: Tensor, sample: Tensor, draw: Callable[[torch.dtype], Tensor], variance: Tensor | None = None
    ) -> Tensor:
        """Run one row from the network's raw output at ``sample``; return the next point, in the sample's dtype.

        Args:
            raw: output of the network, of the sample's shape.
            sample: where it was evaluated.
            draw: gives standard normal noise of a dtype; called if the row adds noise.
            variance: what the network says of it, of the sample's shape.

        Raises:
            ValueError: the sample changed its shape since the last step.
        """
        registers = self._registers
        if registers is None:
            registers = self._registers = Registers(sample, self._depth, reuse=False)
        elif sample is not self._returned or self._was_written(sample):
            self._replace_point(registers, sample)
        row = self._rows[self.index]
        if self._denoise is not None:
            raw = self._denoise(self.index, registers.point, raw)
        if self._to_datum is not None:
            point = registers.point
            self.datum = combine(self._to_datum[self.index], (point, raw.to(point.dtype))).to(sample.dtype)
        noise = draw(registers.point.dtype) if row.noisy else None
        if noise is not None and variance is not None and self._spread is not None:
            noise = noise * self._spread(self.index, variance)
        following = registers.advance(row, raw, noise).to(sample.dtype)
        self.index += 1
        self._returned = following
        self._version = -1 if following.is_inference() else following._version
        return following

    def _was_written(self, sample: Tensor) -> bool:
        """Whether the host wrote into the sample it was given; in full precision that is the register itself."""
        return sample.dtype in _HALF and (sample.is_inference() or sample._version != self._version)

    @staticmethod
    def _replace_point(registers: Registers, sample: Tensor) -> None:
        if sample.shape != registers.point.shape:
            raise ValueError(f"sample has shape {tuple(sample.shape)}, and in the last step "
                             f"{tuple(registers.point.shape)}: call set_timesteps before a new run")
        point = sample.to(registers.point.dtype)
        if registers.anchor is registers.point:
            registers.anchor = point
        registers.point = point
