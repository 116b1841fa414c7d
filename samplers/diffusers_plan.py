"""What the config of a scheduler comes to: its schedule, its solver, and the plans and runs that follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from odecore.plan import Plan, Row, Weight, combine
from samplers.auto import AutoSolver
from samplers.compile import compile_plan
from samplers.diffusers_batch import numbers_side_by_side, rows_side_by_side
from samplers.diffusers_clock import Clock
from samplers.diffusers_fixed import fixed_plan, rows_from
from samplers.diffusers_run import Run
from samplers.diffusers_solver import solver_of, takes_eta
from samplers.diffusers_spacing import CONSISTENCY_CLASSES, EDM_CLASSES, is_flow, spacing, times_of_sigmas
from samplers.grids import Times
from samplers.registry import grid_named
from samplers.restart import restart, stands_alone
from samplers.solver import Solver
from samplers.thresholding import threshold
from scoremodels.diffusers_config import schedule_from_diffusers
from scoremodels.schedule import NoiseSchedule

_DIRECTION_UNCLIPPED = ("DDIMScheduler", "DDIMParallelScheduler")
"""Classes that clip the predicted sample and take the direction to the noise from the unclipped one."""

_REMEMBERED = 8
"""Plans that a recipe keeps; a pipeline asks for the same one again and again."""

Limit = Callable[[Tensor], Tensor]


class Beside(NamedTuple):
    """What a run needs of a row besides the plan; each a number, or a tensor with one for each sample.

    Attributes:
        point, output: weights in the predicted sample.
        share: how much of the predicted sample is clipped.
        point_seen, output_seen: weights of the point, and of the output (or the clipped sample), in what
            consistency pipelines call the denoised sample.
    """

    point: Weight = 0.0
    output: Weight = 0.0
    share: Weight = 0.0
    point_seen: Weight = 0.0
    output_seen: Weight = 0.0


class Wish(NamedTuple):
    """What a pipeline asks of the next run.

    Attributes:
        nfe: network evaluations; None if times or levels are given.
        timesteps: what the network is to be told, or None.
        sigmas: noise levels, or None.
        mu: shift of a flow.
        original_steps: steps that a consistency model was distilled from; None for its config's.
        strength: share of these to start from.
    """

    nfe: int | None
    timesteps: Times | None = None
    sigmas: Times | None = None
    mu: float | None = None
    original_steps: int | None = None
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """A scheduler's config, understood.

    Args:
        config: keys of :class:`samplers.diffusers.FewStepScheduler`.
        schedule: noise schedule of the model.
        network: what the network predicts.
        prediction: what the plan reads in its place: the sample, if that is clipped.
        solver: what the config asks for.
        fixed: the plan that the config brings, in place of what the solver would compile.
        clock: how a pipeline counts the schedule's times.
        limit: what clips the predicted sample, or None.
        compiled: the last plans that were compiled, by what was wished for.
    """

    config: Mapping[str, Any]
    schedule: NoiseSchedule
    network: str
    prediction: str
    solver: Solver
    fixed: Plan | None
    clock: Clock
    limit: Limit | None
    compiled: dict[tuple[object, ...], Plan] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Recipe:
        """Understand a config.

        Raises:
            ValueError: an argument is unknown or does not fit the others.
        """
        _check(config)
        schedule, network = schedule_from_diffusers({**config, "_class_name": config["conventions"]})
        limit = _limit(config)
        if config["grid"] is not None:
            grid_named(config["grid"])
        elif not config["use_dynamic_shifting"]:
            spacing(config)
        clock = Clock(schedule, config["conventions"] in EDM_CLASSES, is_flow(config))
        prediction = network if limit is None else "sample"
        fixed = fixed_plan(config, schedule, network, over_sample=limit is not None)
        return cls(config, schedule, network, prediction, solver_of(config), fixed, clock, limit)

    def plan(self, wish: Wish) -> Plan:
        """Compile the plan of a run, or find that of an earlier run with the same wish.

        Raises:
            ValueError: no count, contradicting ones, or times that the solver cannot use.
        """
        key = tuple((v.shape, v.tobytes()) if isinstance(v, np.ndarray) else repr(v) for v in wish)
        if key not in self.compiled:
            while len(self.compiled) >= _REMEMBERED:
                del self.compiled[next(iter(self.compiled))]
            self.compiled[key] = self._planned(wish)
        return self.compiled[key]

    def _planned(self, wish: Wish) -> Plan:
        if wish.timesteps is not None and wish.sigmas is not None:
            raise ValueError("timesteps and sigmas are both given: pass one of them")
        if self.fixed is not None:
            return self._as_brought(self.fixed, wish)
        custom = None
        if wish.timesteps is not None:
            custom = self.clock.times(wish.timesteps)
        elif wish.sigmas is not None:
            custom = times_of_sigmas(self.config, self.schedule, wish.sigmas, wish.mu)
        elif wish.nfe is None:
            raise ValueError("num_inference_steps=None: say how many network evaluations to spend")
        plan = self._compiled(wish, custom)
        if wish.nfe not in (None, plan.nfe):
            raise ValueError(f"num_inference_steps={wish.nfe}, but {plan.nfe} times are given: leave it out")
        if self.limit is not None:
            self._to_sample(plan.rows)  # now, and not in the first step, to say that it cannot be
        return plan

    def run(
        self, plan: Plan, begins: Sequence[int], like: Tensor, *, eta: float | None = None,
        clipped_direction: bool = False,
    ) -> Run:
        """Start a plan at one of its rows, or at one for each sample.

        Args:
            plan: made by this recipe.
            begins: index of the row, or as many as the batch has samples.
            like: the state, of shape (B, …).
            eta: amount of fresh noise, for solvers that take it; None for the solver's own.
            clipped_direction: whether DDIM's direction to the noise is that of the clipped sample.

        Raises:
            ValueError: a row where the plan cannot start, or different ones where the network predicts its variance.
        """
        solver = self.solver
        if eta is not None and takes_eta(self.config) and self.fixed is None:
            solver = solver_of(self.config, eta=eta)
            plan = compile_plan(solver, self.schedule, nfe=plan.nfe, grid=plan.about["times"],  # type: ignore[arg-type]
                                prediction=self.prediction)
        rests = {begin: self._rows_from(plan, solver, begin) for begin in set(begins)}
        beside = {begin: self._beside(solver, rows, clipped_direction) for begin, rows in rests.items()}
        first = min(begins)
        if len(rests) == 1:
            rows, numbers = rests[first], beside[first]
            spread = self._spread(solver, (*plan.rows[:first], *rows))
        else:
            if self._spread(solver, plan.rows) is not None:
                raise ValueError(f"variance_type={self.config['variance_type']!r}: the noise of a learned variance "
                                 "needs one timestep for the whole batch; set variance_type=None")
            rows, spread = rows_side_by_side([rests[begin] for begin in begins], like), None
            numbers = [Beside(*n) for n in numbers_side_by_side([beside[begin] for begin in begins], like)]
        # Indices count from the plan's first row.
        skipped = [Beside()] * first
        limit, shows = self.limit, self.config["conventions"] in CONSISTENCY_CLASSES and self.fixed is None
        return Run((*plan.rows[:first], *rows), first, plan.depth,
                   None if limit is None else partial(_limited, numbers=[*skipped, *numbers], limit=limit), spread,
                   [(n.point_seen, n.output_seen) for n in (*skipped, *numbers)] if shows else None)

    def _rows_from(self, plan: Plan, solver: Solver, begin: int) -> tuple[Row, ...]:
        if self.fixed is not None:
            return rows_from(plan, begin)
        if stands_alone(plan.rows, begin):
            return plan.rows[begin:]
        return restart(plan, begin, solver, self.schedule, self.prediction)

    def _beside(self, solver: Solver, rows: Sequence[Row], clipped_direction: bool) -> list[Beside]:
        shows = self.config["conventions"] in CONSISTENCY_CLASSES
        if self.limit is None and not shows:
            return [Beside()] * len(rows)
        unclipped = (self.config["conventions"] in _DIRECTION_UNCLIPPED and not clipped_direction
                     and self.fixed is None and solver.name.startswith("ddim"))
        numbers = []
        for row, to_sample in zip(rows, self._to_sample(rows), strict=True):
            share = float(self.schedule.alpha(float(row.t_next))) / float(row.anchor[2]) if unclipped else 1.0
            read = (0.0, 1.0) if self.limit is not None else to_sample
            numbers.append(Beside(*to_sample, share, *(row.to_prediction if solver.name == "lcm" else read)))
        return numbers

    def _to_sample(self, rows: Sequence[Row]) -> list[tuple[float, float]]:
        return [self.schedule.conversion(self.network, "sample", float(row.t)) for row in rows]

    def _spread(self, solver: Solver, rows: Sequence[Row]) -> Callable[[int, Tensor], Tensor] | None:
        kind = self.config["variance_type"]
        if kind not in ("learned", "learned_range") or solver.name != "ddpm":
            return None
        least = [float(row.noise) for row in rows]
        if kind == "learned":
            return lambda index, variance: variance.sqrt() / least[index]
        largest = [_forward_noise(self.schedule, row) for row in rows]
        return lambda index, fraction: torch.exp(math.log(largest[index] / least[index]) * (fraction + 1.0) / 2.0)

    def _compiled(self, wish: Wish, custom: Times | None) -> Plan:
        config = self.config
        end = "clean" if config["final_sigmas_type"] == "zero" else "minimum"
        if custom is None:
            assert wish.nfe is not None
            grid = config["grid"]
            if grid is None and not isinstance(self.solver, AutoSolver):  # which brings its own
                grid = spacing(config, wish.mu, original=wish.original_steps, strength=wish.strength)
            return compile_plan(
                self.solver, self.schedule, nfe=wish.nfe, grid=grid, prediction=self.prediction, end=end)
        if custom.ndim != 1 or len(custom) == 0:
            raise ValueError(f"the times given have shape {custom.shape}: give at least one, in one dimension")
        last = self.schedule.t_clean if end == "clean" else self.schedule.t_min
        times = custom if custom[-1] <= last else np.append(custom, last)
        self._check_stages(len(times) - 1)
        return compile_plan(self.solver, self.schedule, nfe=len(times) - 1, grid=times, prediction=self.prediction)

    def _check_stages(self, nfe: int) -> None:
        """Refuse a solver that places stages between the times of its grid."""
        usual = compile_plan(self.solver, self.schedule, nfe=max(nfe, 3), grid="time", prediction=self.prediction)
        if len(usual.about["times"]) <= usual.nfe:  # type: ignore[arg-type]
            raise ValueError(f"solver={self.solver.name!r} with weights={self.config['weights']!r} places its own "
                             "stages between times, so it takes no custom timesteps or sigmas: choose "
                             "weights='midpoint', or a multistep solver")

    def _as_brought(self, plan: Plan, wish: Wish) -> Plan:
        """The plan as it is, whatever times a pipeline gives, if only they are as many."""
        times = wish.timesteps if wish.timesteps is not None else wish.sigmas
        if (asked := wish.nfe if times is None else len(times)) not in (None, plan.nfe):
            raise ValueError(f"num_inference_steps={asked}, but the scheduler's plan spends {plan.nfe} network "
                             f"evaluations: ask for {plan.nfe}, or make a plan for {asked}")
        return plan


def _forward_noise(schedule: NoiseSchedule, row: Row) -> float:
    """Standard deviation of the noise that the forward process adds between the times of a row."""
    t, s = float(row.t), float(row.t_next)
    kept = float(schedule.alpha(t)) / float(schedule.alpha(s)) * float(schedule.sigma(s))
    return math.sqrt(float(schedule.sigma(t)) ** 2 - kept**2)


def _limited(index: int, point: Tensor, raw: Tensor, *, numbers: Sequence[Beside], limit: Limit) -> Tensor:
    """The clipped sample; and beyond it, as far as the plan's weight of the sample exceeds α, as DDIM has it."""
    row = numbers[index]
    free, share = combine((row.point, row.output), (point, raw.to(point.dtype))), row.share
    clipped = limit(free)
    return clipped if isinstance(share, float) and share == 1.0 else free + share * (clipped - free)


def _limit(config: Mapping[str, Any]) -> Limit | None:
    if config["thresholding"]:
        return partial(threshold, quantile=config["dynamic_thresholding_ratio"], maximum=config["sample_max_value"])
    if config["clip_sample"]:
        return partial(torch.clamp, min=-config["clip_sample_range"], max=config["clip_sample_range"])
    return None


def _check(config: Mapping[str, Any]) -> None:
    if config["final_sigmas_type"] not in ("zero", "sigma_min"):
        raise ValueError(f"final_sigmas_type={config['final_sigmas_type']!r}: choose 'zero' or 'sigma_min'")
    ratio, largest = config["dynamic_thresholding_ratio"], config["sample_max_value"]
    if not 0.0 < ratio <= 1.0 or not largest >= 1.0:
        raise ValueError(f"dynamic_thresholding_ratio={ratio}, sample_max_value={largest}: the first lies above 0 and "
                         "is at most 1, the second is at least 1")
    if not config["clip_sample_range"] > 0.0:
        raise ValueError(f"clip_sample_range={config['clip_sample_range']}: give a positive number")
