"""DPM-Solver-v3: an exponential multistep scheme in the variable that a model's statistics make the smoothest.

In ``y = x/α`` and log-SNR λ the probability-flow ODE is ``dy/dλ + l y = -f`` with ``f = (σ ε - l x)/α``. Where
``df/dλ = s f + b`` held exactly, ``g = e^{-S} f - B`` would be constant; the scheme takes polynomials through it. All
of it is linear in the predictions but for b, which goes into the offsets of the plan's rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from odecore.plan import Row, Weight
from odecore.schemes import exponential_multistep
from odecore.schemes.predictor_corrector import corrected
from samplers.dpm_solver import multistep_orders
from samplers.model_statistics import ModelStatistics
from samplers.multistep import from_pure_noise
from samplers.solver import Path, Solver
from samplers.statistics_integrals import StepIntegrals, step_integrals

POLYNOMIALS = ("full", "pseudo")
"""Interpolation, or divided differences in place of the derivatives at the start ("pseudo-order" in the paper)."""

PREFIX = "dpm-solver-v3-"

_SOURCE = "Zheng et al. 2023, arXiv:2310.13268"


def dpm_solver_v3(
    statistics: ModelStatistics, order: int = 3, *, predictor: str = "full", corrector: str | None = "full",
    lower_order_final: bool = True,
) -> Solver:
    """Build DPM-Solver-v3 for one model.

    Args:
        statistics: of that model, see :func:`samplers.estimate_statistics.estimate_statistics`.
        order: predictions that the predictor takes, 1 to 3.
        predictor: "full" or "pseudo"; the latter is published for the fewest evaluations.
        corrector: "full" for one through as many predictions as the predictor's, the new one among them; "pseudo"
            for one more; None for none.
        lower_order_final: whether the order falls over the last steps.

    Returns:
        The solver. It usually ends at the least noise of training, where the statistics end; to a clean end it takes
        the predicted sample, and from pure noise a first step of DDIM.

    Raises:
        ValueError: an argument out of range; once it is compiled, a way beyond the statistics.

    Cost: one evaluation a step; the weights of the plan are tensors of the shape of the statistics.

    Source: Zheng et al. 2023, arXiv:2310.13268, sections 3 and 4, and its published code.
    """
    if isinstance(order, bool) or order not in (1, 2, 3):
        raise ValueError(f"order={order!r}: choose 1, 2 or 3")
    for name, value in (("predictor", predictor), ("corrector", corrector)):
        if value not in POLYNOMIALS and (name, value) != ("corrector", None):
            raise ValueError(f"{name}={value!r}: choose one of {', '.join(POLYNOMIALS)}")
    build = partial(_build, statistics=statistics, order=order, predictor=predictor, corrector=corrector,
                    lower_order_final=lower_order_final)
    return Solver(f"{PREFIX}{order}", order, build, "statistics", end="minimum", sigma_grid="log-snr", rule=None,
                  source=_SOURCE)


def dpm_solver_v3_named(name: str) -> Solver:
    """Build the solver called ``dpm-solver-v3-K@FILE``, of order K, with the statistics of a file.

    Raises:
        ValueError: no file or no order in the name, or nothing fit in the file.
    """
    base, at, path = name.partition("@")
    order = base.removeprefix(PREFIX)
    if not path or order not in ("1", "2", "3"):
        raise ValueError(f"solver={name!r}: it needs statistics of the model and an order of 1 to 3, so write "
                         f"'{PREFIX}3@FILE' with a file of ModelStatistics.save, or call dpm_solver_v3(statistics, 3)")
    return dpm_solver_v3(ModelStatistics.load(path), int(order))


class _Node(NamedTuple):
    """A time of the grid, with its log-SNR and signal scale, and the integrals of the step that starts there."""

    t: float
    log_snr: float
    alpha: float
    step: StepIntegrals | None


class _Weights(NamedTuple):
    """``x_t = decay x_s + Σ_j predictions[j] f_j + offset``."""

    decay: Tensor
    predictions: tuple[Tensor, ...]
    offset: Tensor


def _build(
    path: Path, nfe: int, *, statistics: ModelStatistics, order: int, predictor: str, corrector: str | None,
    lower_order_final: bool,
) -> tuple[tuple[Row, ...], list[float]]:
    statistics.check(path.schedule)
    times = path.times(nfe)
    first = from_pure_noise(path, times)
    clean = math.isinf(path.schedule.log_snr(times[-1]))
    within = times[len(first):len(times) - clean]
    last = exponential_multistep(path.variable("data"), times[-2:], [1]) if clean and len(within) else ()
    nodes = _nodes(path, statistics, within)
    clocks = [*(node.log_snr for node in nodes), *[math.inf] * clean]
    orders = multistep_orders(clocks, order, taper=lower_order_final)[:max(0, len(nodes) - 1)]
    steps = [_step(nodes, i, range(i, i - k, -1), predictor) for i, k in enumerate(orders)]
    rows = [Row(node.t, following.t, _to_prediction(path, statistics, node), (step.decay, 0.0, *step.predictions),
                offset=step.offset) for node, following, step in zip(nodes[:-1], nodes[1:], steps, strict=True)]
    if corrector is not None:
        again = [_correction(nodes, i, k, corrector) for i, k in enumerate(orders[:-1])]
        rows = _corrected(rows, steps, again)
    return (*first, *rows, *last), times


def _nodes(path: Path, statistics: ModelStatistics, times: Sequence[float]) -> list[_Node]:
    if not times:
        return []
    clocks = [float(path.schedule.log_snr(t)) for t in times]
    steps = [step_integrals(statistics, a, b) for a, b in zip(clocks[:-1], clocks[1:], strict=True)]
    return [_Node(t, clock, float(path.schedule.alpha(t)), step)
            for t, clock, step in zip(times, clocks, [*steps, None], strict=True)]


def _to_prediction(path: Path, statistics: ModelStatistics, node: _Node) -> tuple[Weight, Weight]:
    """Weights of the point and the raw output in ``f = (σ ε - l x)/α``."""
    sigma = float(path.schedule.sigma(node.t))
    a, b = path.schedule.conversion(path.prediction, "epsilon", node.t)
    (linear,), _, _ = statistics.at(np.array([node.log_snr]))
    return (sigma * a - linear) / node.alpha, sigma * b / node.alpha


def _step(nodes: Sequence[_Node], start: int, used: Sequence[int], polynomial: str) -> _Weights:
    """Weights of the step that starts at a node, over the predictions at the nodes ``used``."""
    step, alpha = nodes[start].step, nodes[start + 1].alpha
    assert step is not None
    basis = _basis([nodes[j].log_snr - nodes[start].log_snr for j in used], polynomial)
    weights, offset = [], -alpha * step.constant
    for j, powers in zip(used, basis, strict=True):
        total = -alpha * sum((c * m for c, m in zip(powers, step.moments, strict=False)), start=0.0 * step.constant)
        growth, drift = _to_base(nodes, j, start)
        weights.append(total * growth)
        offset = offset + total * drift
    return _Weights(alpha / nodes[start].alpha * step.decay, tuple(weights), offset)


def _to_base(nodes: Sequence[_Node], node: int, base: int) -> tuple[Weight, Weight]:
    """``(p, r)`` of ``g = p f + r`` from f at a node: what f becomes at the base if ``df/dλ = s f + b``."""
    growth: Weight = 1.0
    drift: Weight = 0.0
    for k in range(node, base):
        step = nodes[k].step
        assert step is not None
        growth, drift = growth * step.growth, drift * step.growth + step.drift
    if node == base + 1:  # a corrector's, one step ahead
        step = nodes[base].step
        assert step is not None
        return 1.0 / step.growth, -step.drift / step.growth
    return growth, drift


def _basis(offsets: Sequence[float], polynomial: str) -> list[list[float]]:
    """For each node, the coefficients of the powers of λ - λ_s that its value has in the polynomial."""
    count = len(offsets)
    if polynomial == "full":
        return np.linalg.inv(np.vander(offsets, increasing=True)).T.tolist() if count > 1 else [[1.0]]
    return [[0.0 if k < j else 1.0 / math.prod(offsets[j] - offsets[i] for i in range(k + 1) if i != j)
             for k in range(count)] for j in range(count)]


def _correction(nodes: Sequence[_Node], start: int, order: int, polynomial: str) -> _Weights | None:
    """The step again, with the prediction at its end: through as many predictions, or "pseudo" one more."""
    older = order - 2 if polynomial == "full" else order - 1
    if older < 0:
        return None
    return _step(nodes, start, (start, start + 1, *range(start - 1, start - 1 - older, -1)), polynomial)


def _corrected(rows: Sequence[Row], steps: Sequence[_Weights], again: Sequence[_Weights | None]) -> list[Row]:
    correctors: list[tuple[Weight, ...]] = []
    for step in again:
        if step is None:
            correctors.append(())
        else:
            now, ahead, *older = step.predictions
            correctors.append((ahead, now, *older))
    together = list(corrected(rows, correctors))
    for i, step in enumerate(again):
        if step is not None:
            more = steps[i + 1].decay * (step.offset - steps[i].offset)
            together[i + 1] = replace(together[i + 1], offset=together[i + 1].offset + more)
    return together
