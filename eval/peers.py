"""The schedulers of diffusers on our models: from the same noise, and with exactly as many evaluations.

A scheduler counts noise and time in its own way. :class:`Coordinates` say how: what state and time of the model
belong to what the scheduler hands to its network, and what it reads from the raw prediction. On EDM models and on
flows the schedulers of discrete variance-preserving processes run too, on such a process with the same range of
σ/α; that is an exact change of variables, which spares them no evaluation.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from samplers.grids import Times
from samplers.levels import HIGHEST_RATIO
from samplers.lockstep import Walk
from scoremodels.model import ScoreModel
from scoremodels.schedule import EDM, DiscreteVP, RectifiedFlow

STEPS = 1000
"""Training steps of every scheduler, and of the discrete process that stands for a continuous one."""

_UNSCALED = ("LMSDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler")
"""Classes whose state is x/α."""
_ROUNDING = ("DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "DEISMultistepScheduler",
             "UniPCMultistepScheduler")
"""Classes that round the times of their noise levels to training steps, which a translated model need not suffer."""
_TWO_A_STEP = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
"""Classes that spend two evaluations on every step but the last."""
_EDM_CLASSES = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")


@dataclass(frozen=True, slots=True)
class Peer:
    """A scheduler of diffusers, with its settings.

    Args:
        name: what tables call it.
        kind: name of its class.
        config: arguments of its class, besides those that the model decides.
    """

    name: str
    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)


class Call(NamedTuple):
    """One evaluation as a scheduler sees it: the network's state is ``scale · input``, its output ``a input + b raw``.

    Attributes:
        t: the model's time.
        scale, a, b: the factors.
    """

    t: float
    scale: float
    a: float
    b: float


class Coordinates(NamedTuple):
    """How a scheduler counts.

    Attributes:
        start: factor from standard normal noise to its start state.
        call: from what it tells its network, or from the noise level if ``by_level``.
        by_level: which of these.
        config: arguments of its class.
    """

    start: float
    call: Callable[[float], Call]
    by_level: bool
    config: Mapping[str, Any]


def walk_peer(model: ScoreModel, peer: Peer, noise: Tensor, nfe: int) -> Walk:
    """Run a scheduler from standard normal noise, as a walk for :func:`samplers.lockstep.run_together`.

    Args:
        model: the model.
        peer: the scheduler.
        noise: standard normal, of shape (batch, …).
        nfe: evaluations to spend.

    Raises:
        ValueError: at once, if the scheduler cannot spend exactly ``nfe`` evaluations.
    """
    coordinates = _coordinates(model, peer)
    return _walk(_spending(peer, coordinates.config, nfe), coordinates, noise)


def own_nfe(peer: Peer, nfe: int) -> int:
    """Most evaluations up to ``nfe`` that a scheduler can spend exactly; 0 if it needs more."""
    return next((count for count in range(nfe, 0, -1) if _steps(peer, count) > 0), 0)


def _steps(peer: Peer, nfe: int) -> int:
    """Steps that spend exactly ``nfe`` evaluations; 0 if there is no such number."""
    if peer.kind in _TWO_A_STEP:
        return (nfe + 1) // 2 if nfe % 2 else 0
    if peer.kind == "PNDMScheduler":
        plain = peer.config.get("skip_prk_steps", False)
        steps = nfe - (1 if plain else 9)  # twice the second step; or four evaluations for each of the first three
        return steps if steps >= (1 if plain else 4) else 0
    return nfe


def _spending(peer: Peer, config: Mapping[str, Any], nfe: int) -> Any:
    import diffusers

    steps = _steps(peer, nfe)
    if steps < 1:
        raise ValueError(f"nfe={nfe}: no number of steps of {peer.name} spends exactly that")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated algorithms, which are compared all the same
        scheduler = getattr(diffusers, peer.kind)(**config, **peer.config)
        scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == nfe, peer
    return scheduler


def _walk(scheduler: Any, coordinates: Coordinates, noise: Tensor) -> Walk:
    kind = type(scheduler).__name__
    start = coordinates.start * (math.hypot(1.0, float(scheduler.sigmas[0])) if kind in _UNSCALED else 1.0)
    state = noise * start
    for index, told in enumerate(scheduler.timesteps):
        point = scheduler.scale_model_input(state, told) if hasattr(scheduler, "scale_model_input") else state
        call = coordinates.call(float(scheduler.sigmas[index] if coordinates.by_level else told))
        raw = yield point * call.scale, call.t
        state = scheduler.step(call.a * point + call.b * raw, told, state).prev_sample
    return state


def _coordinates(model: ScoreModel, peer: Peer) -> Coordinates:
    schedule = model.schedule
    if peer.kind in _EDM_CLASSES:
        assert isinstance(schedule, EDM)
        limits = dict(sigma_min=schedule.sigma_min, sigma_max=schedule.sigma_max, sigma_data=schedule.sigma_data)
        return Coordinates(schedule.prior_scale(schedule.t_max), partial(_edm_call, model), False, limits)
    if peer.kind == "IPNDMScheduler":
        return Coordinates(1.0, partial(_sine_call, model), False, {})
    if _is_flow(peer):
        flow = {} if peer.kind.startswith("FlowMatch") else dict(prediction_type="flow_prediction",
                                                                 use_flow_sigmas=True)
        return Coordinates(1.0, partial(_flow_call, model), False, flow)
    ratios = process_ratios(model)
    alphas = 1.0 / np.hypot(1.0, ratios)
    betas = 1.0 - (alphas / np.append(1.0, alphas[:-1])) ** 2
    config = dict(num_train_timesteps=len(betas), trained_betas=betas)
    if isinstance(schedule, DiscreteVP):
        return Coordinates(1.0, _own_call, False, {**config, "prediction_type": model.prediction})
    by_level = peer.kind in _ROUNDING
    call = partial(_level_call, model) if by_level else partial(_index_call, model, ratios)
    return Coordinates(float(ratios[-1] * alphas[-1]), call, by_level, {**config, "prediction_type": "epsilon"})


def _is_flow(peer: Peer) -> bool:
    """Whether it counts in a flow's noise levels."""
    return peer.kind.startswith("FlowMatch") or "flow_shift" in peer.config


def process_ratios(model: ScoreModel) -> Times:
    """Noise-to-signal ratios of the discrete process: the model's own, or ``STEPS`` even in log(σ/α)."""
    schedule = model.schedule
    if isinstance(schedule, DiscreteVP):
        return np.asarray(schedule.ratio(np.arange(schedule.t_max + 1.0)))
    low, high = (float(schedule.ratio(t)) for t in (schedule.t_min, schedule.t_max))
    return np.geomspace(low, min(high, HIGHEST_RATIO), STEPS)


def _own_call(told: float) -> Call:
    """Hand a discrete model what the scheduler gives and takes."""
    return Call(told, 1.0, 0.0, 1.0)


def _edm_call(model: ScoreModel, told: float) -> Call:
    """Act as the bare body of a preconditioned network: told log(σ)/4, given x/sqrt(σ² + σ_data²), it returns F."""
    assert isinstance(model.schedule, EDM)
    sigma = float(np.clip(math.exp(4.0 * told), 0.0, model.schedule.t_last))
    scale = math.hypot(sigma, model.schedule.sigma_data)
    a, b = model.schedule.conversion(model.prediction, "edm", sigma)
    return Call(sigma, scale, a * scale, b)


def _flow_call(model: ScoreModel, told: float) -> Call:
    assert isinstance(model.schedule, RectifiedFlow)
    t = told / STEPS * model.schedule.scale
    return Call(t, 1.0, *model.schedule.conversion(model.prediction, "flow", t))


def _index_call(model: ScoreModel, ratios: Times, told: float) -> Call:
    return _level_call(model, math.exp(float(np.interp(told, np.arange(len(ratios)), np.log(ratios)))))


def _level_call(model: ScoreModel, ratio: float) -> Call:
    """Read ε at a noise-to-signal ratio of a variance-preserving process."""
    schedule = model.schedule
    t = float(schedule.t_max) if ratio >= schedule.ratio(schedule.t_max) else float(schedule.time_of_ratio(ratio))
    scale = float(schedule.alpha(t)) * math.hypot(1.0, ratio)
    if scale == 0.0 or math.isinf(ratio):
        return Call(t, schedule.prior_scale(t), 1.0, 0.0)  # pure noise, which is ε itself
    a, b = schedule.conversion(model.prediction, "epsilon", t)
    return Call(t, scale, a * scale, b)


def _sine_call(model: ScoreModel, told: float) -> Call:
    """Read v of the process α = cos(π t/2), σ = sin(π t/2), on which IPNDMScheduler stands."""
    alpha, sigma = math.cos(math.pi / 2 * told), math.sin(math.pi / 2 * told)
    if alpha < 1e-6:
        return Call(float(model.schedule.t_max), model.schedule.prior_scale(model.schedule.t_max), 0.0, 0.0)
    t, scale, a, b = _level_call(model, sigma / alpha)
    return Call(t, scale, (a - sigma) / alpha, b / alpha)


LEVELS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"timestep_spacing": name} for name in ("linspace", "leading", "trailing")},
    **{name: {f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")},
    "lu": {"use_lu_lambdas": True}}
"""Variants of the noise levels, as arguments."""
_SPACED = ("leading", "linspace", "trailing")
_USUAL = (*_SPACED, "karras", "exponential", "beta")
_SHIFTS = (1.0, 3.0)
_END = {"dpmsolver++": "zero", "dpmsolver": "sigma_min"}
_UNIPC_ENDS = {"bh1": "sigma_min", "bh2": "zero"}
"""Ends at which they are finite: the others divide by zero there."""


def peers(model: ScoreModel) -> list[Peer]:
    """Every deterministic scheduler that applies to a model, in all its variants."""
    if isinstance(model.schedule, RectifiedFlow):
        return [*_flow_peers(), *_discrete_peers(), _IPNDM]
    if isinstance(model.schedule, DiscreteVP):
        return [*_discrete_peers(), _IPNDM]
    if isinstance(model.schedule, EDM):
        return [*_edm_peers(), *_discrete_peers(), _IPNDM]
    raise ValueError(f"schedule={model.schedule}: diffusers has no scheduler for it")


_IPNDM = Peer("IPNDM", "IPNDMScheduler")


def _levelled(name: str, kind: str, levels: tuple[str, ...], **config: Any) -> Iterator[Peer]:
    for level in levels:
        yield Peer(f"{name} {level}", kind, {**config, **LEVELS[level]})


def _discrete_peers() -> Iterator[Peer]:
    yield from _levelled("DDIM", "DDIMScheduler", _SPACED, clip_sample=False)
    yield from _levelled("PNDM", "PNDMScheduler", _SPACED)
    yield from _levelled("PLMS", "PNDMScheduler", _SPACED, skip_prk_steps=True)
    for name in ("LMS", "Euler", "Heun", "KDPM2"):
        yield from _levelled(name, f"{name}DiscreteScheduler", _USUAL)
    for order in (2, 3):
        yield from _levelled(f"DEIS-{order}", "DEISMultistepScheduler", _USUAL, solver_order=order)
        for weights, end in _UNIPC_ENDS.items():
            yield from _levelled(f"UniPC-{order} {weights}", "UniPCMultistepScheduler", _USUAL, solver_order=order,
                                 solver_type=weights, final_sigmas_type=end)
        yield from _levelled(f"UniPC-{order} noise", "UniPCMultistepScheduler", _USUAL, solver_order=order,
                             predict_x0=False, final_sigmas_type="sigma_min")
    for algorithm, order, weights in _dpm_solvers():
        shared = dict(algorithm_type=algorithm, solver_order=order, solver_type=weights,
                      final_sigmas_type=_END[algorithm])
        name = f"{algorithm}-{order} {weights}"
        yield from _levelled(f"{name} multistep", "DPMSolverMultistepScheduler", (*_USUAL, "lu"), **shared)
        if order > 1:
            for level in ("linspace", "karras", "exponential", "beta"):
                chosen = {} if level == "linspace" else LEVELS[level]  # this class knows no other spacing
                yield Peer(f"{name} singlestep {level}", "DPMSolverSinglestepScheduler",
                           {**shared, **chosen, "lower_order_final": True})


def _dpm_solvers() -> Iterator[tuple[str, int, str]]:
    for algorithm in ("dpmsolver++", "dpmsolver"):
        yield algorithm, 1, "midpoint"
        yield from ((algorithm, order, weights) for order in (2, 3) for weights in ("midpoint", "heun"))


def _edm_peers() -> Iterator[Peer]:
    for schedule in ("karras", "exponential"):
        for end in ("zero", "sigma_min"):
            shared = dict(sigma_schedule=schedule, final_sigmas_type=end)
            yield Peer(f"EDMEuler {schedule} {end}", "EDMEulerScheduler", shared)
            for order, weights in ((1, "midpoint"), *((k, w) for k in (2, 3) for w in ("midpoint", "heun"))):
                yield Peer(f"EDMDPMSolver-{order} {weights} {schedule} {end}", "EDMDPMSolverMultistepScheduler",
                           {**shared, "solver_order": order, "solver_type": weights})


def _flow_peers() -> Iterator[Peer]:
    for shift in _SHIFTS:
        yield Peer(f"FlowMatchEuler shift {shift:g}", "FlowMatchEulerDiscreteScheduler", {"shift": shift})
        yield Peer(f"FlowMatchHeun shift {shift:g}", "FlowMatchHeunDiscreteScheduler", {"shift": shift})
    yield from _levelled("FlowMatchEuler", "FlowMatchEulerDiscreteScheduler", ("karras", "exponential", "beta"))
    for shift in _SHIFTS:
        for order in (2, 3):
            shared = dict(flow_shift=shift, solver_order=order)
            yield Peer(f"DEIS-{order} flow shift {shift:g}", "DEISMultistepScheduler", shared)
            for weights, end in _UNIPC_ENDS.items():
                yield Peer(f"UniPC-{order} {weights} flow shift {shift:g}", "UniPCMultistepScheduler",
                           {**shared, "solver_type": weights, "final_sigmas_type": end})
            for weights in ("midpoint", "heun"):
                name = f"dpmsolver++-{order} {weights}"
                yield Peer(f"{name} multistep flow shift {shift:g}", "DPMSolverMultistepScheduler",
                           {**shared, "solver_type": weights})
                yield Peer(f"{name} singlestep flow shift {shift:g}", "DPMSolverSinglestepScheduler",
                           {**shared, "solver_type": weights, "lower_order_final": True})
