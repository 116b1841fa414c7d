"""A corrector that costs no evaluation, for any multistep scheme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from odecore.phi import exponential_weights
from odecore.plan import Row, Weight
from odecore.schemes.variable import Rule, Variable


def with_corrector(variable: Variable, rows: Sequence[Row], *, rule: Rule = exponential_weights) -> tuple[Row, ...]:
    """Correct each step of a multistep scheme by the prediction that the next row makes at its end.

    A step with weights p_j over k predictions is repeated with the weights c_j of a polynomial
    through k + 1, the one at its end among them, which is evaluated anyway. Both start from the same
    state, so the corrected one is ``point + c_0 m_0 + Σ_j (c_j - p_j) m_j``, and the row goes on from
    there: correction and next step are one linear combination. A scheme of order k becomes one of
    order k + 1. The last step has no prediction at its end and stays as it is.

    Args:
        variable: the change of variables in whose clock the corrector interpolates.
        rows: the rows of a multistep scheme: each takes a step from its point, over recent predictions.
        rule: weights of the corrector's quadrature; the offsets handed to it are 0, the step's end,
            and then the past, newest first. The default is exact.

    Returns:
        As many rows. Their anchors are the predicted states: a host that edits the point, to inpaint,
        sees its edit kept, as a corrector that starts again from the last state would not have it.

    Raises:
        ValueError: rows with inner stages or with noise.

    Cost: no evaluation, and one more prediction to keep.

    Source: UniC, Zhao et al. 2023, arXiv:2302.04867, algorithm 1.
    """
    if any(row.noisy for row in rows):
        raise ValueError("rows add noise, so that their steps are not those of the variable: hand the corrector's "
                         "weights to corrected()")
    _check_multistep(rows)
    return corrected(rows, [_correction(variable, rows, step, rule) for step in range(len(rows) - 1)])


def corrected(rows: Sequence[Row], correctors: Sequence[Sequence[Weight]]) -> tuple[Row, ...]:
    """Exchange the weights of each step for a corrector's, once the prediction at the step's end is made.

    Noise that a step has added stays in the state: predictor and corrector of a stochastic step differ
    in the weights of their predictions alone.

    Args:
        rows: the rows of a multistep scheme: each takes a step from its point, over recent predictions.
        correctors: for each step but the last, the weights c_0, c_1, … over the predictions at its end, at its start
            and before it, in place of the predictor's; none leaves the step as it is.

    Raises:
        ValueError: rows with inner stages.

    Cost: no evaluation.
    """
    _check_multistep(rows)
    together = list(rows[:1])
    for before, row, corrector in zip(rows[:-1], rows[1:], correctors, strict=True):
        decay, _, *weights = row.anchor
        exchanged = [0.0, *before.anchor[2:]] if corrector else []
        count = max(len(weights), len(corrector), len(exchanged))
        total = [w + decay * (c - p) for w, c, p in zip(
            *(_padded(part, count) for part in (weights, corrector, exchanged)), strict=True)]
        together.append(replace(row, anchor=(decay, 0.0, *total)))
    return tuple(together)


def _check_multistep(rows: Sequence[Row]) -> None:
    for index, row in enumerate(rows):
        if row.point != (1.0,) or row.anchor[1:2] != (0.0,):
            raise ValueError(f"rows[{index}] is no step of a multistep scheme: it has inner stages, or a corrector of "
                             "another kind; choose a multistep solver")


def _correction(variable: Variable, rows: Sequence[Row], step: int, rule: Rule) -> list[Weight]:
    """The corrector's weights over the predictions from the step's end backwards, one more than the predictor's."""
    _, _, *predictor = rows[step].anchor
    start, end = (variable.at_time(float(rows[i].t)) for i in (step, step + 1))
    if not math.isfinite(end.clock - start.clock):
        return []  # a step of infinite length is exact in its one prediction
    past = [variable.at_time(float(rows[step - j].t)).clock - start.clock for j in range(1, len(predictor))]
    _, (now, ahead, *older) = variable.propagator(start, end, (0.0, end.clock - start.clock, *past), rule)
    return [ahead, now, *older]


def _padded(weights: Sequence[Weight], count: int) -> list[Weight]:
    return [*weights, *[0.0] * (count - len(weights))]
