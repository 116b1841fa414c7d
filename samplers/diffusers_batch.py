"""One run for samples that are at different rows of a plan: rows whose weights are tensors, one number a sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from odecore.plan import Row, Weight

Numbers = tuple[Weight, ...]


def rows_side_by_side(runs: Sequence[Sequence[Row]], like: Tensor) -> tuple[Row, ...]:
    """Merge the rows that each sample of a batch is to run; a sample that has come to its end keeps its state.

    Args:
        runs: rows of plain numbers, one sequence a sample.
        like: a state of shape (B, …), of the device that the weights are needed on.

    Returns:
        As many rows as the longest sequence has. Numbers that all samples share stay numbers.
    """
    length = max(len(rows) for rows in runs)
    columns = [[*rows, *[_resting(rows[-1])] * (length - len(rows))] for rows in runs]
    return tuple(_merged(rows, like) for rows in zip(*columns, strict=True))


def numbers_side_by_side(lists: Sequence[Sequence[Numbers]], like: Tensor) -> list[Numbers]:
    """Merge other numbers that go with the rows of each sample, padded in the same way."""
    length = max(len(numbers) for numbers in lists)
    columns = [[*numbers, *[numbers[-1]] * (length - len(numbers))] for numbers in lists]
    return [tuple(side_by_side([float(n) for n in one], like) for one in zip(*numbers, strict=True))
            for numbers in zip(*columns, strict=True)]


def side_by_side(values: Sequence[float], like: Tensor) -> Weight:
    """One number for each sample, as a tensor that broadcasts over the states; or the number that all share."""
    if all(value == values[0] for value in values):
        return values[0]
    dtype = torch.float32 if like.dtype in (torch.float16, torch.bfloat16) else like.dtype.to_real()
    return torch.tensor(values, dtype=torch.float64).to(like.device, dtype).reshape(-1, *[1] * (like.ndim - 1))


def _resting(last: Row) -> Row:
    return Row(last.t, last.t_next)


def _merged(rows: Sequence[Row], like: Tensor) -> Row:
    def weights(name: str) -> tuple[Weight, ...]:
        given = [getattr(row, name) for row in rows]
        count = max(len(one) for one in given)
        padded = [[*map(float, one), *[0.0] * (count - len(one))] for one in given]
        return tuple(side_by_side(column, like) for column in zip(*padded, strict=True))

    t, t_next, noise, offset = (side_by_side([float(getattr(row, name)) for row in rows], like)
                                for name in ("t", "t_next", "noise", "offset"))
    to_prediction, anchor, point = map(weights, ("to_prediction", "anchor", "point"))
    return Row(t, t_next, to_prediction, anchor, point, noise, offset)  # type: ignore[arg-type]
