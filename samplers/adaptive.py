"""DPM-Solver-12 and DPM-Solver-23: two estimates of each step, whose difference sets its length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from odecore.driver.control import Controller
from odecore.driver.solve import Solution, larger_tolerance, solve
from odecore.phi import exponential_weights
from odecore.plan import combine
from odecore.schemes.variable import Rule
from odecore.stepper import Carry, Field, Step, column, send
from samplers.dpm_solver import RULES
from samplers.variables import VARIABLES
from scoremodels.model import ScoreModel
from scoremodels.schedule import NoiseSchedule

CONTROLLER = Controller(safety=0.9, smallest=0.0, largest=math.inf)
"""h ← .9 h E^{-1/order}, without bounds, as published."""

FIRST_STEP = 0.05
"""Length of the first step in log-SNR, as published."""

FRACTIONS: dict[int, tuple[float, ...]] = {2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}
"""Where the network is evaluated in a step, in log-SNR, for each order of the higher estimate."""

_LEAST_LOG_SNR = -7.0
"""Where the adaptive steps start if the schedule starts at pure noise (log-SNR -inf)."""


class AdaptiveResult(NamedTuple):
    """What :func:`sample_adaptive` returns.

    Attributes:
        samples: states at the end time.
        nfe: network evaluations of the batch; each counts once, whatever the number of samples that
            still take part in it.
        statistics: accepted and rejected steps of each sample; its times are log-SNRs.
    """

    samples: Tensor
    nfe: int
    statistics: Solution


class _Nodes(NamedTuple):
    """One place on the path for each sample, as float64 vectors on the host; see ``odecore.schemes.Node``."""

    t: Tensor
    scale: Tensor
    gain: Tensor


@dataclass(frozen=True, slots=True)
class EmbeddedDPMSolver:
    """A step of DPM-Solver of one order and, from the same evaluations, of the order below it.

    With clock λ and the prediction m_i at ``λ_s + r_i h`` the estimates are, for r = (0, 1/2)::

        low  = (scale_t/scale_s) x + gain_t W m_0
        high = (scale_t/scale_s) x + gain_t W m_1

    and for r = (0, 1/3, 2/3), with ``W' = ∫_0^h e^{-rate (h-u)} u du``::

        low  = (scale_t/scale_s) x + gain_t W (m_0 + 3/2 (m_1 - m_0))
        high = (scale_t/scale_s) x + gain_t (W m_0 + 3/2 (W'/h) (m_2 - m_0))

    where ``W = ∫_0^h e^{-rate (h-u)} du``. The high one is kept; relative tolerances refer to the
    larger of the low one and the low one of the accepted step before.

    Args:
        schedule: noise schedule of the model.
        prediction: what the network predicts.
        order: of the higher estimate, 2 or 3.
        variable: "noise" for DPM-Solver, "data" for DPM-Solver++.

    Source: Lu et al. 2022, arXiv:2206.00927, appendix C, algorithms 3 and 4.
    """

    schedule: NoiseSchedule
    prediction: str
    order: int
    variable: str = "noise"

    def __post_init__(self) -> None:
        if self.order not in FRACTIONS:
            raise ValueError(f"order={self.order!r}: choose 2 (DPM-Solver-12) or 3 (DPM-Solver-23)")
        if self.variable not in ("noise", "data"):
            raise ValueError(f"variable={self.variable!r}: choose 'noise' or 'data'")

    @property
    def error_order(self) -> int:
        """The lower estimate, of order p - 1, has a local error of h^p."""
        return self.order

    def start(self, field: Field, t0: Tensor, y: Tensor) -> tuple[Carry, int]:
        """Take the start state for the low estimate of the step before the first."""
        return (y,), 0

    def step(self, field: Field, t0: Tensor, t1: Tensor, y: Tensor, carry: Carry) -> Step:
        """Go from log-SNR t0 to t1; the field is the network, ``field(x, t) -> raw`` with its own times.

        Cost: ``order`` evaluations; all times of the step are computed on the host beforehand.
        """
        fractions, h = FRACTIONS[self.order], t1 - t0
        start, *stages = [self._nodes(t0 + r * h) for r in fractions]
        end = self._nodes(t1)
        predictions = [self._predict(field, start, y)]
        for i, stage in enumerate(stages):
            reached = fractions[i + 1]
            offsets = [r / reached for r in fractions[: i + 1]]
            point = self._reach(y, start, stage, predictions, offsets, reached * h, exponential_weights)
            predictions.append(self._predict(field, stage, point))
        published = RULES["singlestep-midpoint"]
        high = self._reach(y, start, end, predictions, fractions, h, published)
        low = self._reach(y, start, end, predictions[:-1], fractions[:-1], h, published)
        magnitude = torch.maximum(low.abs(), carry[0].abs())
        return Step(high, (low,), high - low, magnitude, self.order)

    def _reach(
        self, x: Tensor, start: _Nodes, target: _Nodes, predictions: Sequence[Tensor], offsets: Sequence[float],
        h: Tensor, rule: Rule,
    ) -> Tensor:
        """Exponential quadrature from ``start`` over h; the offsets are fractions of it, so that one rule fits all."""
        rate = 1.0 if self.variable == "data" else -1.0
        weights = [target.gain * h * weight for weight in rule(offsets, 1.0, rate * h)]
        factors = [column(weight, x) for weight in (target.scale / start.scale, *weights)]
        return combine(factors, (x, *predictions))

    def _predict(self, field: Field, nodes: _Nodes, x: Tensor) -> Tensor:
        target = "sample" if self.variable == "data" else "epsilon"
        pairs = [self.schedule.conversion(self.prediction, target, t) for t in nodes.t.tolist()]
        raw = field(x, send(nodes.t, x.device))
        return combine([column(weight, x) for weight in torch.tensor(pairs, dtype=torch.float64).unbind(1)], (x, raw))

    def _nodes(self, log_snr: Tensor) -> _Nodes:
        times: NDArray[np.float64] = self.schedule.time_of_log_snr(log_snr.numpy())
        alpha, sigma = self.schedule.alpha(times), self.schedule.sigma(times)
        scale, gain = (sigma, alpha) if self.variable == "data" else (alpha, -sigma)
        return _Nodes(*map(torch.from_numpy, (times, scale, gain)))


@torch.no_grad()
def sample_adaptive(
    model: ScoreModel,
    x: Float[Tensor, "samples ..."],
    *,
    order: int,
    rtol: float = 0.05,
    atol: float = 0.0078,
    condition: Int[Tensor, " samples"] | None = None,
    t_start: float | None = None,
    t_end: float | None = None,
    variable: str = "noise",
    max_steps: int = 1000,
) -> AdaptiveResult:
    """Walk from noise to data in steps that each sample chooses for itself.

    A schedule that starts at pure noise (log-SNR -inf) is entered by one first-order step of data
    prediction to log-SNR -7, where the signal is a thousandth.

    Args:
        model: the model; it sees one time per sample.
        x: start states at ``t_start``, of shape (samples, …).
        order: 2 for DPM-Solver-12, 3 for DPM-Solver-23.
        rtol: relative tolerance.
        atol: absolute tolerance, in units of the data; .0078 is one of 256 levels of data in [-1, 1].
        condition: class labels, one a sample.
        t_start: where x lives; by default the schedule's noisiest time.
        t_end: where to stop; by default its least noisy time.
        variable: "noise" (DPM-Solver) or "data" (DPM-Solver++).
        max_steps: most attempts.

    Returns:
        States at ``t_end``, evaluations, and statistics.

    Raises:
        ValueError: an argument out of range, before any evaluation.
        odecore.driver.solve.SolveError: a sample met non-finite network outputs or the step limit.

    Cost: ``order`` evaluations for each attempt of the slowest sample, rejected or not; samples
        that have finished leave the batch. One host round trip per attempt, for the errors.

    Source: Lu et al. 2022, arXiv:2206.00927, appendix C.
    """
    schedule = model.schedule
    stepper = EmbeddedDPMSolver(schedule, model.prediction, order, variable)
    first = float(schedule.t_max if t_start is None else t_start)
    last = float(schedule.t_min if t_end is None else t_end)
    log_snr_start, log_snr_end = schedule.log_snr(first), schedule.log_snr(last)
    if not log_snr_start < log_snr_end:
        raise ValueError(f"t_start={first}, t_end={last}: sampling goes from the noisier time to the less noisy one")
    if not log_snr_end < math.inf:
        raise ValueError(f"t_end={last}: there is no noise left there and the log-SNR is infinite; end at "
                         f"t_min={schedule.t_min}")
    args = () if condition is None else (condition,)
    entered = 0
    if log_snr_start == -math.inf:
        if not log_snr_end > _LEAST_LOG_SNR:
            raise ValueError(f"t_end={last}: its log-SNR must lie above {_LEAST_LOG_SNR}, where steps from pure noise "
                             "arrive")
        data = VARIABLES["data"](schedule, model.prediction)
        here, there = data.at_time(first), data.at_clock(_LEAST_LOG_SNR)
        raw = model(x, first, *args)
        decay, (weight,) = data.propagator(here, there)
        a, b = data.to_prediction(first)
        x = combine((decay + weight * a, weight * b), (x, raw))
        log_snr_start, entered = _LEAST_LOG_SNR, 1
    solution = solve(stepper, model, x, log_snr_start, log_snr_end, rtol=rtol, atol=atol, args=args,
                     first_step=FIRST_STEP, max_steps=max_steps, controller=CONTROLLER, norm=larger_tolerance)
    return AdaptiveResult(solution.y, entered + solution.nfe, solution)
