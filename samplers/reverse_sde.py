"""Steps of the reverse SDEs: as much noise as one likes, and the marginals of the probability-flow ODE.

With x_t = α x0 + σ ε, λ = log(α/σ) and a strength η = τ² ≥ 0 of the noise they are

* data:  ``d(x/σ) = -η (x/σ) dλ + (1 + η) e^λ x0 dλ + sqrt(2η) dW``
* noise: ``d(x/α) = -(1 + η) e^{-λ} ε dλ + sqrt(2η) e^{-λ} dW``

η = 0 is the ODE, and η = 1 reverses the forward process. While η is constant, each is a weighted
integral of one prediction and a normal draw, so that the weights are those of an exponential scheme.

Source: SA-Solver, Xue et al. 2023, arXiv:2309.05019, section 4 and appendix A; for η = 1
SDE-DPM-Solver, Lu et al. 2022, arXiv:2211.01095, section 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from odecore.phi import exponential_weights
from odecore.plan import Row
from odecore.schemes import Node, Variable
from odecore.schemes.variable import Rule


class Step(NamedTuple):
    """What leads from one state to the next.

    Attributes:
        decay: weight of the state.
        weights: weights of the predictions.
        noise: standard deviation of what is added.
    """

    decay: float
    weights: tuple[float, ...]
    noise: float


def reverse_step(
    variable: Variable, start: Node, end: Node, offsets: Sequence[float] = (0.0,), *, strength: float,
    rule: Rule = exponential_weights,
) -> Step:
    """Take one step of the reverse SDE, with a polynomial in λ through the predictions.

    Over data ``x_t = (σ_t/σ_s) e^{-ηh} x_s + (1 + η) α_t ∫ e^{-(1+η)(h-u)} x0 du + σ_t sqrt(1 - e^{-2ηh}) z``,
    over noise ``x_t = (α_t/α_s) x_s - (1 + η) σ_t ∫ e^{h-u} ε du + sqrt(η) σ_t sqrt(e^{2h} - 1) z``.

    Args:
        variable: the "data" or the "noise" variable of a path, see :mod:`samplers.variables`.
        start: where the step starts.
        end: where it ends. At σ = 0 no noise is left, and the step is that of the ODE.
        offsets: where the predictions were made, in λ from the start.
        strength: η.
        rule: weights of the quadrature; the default is exact.

    Raises:
        ValueError: an infinite step with more than one prediction, or noise prediction from α = 0.
    """
    h = end.clock - start.clock
    strength = 0.0 if end.clock == math.inf else strength
    driven = _gained(end, 1.0 + strength)
    constant = (1.0 + strength) * variable.constant
    if strength == 0.0:
        noise = 0.0
    elif float(variable.rate) > 0.0:
        noise = float(end.scale) * math.sqrt(-math.expm1(-2.0 * strength * h))
        driven = driven._replace(scale=end.scale * math.exp(-strength * h))
        variable = replace(variable, rate=variable.rate + strength, constant=constant)
    else:
        noise = -float(end.gain) * math.sqrt(strength * math.expm1(2.0 * h))
        variable = replace(variable, constant=constant)
    decay, weights = variable.propagator(_gained(start, 1.0 + strength), driven, offsets, rule)
    return Step(float(decay), tuple(float(w) for w in weights), noise)


def reverse_multistep(
    variable: Variable, times: Sequence[float], orders: Sequence[int], strengths: Sequence[float], *,
    rule: Rule = exponential_weights, s_noise: float = 1.0,
) -> tuple[Row, ...]:
    """Turn a grid into the rows of a multistep method: step i reads the ``orders[i]`` newest predictions.

    Args:
        variable: the "data" or the "noise" variable of a path.
        times: N + 1 network times.
        orders: N orders, ``orders[i]`` between 1 and i + 1.
        strengths: η of each step.
        rule: weights of the quadrature; the default is exact.
        s_noise: factor of all noise; only 1 keeps the marginals.

    Cost: one evaluation and one normal draw a step.
    """
    nodes = [variable.at_time(t) for t in times]
    rows = []
    for i, (order, strength) in enumerate(zip(orders, strengths, strict=True)):
        start, end = nodes[i], nodes[i + 1]
        offsets = [node.clock - start.clock for node in reversed(nodes[i + 1 - order: i + 1])]
        step = reverse_step(variable, start, end, offsets, strength=strength, rule=rule)
        rows.append(Row(start.t, end.t, variable.to_prediction(start.t), (step.decay, 0.0, *step.weights),
                        noise=s_noise * step.noise))
    return tuple(rows)


def reverse_singlestep(
    variable: Variable, nodes: Sequence[Node], strength: Callable[[float], float], *,
    rule: Rule = exponential_weights, s_noise: float = 1.0,
) -> tuple[Row, ...]:
    """Turn the nodes of one step, its inner stages among them, into rows.

    The anchor is the state without the predictions of the step: the noise that a stage has drawn decays on
    with it to the next, which adds what is missing. So the stages and the end share their noise as the
    values of one path of the process do. With independent draws for the stage and the end, the variance
    that two stages give would be of order one in place of two.

    Args:
        variable: the "data" or the "noise" variable of a path.
        nodes: start, stages in the order of evaluation, end; by rising λ.
        strength: η of the way to a node, from its length in λ.
        rule: weights of the quadrature; the default is exact.
        s_noise: factor of all noise; only 1 keeps the marginals.

    Cost: one evaluation and one normal draw a stage.
    """
    start, offsets = nodes[0], [node.clock - nodes[0].clock for node in nodes]
    before = Step(1.0, (), 0.0)
    rows = []
    for j, (current, target) in enumerate(zip(nodes[:-1], nodes[1:], strict=True)):
        step = reverse_step(variable, start, target, offsets[: j + 1], strength=strength(offsets[j + 1]), rule=rule)
        decay = step.decay / before.decay
        noise = s_noise * math.sqrt(max(0.0, step.noise**2 - (decay * before.noise) ** 2))
        to_prediction, weights = variable.to_prediction(current.t), tuple(reversed(step.weights))
        if j == len(nodes) - 2:
            rows.append(Row(current.t, target.t, to_prediction, (decay, 0.0, *weights), noise=noise))
        else:
            rows.append(Row(current.t, target.t, to_prediction, (decay,), (1.0, 0.0, *weights), noise))
        before = step
    return tuple(rows)


def ancestral_strength(eta: float) -> Callable[[float], float]:
    """Give the η with which a step adds ``η₀ σ_t sqrt(1 - e^{-2h})`` of noise, as ancestral samplers and DDIM do.

    ``e^{-2ηh} = 1 - η₀² (1 - e^{-2h})``; for η₀ = 1, and for 0, η is the same. A step from pure noise has no
    such η in between, and forgets its start.

    Args:
        eta: η₀, from 0 to 1.
    """
    def strength(h: float) -> float:
        if eta in (0.0, 1.0) or not math.isfinite(h):
            return eta
        return -math.log1p(eta**2 * math.expm1(-2.0 * h)) / (2.0 * h)

    return strength


def _gained(node: Node, factor: float) -> Node:
    return node._replace(gain=factor * node.gain)
