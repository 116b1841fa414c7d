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
    for index, row in enumerate(rows):
        noisy = isinstance(row.noise, float) and row.noise != 0.0
        if row.point != (1.0,) or row.anchor[1:2] != (0.0,) or noisy:
            raise ValueError(f"rows[{index}] is no step of a multistep scheme: it has inner stages, a corrector of "
                             "another kind, or noise; choose a multistep solver")
    corrected = list(rows[:1])
    for index in range(1, len(rows)):
        decay, _, *weights = rows[index].anchor
        correction = [decay * w for w in _correction(variable, rows, index - 1, rule)]
        count = max(len(weights), len(correction))
        total = [w + c for w, c in zip(_padded(weights, count), _padded(correction, count), strict=True)]
        corrected.append(replace(rows[index], anchor=(decay, 0.0, *total)))
    return tuple(corrected)


def _correction(variable: Variable, rows: Sequence[Row], step: int, rule: Rule) -> list[Weight]:
    """What the corrector adds to the end of a step, over the predictions from that end backwards."""
    _, _, *predictor = rows[step].anchor
    start, end = (variable.at_time(float(rows[i].t)) for i in (step, step + 1))
    if not math.isfinite(end.clock - start.clock):
        return []  # a step of infinite length is exact in its one prediction
    past = [variable.at_time(float(rows[step - j].t)).clock - start.clock for j in range(1, len(predictor))]
    _, (now, ahead, *older) = variable.propagator(start, end, (0.0, end.clock - start.clock, *past), rule)
    return [ahead, *(c - p for c, p in zip((now, *older), predictor, strict=True))]


def _padded(weights: Sequence[Weight], count: int) -> list[Weight]:
    return [*weights, *[0.0] * (count - len(weights))]
