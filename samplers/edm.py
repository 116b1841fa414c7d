"""Classical Runge–Kutta methods over ρ = σ/α on ε, and over the time of a rectified flow on its velocity.

Over ρ these are Euler's method, the Heun method of EDM, and ρRK-DEIS. Over flow time, to which every
schedule can be translated, both ends are finite: a Heun step may start at pure noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from odecore.explicit.tableaus import EULER, HEUN, KUTTA3, MIDPOINT, RK4, Tableau
from odecore.plan import Row
from odecore.schemes import runge_kutta
from samplers.multistep import from_pure_noise, starts_at_pure_noise
from samplers.solver import Path, Solver


def _euler(path: Path, nfe: int) -> tuple[tuple[Row, ...], list[float]]:
    times = path.times(nfe)
    return _walk(path, "plain", times, [EULER] * nfe), times


def _runge_kutta(
    path: Path, nfe: int, *, variable: str, tableaus: Sequence[Tableau]
) -> tuple[tuple[Row, ...], list[float]]:
    """Runge–Kutta steps in one variable."""
    chosen = steps_that_spend(path, nfe, variable, tableaus)
    times = path.times(len(chosen))
    return _walk(path, variable, times, chosen), times


def steps_that_spend(path: Path, nfe: int, variable: str, tableaus: Sequence[Tableau]) -> list[Tableau]:
    """Choose steps of the last tableau, and Euler for the last one to σ = 0 and the first one from ρ = ∞.

    No slope can be had there, but for that of a flow at its start. ``tableaus[k - 1]`` has k stages; if a number of
    evaluations is left over, the one of so many stages takes one more step before the last.
    """
    euler_first = int(variable != "flow" and starts_at_pure_noise(path) and nfe > 1)
    euler_last = min(int(path.end < path.schedule.t_min), nfe - euler_first)
    whole, left_over = divmod(nfe - euler_first - euler_last, len(tableaus))
    middle = [tableaus[-1]] * whole + [*tableaus[left_over - 1: left_over]]
    return [EULER] * euler_first + middle + [EULER] * euler_last


def _walk(path: Path, variable: str, times: Sequence[float], tableaus: Sequence[Tableau]) -> tuple[Row, ...]:
    """Runge–Kutta rows; an Euler step from ρ = ∞ is taken in the data variable, where it is finite and the same."""
    first = from_pure_noise(path, times) if variable == "plain" else ()
    done = len(first)
    return first + runge_kutta(path.variable(variable), times[done:], tableaus[done:])


def _solver(name: str, variable: str, source: str, *tableaus: Tableau) -> Solver:
    build = partial(_runge_kutta, variable=variable, tableaus=tableaus)
    return Solver(name, tableaus[-1].order, build, variable, "karras" if variable == "plain" else "log-snr",
                  source=source)


_KARRAS = "Karras et al. 2022, arXiv:2206.00364"
_ZHANG = "Zhang & Chen 2022, arXiv:2204.13902, section 3.3"
_FLOW = "Lipman et al. 2023, arXiv:2210.02747; diffusers' FlowMatchHeunDiscreteScheduler"
EULER_SOLVER = Solver("euler", 1, _euler, "plain", grid="karras", source=_KARRAS)
EDM_HEUN = _solver("edm-heun", "plain", _KARRAS, EULER, HEUN)
RHO_RUNGE_KUTTA = (
    _solver("rho-midpoint", "plain", _ZHANG, EULER, MIDPOINT),
    _solver("rho-kutta3", "plain", _ZHANG, EULER, HEUN, KUTTA3),
    _solver("rho-rk4", "plain", _ZHANG, EULER, HEUN, KUTTA3, RK4),
)
"""ρRK-DEIS; its Heun method, ρ2Heun, is EDM's."""

FLOW_HEUN = _solver("flow-heun", "flow", _FLOW, EULER, HEUN)
