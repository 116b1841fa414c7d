"""Which solver a scheduler of diffusers is, in the words of its own config.

Each class has a maker here, whose arguments are the settings of that class that choose its solver, with
their defaults; everything else that a config says is schedule, prediction and timesteps.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from odecore.plan import Row
from samplers.ancestral import dpm_2
from samplers.consistency import consistency, lcm, tcd
from samplers.ddim import DDIM, ddim, ddpm
from samplers.deis import deis
from samplers.dpm_solver import TAPER_BELOW
from samplers.edm import EDM_HEUN, EULER_SOLVER, FLOW_HEUN
from samplers.inversion import backwards, ddim_inversion
from samplers.ipndm import ipndm
from samplers.lms import lms
from samplers.pndm import plms, pndm
from samplers.published import published_multistep, published_singlestep, solver_with_weights
from samplers.sa_solver import sa_solver
from samplers.sde_dpm_solver import dpmpp_sde, sde_dpm_solver
from samplers.solver import Path, Solver
from samplers.unipc import unip, unipc

Rows = tuple[tuple[Row, ...], list[float]]
Maker = Callable[..., Solver]


def _multistep(
    *, algorithm_type: str = "dpmsolver++", solver_order: int = 2, solver_type: str = "midpoint",
    lower_order_final: bool = True, euler_at_final: bool = False,
) -> Solver:
    weights, variable = _weights(solver_type), _variable(algorithm_type)
    if algorithm_type.startswith("sde-"):
        solver = sde_dpm_solver(variable, solver_order, weights, lower_order_final=lower_order_final)
        first = sde_dpm_solver(variable, 1, weights)
        return replace(solver, build=partial(_ended, solver=solver, last=first)) if euler_at_final else solver
    return published_multistep(variable, solver_order, weights, lower_order_final=lower_order_final,
                               euler_at_final=euler_at_final)


def _multistep_inverse(
    *, algorithm_type: str = "dpmsolver++", solver_order: int = 2, solver_type: str = "midpoint",
    lower_order_final: bool = True, euler_at_final: bool = False,
) -> Solver:
    return backwards(_multistep(algorithm_type=algorithm_type, solver_order=solver_order, solver_type=solver_type,
                                lower_order_final=lower_order_final, euler_at_final=euler_at_final))


def _ended(path: Path, nfe: int, *, solver: Solver, last: Solver) -> Rows:
    """Take the last step with another solver of one row a step."""
    rows, times = solver.build(path, nfe)
    return (*rows[:-1], last.build(path, nfe)[0][-1]), times


def _singlestep(
    *, algorithm_type: str = "dpmsolver++", solver_order: int = 2, solver_type: str = "midpoint",
    lower_order_final: bool = False,
) -> Solver:
    if algorithm_type.startswith("sde-"):
        raise ValueError(f"algorithm_type={algorithm_type!r} of DPMSolverSinglestepScheduler is not supported: choose "
                         "solver='dpmpp-sde'")
    return published_singlestep(_variable(algorithm_type), solver_order, _weights(solver_type),
                                lower_order_final=lower_order_final)


def _deis(*, solver_order: int = 2, lower_order_final: bool = True) -> Solver:
    return deis(solver_order, "log-ratio", taper_below=TAPER_BELOW if lower_order_final else 0)


def _unipc(
    *, solver_order: int = 2, predict_x0: bool = True, solver_type: str = "bh2", lower_order_final: bool = True,
    disable_corrector: Sequence[int] = (),
) -> Solver:
    choices: dict[str, Any] = {"variable": "data" if predict_x0 else "noise", "lower_order_final": lower_order_final,
                               "weights": solver_type if solver_type in ("bh1", "bh2") else "bh2"}
    solver = unipc(solver_order, **choices)
    if not disable_corrector:
        return solver
    build = partial(_partly_corrected, corrected=solver, plain=unip(solver_order, **choices),
                    without=frozenset(disable_corrector))
    return replace(solver, build=build)


def _partly_corrected(path: Path, nfe: int, *, corrected: Solver, plain: Solver, without: frozenset[int]) -> Rows:
    """Leave out the corrector of some steps; a step is corrected by the row after its own."""
    rows, times = corrected.build(path, nfe)
    uncorrected, _ = plain.build(path, nfe)
    return tuple(uncorrected[i] if i - 1 in without else row for i, row in enumerate(rows)), times


def _sa_solver(
    *, predictor_order: int = 2, corrector_order: int = 2, tau_func: Callable[[float], float] | None = None,
    algorithm_type: str = "data_prediction", lower_order_final: bool = True,
) -> Solver:
    if algorithm_type not in ("data_prediction", "noise_prediction"):
        raise ValueError(f"algorithm_type={algorithm_type!r}: choose 'data_prediction' or 'noise_prediction'")
    make = partial(sa_solver, predictor_order, corrector_order, algorithm_type.removesuffix("_prediction"),
                   lower_order_final=lower_order_final)
    return replace(make(), build=partial(_sa_rows, make=make, tau_of_time=tau_func or _middle))


def _sa_rows(path: Path, nfe: int, *, make: Callable[..., Solver], tau_of_time: Callable[[float], float]) -> Rows:
    """τ is a function of the network's time there, and of σ/α here."""
    def tau(ratio: float) -> float:
        return float(tau_of_time(round(float(path.schedule.time_of_ratio(ratio)), 6)))

    return make(tau=tau).build(path, nfe)


def _middle(timestep: float) -> float:
    return 1.0 if 200.0 <= timestep <= 800.0 else 0.0


def _pndm(*, skip_prk_steps: bool = False) -> Solver:
    return plms() if skip_prk_steps else pndm()


def _ddim(*, eta: float = 0.0) -> Solver:
    return ddim(eta)


def _ddpm(*, variance_type: str | None = "fixed_small") -> Solver:
    # A learned variance is a factor of the small one, and the network's own.
    return ddpm("large" if variance_type in ("fixed_large", "fixed_large_log") else "small")


def _flow_euler(*, stochastic_sampling: bool = False) -> Solver:
    return consistency() if stochastic_sampling else EULER_SOLVER


def _lcm(*, timestep_scaling: float = 10.0, original_inference_steps: int = 50) -> Solver:
    return lcm(timestep_scaling)


def _tcd(*, eta: float = 0.3, original_inference_steps: int = 50) -> Solver:
    return tcd(eta)


def _always(solver: Solver) -> Maker:
    return lambda: solver


_MAKERS: Mapping[str, Maker] = {
    **dict.fromkeys(("DDPMScheduler", "DDPMParallelScheduler", "UnCLIPScheduler"), _ddpm),
    **dict.fromkeys(("DDIMScheduler", "DDIMParallelScheduler", "RePaintScheduler"), _ddim),
    "DDIMInverseScheduler": ddim_inversion,
    "EulerAncestralDiscreteScheduler": _always(ddim(1.0)),
    "CogVideoXDDIMScheduler": _always(DDIM),
    "CogVideoXDPMScheduler": _always(sde_dpm_solver("data", 2, "midpoint", lower_order_final=False)),
    "PNDMScheduler": _pndm,
    "IPNDMScheduler": partial(ipndm, 4),
    "LMSDiscreteScheduler": partial(lms, 4),
    **dict.fromkeys(("EulerDiscreteScheduler", "EDMEulerScheduler"), _always(EULER_SOLVER)),
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
    "FlowMatchLCMScheduler": _always(consistency()),
    "LCMScheduler": _lcm,
    "TCDScheduler": _tcd,
    "HeunDiscreteScheduler": _always(EDM_HEUN),
    "FlowMatchHeunDiscreteScheduler": _always(FLOW_HEUN),
    "KDPM2DiscreteScheduler": _always(dpm_2()),
    "KDPM2AncestralDiscreteScheduler": _always(dpm_2(1.0)),
    **dict.fromkeys(("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"), _multistep),
    "DPMSolverMultistepInverseScheduler": _multistep_inverse,
    "DPMSolverSinglestepScheduler": _singlestep,
    "DPMSolverSDEScheduler": dpmpp_sde,
    "DEISMultistepScheduler": _deis,
    "UniPCMultistepScheduler": _unipc,
    "SASolverScheduler": _sa_solver,
}
"""The solver of each class, from those of its settings that choose it."""


def solver_of(config: Mapping[str, Any], *, eta: float | None = None) -> Solver:
    """Find the solver that a config asks for: the named one, or that of the class that it was written for.

    Args:
        config: keys of :class:`samplers.diffusers.FewStepScheduler`.
        eta: amount of fresh noise of a solver that :func:`takes_eta`; None for its own.

    Raises:
        ValueError: an unknown name, class, weights or option.
    """
    name, weights, options = config["solver"], config["weights"], dict(config["solver_options"] or {})
    if name is not None:
        return ddim(eta) if name == "ddim" and eta else solver_with_weights(name, weights)
    conventions = config["conventions"]
    if weights is not None:
        raise ValueError(f"weights={weights!r} without a solver: name one, or leave weights to the config's own class, "
                         "whose solver_options choose them")
    if conventions not in _MAKERS:
        raise ValueError(f"conventions={conventions!r} has no solver here: name a solver")
    known = _settings(conventions)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"solver_options={options!r}: {conventions} has no {', '.join(unknown)}; choose from "
                         f"{', '.join(known) or 'none'}")
    if eta is not None and "eta" in known:
        options["eta"] = eta
    settings = {key: config[key] for key in known if key in config}
    return _MAKERS[conventions](**settings, **options)


def takes_eta(config: Mapping[str, Any]) -> bool:
    """Whether the solver of a config adds an amount of noise that a pipeline may choose."""
    if config["solver"] is not None:
        return config["solver"] == "ddim"
    return "eta" in _settings(config["conventions"])


def solver_class(conventions: str) -> Maker | None:
    """What tells the solvers of two classes apart."""
    return _MAKERS.get(conventions)


def options_of(conventions: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """Pick out of a scheduler's config what chooses its solver."""
    return {key: source[key] for key in _settings(conventions) if key in source and key != "variance_type"}


def _settings(conventions: str) -> tuple[str, ...]:
    """Names of the settings of a class that choose its solver."""
    return tuple(inspect.signature(_MAKERS[conventions]).parameters) if conventions in _MAKERS else ()


def _weights(solver_type: str) -> str:
    # Settings of another class's solver, which a config may have inherited, mean the usual ones, as in diffusers.
    return "midpoint" if solver_type in ("logrho", "bh1", "bh2") else solver_type


def _variable(algorithm_type: str) -> str:
    if algorithm_type not in ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis"):
        raise ValueError(f"algorithm_type={algorithm_type!r}: choose 'dpmsolver', 'dpmsolver++', 'sde-dpmsolver' or "
                         "'sde-dpmsolver++'")
    return "noise" if algorithm_type.removeprefix("sde-") == "dpmsolver" else "data"
