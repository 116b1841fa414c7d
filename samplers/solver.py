"""What a solver is: a few choices that turn a path and a number of evaluations into rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from odecore.plan import Plan, Row, Weight
from odecore.schemes import Variable
from samplers.grids import Grid, Times
from samplers.variables import VARIABLES
from scoremodels.schedule import NoiseSchedule

Network = Callable[[Tensor, Weight], Tensor]
"""A network with its condition: (point, time) -> raw prediction."""


@dataclass(frozen=True, slots=True)
class Path:
    """The way from noise to data that a solver is to walk.

    Args:
        schedule: noise schedule of the model.
        prediction: what its network predicts.
        grid: a grid function, or the times themselves.
        end: last time; ``schedule.t_clean`` to remove all noise, ``schedule.t_min`` to stop there.
    """

    schedule: NoiseSchedule
    prediction: str
    grid: Grid | Times
    end: float

    def times(self, steps: int) -> list[float]:
        """The ``steps + 1`` decreasing times of the grid.

        Raises:
            ValueError: custom times of another length, or a grid that has no such number of distinct times.
        """
        if callable(self.grid):
            times = self.grid(self.schedule, steps, self.end)
        else:
            times = self.grid
            if len(times) != steps + 1:
                raise ValueError(f"grid has {len(times)} times, but the solver takes {steps} steps at this nfe and "
                                 f"needs {steps + 1}: pass that many times, the last being the end")
        if not np.all(np.isfinite(times)):
            raise ValueError(f"grid={np.asarray(times).tolist()}: all times must be finite")
        if not np.all(np.diff(times) < 0):
            raise ValueError(f"grid={np.asarray(times).tolist()}: times must decrease strictly, from noise to data; "
                             "ask for fewer evaluations or another grid")
        return [float(t) for t in times]

    def variable(self, name: str) -> Variable:
        """The change of variables called "data", "noise", "plain" or "flow".

        Raises:
            ValueError: another name, which a solver has that brings a variable of its own.
        """
        if name not in VARIABLES:
            raise ValueError(f"variable={name!r} belongs to a solver that cannot be wrapped: choose a solver over one "
                             f"of {', '.join(VARIABLES)}")
        return VARIABLES[name](self.schedule, self.prediction)


@dataclass(frozen=True, slots=True)
class Solver:
    """A fixed-grid sampler.

    Args:
        name: its name in the registry.
        order: order of convergence.
        build: ``(path, nfe) -> (rows, times)``, with exactly ``nfe`` rows.
        variable: "data", "noise", "plain" or "flow", what it interpolates; or the name of a variable of its own.
        grid: name of its usual grid on variance-preserving schedules.
        end: "clean" or "minimum"; where it usually ends.
        sigma_grid: name of its usual grid on schedules in σ (EDM, VE).
        rule: the quadrature of its predictions, a name out of :data:`samplers.dpm_solver.RULES`; None for a solver
            of one row a step that has another, and is built anew for a run that starts in the middle.
        least_nfe: fewest evaluations that it can spend.
        stochastic: whether its rows add noise.
        renoises: whether that is noise of the forward process between steps of the ODE, so that the order is that of
            the marginals; else the noise belongs to a reverse SDE, and the order is that of its drift.
        enter: ``(path, nfe) -> factor`` from the initial state to the first point, see :class:`odecore.plan.Plan`;
            None for 1.
        source: the paper.
    """

    name: str
    order: int
    build: Callable[[Path, int], tuple[tuple[Row, ...], list[float]]]
    variable: str
    grid: str = "log-snr"
    end: str = "clean"
    sigma_grid: str = "karras"
    rule: str | None = "exact"
    least_nfe: int = 1
    stochastic: bool = False
    source: str = ""
    enter: Callable[[Path, int], float] | None = None
    renoises: bool = False


@dataclass(frozen=True, slots=True)
class AdaptiveSolver:
    """A sampler that chooses its own steps; its number of evaluations is known only afterwards.

    Args:
        name: its name in the registry.
        order: order of the higher of its two estimates.
        source: the paper.
    """

    name: str
    order: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class SelectingSolver(AdaptiveSolver):
    """A sampler with the times of a fixed grid, whose weights depend on the samples: it has no plan of its own.

    Args:
        base: the solver under whose plan it runs.
        wrap: ``(network, plan, schedule, prediction) -> network``, made anew for each run of the base's plan.
    """

    base: Solver = field(kw_only=True)
    wrap: Callable[[Network, Plan, NoiseSchedule, str], Network] = field(kw_only=True)
