"""UniPC: a multistep predictor, and a corrector that spends no evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from odecore.phi import exponential_weights
from odecore.plan import Row, Weight
from odecore.schemes.predictor_corrector import with_corrector
from odecore.schemes.variable import Rule
from samplers.dpm_solver import half_difference
from samplers.multistep import ALWAYS, checked_order, multistep
from samplers.solver import Path, Solver

_SOURCE = "Zhao et al. 2023, arXiv:2302.04867"


def bh1(offsets: Sequence[float], h: float, rate: Weight) -> tuple[Weight, ...]:
    """Weigh a first difference by half of h²/(u_1 - u_0), B(h) = h; all else by exact quadrature."""
    if len(offsets) != 2:
        return exponential_weights(offsets, h, rate)
    (total,) = exponential_weights((0.0,), h, rate)
    slope = h * h / 2 / (offsets[1] - offsets[0])
    return total - slope, slope


def bh2(offsets: Sequence[float], h: float, rate: Weight) -> tuple[Weight, ...]:
    """Weigh a first difference by half the zeroth moment, B(h) = e^h - 1; all else by exact quadrature."""
    return (half_difference if len(offsets) == 2 else exponential_weights)(offsets, h, rate)


WEIGHTS: dict[str, Rule] = {"bh1": bh1, "bh2": bh2, "exact": exponential_weights}
"""UniPC's choices of B(h). For three and more predictions B(h) cancels, and the weights are those of exact quadrature;
for two, the published solver solves no equation and takes 1/2."""


def unip(order: int, variable: str = "data", weights: str = "bh2", *, lower_order_final: bool = True) -> Solver:
    """Build UniP, the predictor alone.

    Args:
        order: 1 to 4.
        variable: "data" or "noise", what it interpolates over log-SNR.
        weights: a name out of ``WEIGHTS``.
        lower_order_final: whether the order falls over the last steps. A step to σ = 0 has order one
            in any case, for it is infinitely long.

    Raises:
        ValueError: an argument out of its range.

    Cost: one evaluation a step.

    Source: Zhao et al. 2023, arXiv:2302.04867, section 3.2.
    """
    if variable not in ("data", "noise"):
        raise ValueError(f"variable={variable!r}: choose 'data' or 'noise'")
    build = partial(multistep, variable=variable, order=checked_order(order), rule=_weights(weights),
                    taper_below=ALWAYS if lower_order_final else 0)
    return Solver(f"unip-{order}", order, build, variable, end="clean" if variable == "data" else "minimum",
                  sigma_grid="karras" if order == 1 else "log-snr", rule=None, source=_SOURCE)


def unic(solver: Solver, weights: str = "exact") -> Solver:
    """Attach the corrector to a multistep solver, which raises its order by one.

    Over ρ (LMS, iPNDM, DEIS) the steps shrink so fast that the polynomial through the step's end is
    steep; on the embedded EDM model the corrector made these worse at 5 to 10 evaluations, although it
    raises their order of convergence.

    Args:
        solver: a solver of one row a step, without noise: DDIM, DPM-Solver 2M or ++, DEIS, iPNDM, LMS, UniP.
        weights: a name out of ``WEIGHTS``, for steps that have one prediction besides that at their end.

    Returns:
        The solver with its corrector, which spends no evaluation.

    Raises:
        ValueError: unknown weights, or a solver that has a corrector already or adds noise. One
            with inner stages is refused once it is compiled.

    Source: Zhao et al. 2023, arXiv:2302.04867, section 3.1.
    """
    rule = _weights(weights)
    if solver.stochastic or solver.enter is not None or getattr(solver.build, "func", None) is _corrected:
        raise ValueError(f"solver={solver.name!r} adds noise or has a corrector: choose a plain multistep solver")
    build = partial(_corrected, build=solver.build, variable=solver.variable, corrector=rule)
    return replace(solver, name=f"{solver.name}+unic", order=solver.order + 1, build=build, rule=None)


def unipc(order: int, variable: str = "data", weights: str = "bh2", *, lower_order_final: bool = True) -> Solver:
    """Build UniPC of UniP-p and UniC-p, whose order of convergence is p + 1.

    Arguments, errors and cost as of :func:`unip`.

    Source: Zhao et al. 2023, arXiv:2302.04867, algorithms 1 and 2; diffusers' ``UniPCMultistepScheduler``.
    """
    solver = unic(unip(order, variable, weights, lower_order_final=lower_order_final), weights)
    return replace(solver, name=f"unipc-{order}")


def _corrected(
    path: Path, nfe: int, *, build: Callable[[Path, int], tuple[tuple[Row, ...], list[float]]], variable: str,
    corrector: Rule,
) -> tuple[tuple[Row, ...], list[float]]:
    rows, times = build(path, nfe)
    return with_corrector(path.variable(variable), rows, rule=corrector), times


def _weights(name: str) -> Rule:
    if name not in WEIGHTS:
        raise ValueError(f"weights={name!r}: choose one of {', '.join(WEIGHTS)}")
    return WEIGHTS[name]


UNIPC = tuple(unipc(k) for k in (1, 2, 3, 4))
