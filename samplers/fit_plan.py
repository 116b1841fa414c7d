"""Fit a plan to one model: move its numbers until its samples end nearest to the converged solution."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from odecore.gradients.checkpointed import execute_checkpointed
from odecore.learn.callbacks import KeepBest, cosine_decay
from odecore.learn.fit import Callback, Optimizer, adam, fit, minibatches
from odecore.plan import Plan
from samplers.candidates import candidates, solver_of
from samplers.compile import compile_plan
from samplers.converged import converged
from samplers.counting import counted
from samplers.gradients import constant_network
from samplers.learn import LearnedPlan
from samplers.noise import SampleNoise
from samplers.objectives import Huber, Objective
from samplers.sample import sample
from samplers.teacher_path import TeacherPath, along
from scoremodels.fingerprint import fingerprint
from scoremodels.model import ScoreModel

FIT_SEED, VALIDATION_SEED = 1 << 21, 1 << 22
"""Seeds of the first noise of either kind: far from each other and from those of whatever is reported."""
HUBER = Huber()
"""The objective unless another is given."""


class FittedPlan(NamedTuple):
    """What :func:`fit_plan` returns.

    Attributes:
        plan: in plain numbers; the start where no plan met was better on the validation noises.
        before: objective of the start on the validation noises.
        after: of the plan.
        rms: RMS distance to the solution on the validation noises, before and after.
        improved: whether the plan is another than the start.
        evaluations: passes of single samples through the network, those of the solution included.
        seconds: in all.
        history: (step, objective on the validation noises).
    """

    plan: Plan
    before: float
    after: float
    rms: tuple[float, float]
    improved: bool
    evaluations: int
    seconds: float
    history: list[tuple[int, float]]


def fit_plan(
    model: ScoreModel,
    *,
    nfe: int,
    start: str | Plan = "dpm-solver++-3m",
    grid: str | None = None,
    free: Collection[str] = ("times", "clock", "weights"),
    reach: int | None = None,
    objective: Objective = HUBER,
    path: float = 0.0,
    ball: float = 0.0,
    towards_start: float = 1e-3,
    num: int = 64,
    validation: int = 32,
    seed: int = FIT_SEED,
    validation_seed: int = VALIDATION_SEED,
    condition: Tensor | None = None,
    steps: int = 200,
    batch: int = 16,
    optimizer: Optimizer | None = None,
    look: int = 20,
    states: int | None = None,
    callbacks: Sequence[Callback] = (),
    cache: Path | None = None,
    progress: str | None = None,
) -> FittedPlan:
    """Minimise an objective over the numbers of a plan by gradients through the sampler.

    With S(x_T; θ) the samples of the plan and Φ(x_T) the converged solution from the same noises, the loss is
    ``objective(S(x_T + r), Φ(x_T)) + path · (the same at the times between) + towards_start · |θ - θ_0|²``, r being a
    displacement for each noise within the ball. It is measured without the last two and without r on other noises:
    the plan is the best there of all that were looked at, the start among them.

    Args:
        model: the model; guidance wraps it, and the plan is then for that guidance.
        nfe: evaluations of the plan.
        start: name of a deterministic solver, or a plan of one, such as `calibrate` returns, of that many evaluations.
        grid: times of the start, for a solver given by its name; None for its usual ones.
        free: what to learn, see :class:`samplers.learn.LearnedPlan`.
        reach: see there.
        objective: one of :mod:`samplers.objectives`, or a function like these.
        path: weight of the objective at the accepted states between start and end, mean over these.
        ball: how far the student's start noise may lie from the teacher's, as an RMS of its unit-variance elements; a
            plan that is fitted to the nearest noise need not repeat every error of the way. 0 for the same noise.
        towards_start: weight of the mean square of what was added to the start's numbers.
        num: noises to fit to.
        validation: noises to judge by.
        seed: seed of the first noise to fit to; all seeds differ from those of whatever is reported.
        validation_seed: of the first to judge by.
        condition: labels to fit to and to judge by, in turn; None for none.
        steps: of the optimiser.
        batch: noises in a step.
        optimizer: Adam with a rate of 0.02 unless given; the rate falls along half a cosine.
        look: steps between validations.
        states: most solver states stored in the backward pass; None stores all.
        callbacks: further ones for :func:`odecore.learn.fit.fit`.
        cache: folder where the solution is kept for the next fit; None for memory alone.
        progress: what to call the bar on the console; None for no bar.

    Returns:
        The plan, how good it is and was, and what that cost.

    Raises:
        ValueError: an argument out of range, seeds that overlap, or a start that is no solver's plan for this model.

    Cost: ``128 (num + validation)`` evaluations for the solutions that are not kept; ``2 nfe steps batch`` with as many
        vector–Jacobian products as half of them; ``nfe validation`` a look. Memory: ``states`` states of 2 + nfe
        tensors like a batch, and the graph of one evaluation; all graphs with ``path``, less those of the network.

    Source: Tong et al. 2024 (LD3), arXiv:2405.15506, for the ball; Frankel et al. 2025 (S4S), arXiv:2502.17423.
    """
    began = time.perf_counter()
    _check(nfe=nfe, num=num, validation=validation, steps=steps, batch=batch, look=look)
    if ball < 0.0 or path < 0.0 or towards_start < 0.0:
        raise ValueError(f"ball={ball}, path={path}, towards_start={towards_start}: give numbers of at least 0")
    if batch > num:
        raise ValueError(f"batch={batch} is more than num={num} noises")
    if seed < validation_seed + validation and validation_seed < seed + num:
        raise ValueError(f"seed={seed} and validation_seed={validation_seed} share noises: set them further apart")
    plan = _named(model, start, nfe, grid) if isinstance(start, str) else start
    if plan.nfe != nfe:
        raise ValueError(f"nfe={nfe}, but start spends {plan.nfe}: give one of them alone")
    learned = LearnedPlan(model, plan, free=free, reach=reach)
    with counted(model) as count:
        lesson = _Lesson.of(model, num, seed, condition, cache)
        exam = _Lesson.of(model, validation, validation_seed, condition, cache)
        student = _Student(learned, lesson, ball)
        teacher = TeacherPath.of(model, num, seed, lesson.labels) if path > 0.0 else None
        network = constant_network(model)

        def loss(module: nn.Module, rows: tuple[Tensor]) -> dict[str, Tensor]:
            (chosen,) = rows
            x, labels = student.start(chosen), lesson.label(chosen)
            current = learned()
            predict = lambda point, t: network(point, t, labels)  # noqa: E731
            if teacher is None:
                parts: dict[str, Tensor] = {}
                samples = execute_checkpointed(current, predict, x, states=states)
            else:
                samples, parts = along(current, predict, x, teacher, chosen, objective, path)
            parts["objective"] = objective(samples, lesson.solution[chosen].to(samples))
            parts["departure"] = (towards_start * learned.departure()).to(samples)
            return parts

        def judged(module: nn.Module) -> float:
            samples = exam.run(model, learned.plan())
            return float(objective(samples, exam.solution.to(samples)))

        keep = KeepBest(judged, learned, every=look)
        before = _rms(exam.run(model, plan), exam.solution)
        fit(student, loss, minibatches(torch.arange(num), size=batch, seed=seed), steps=steps, clip=1.0,
            optimizer=optimizer or adam(0.02), callbacks=[cosine_decay(steps), keep, *callbacks], progress=progress)
        improved = keep.restore()
        found = learned.plan() if improved else plan
        after = _rms(exam.run(model, found), exam.solution) if improved else before
    spent = count.passes
    seconds = time.perf_counter() - began
    about = {"model": model.name, "weights": fingerprint(model), "start": str(plan.about.get("solver")), "nfe": nfe,
             "num": num, "seed": seed, "validation": validation, "validation_seed": validation_seed,
             "labels": None if condition is None else condition.tolist(), "objective": repr(objective)[:200],
             "free": sorted(free), "path": path, "ball": ball, "towards_start": towards_start, "steps": steps,
             "batch": batch, "before": keep.history[0][1], "after": keep.best[1], "rms_before": before,
             "rms_after": after, "improved": improved, "evaluations": spent, "seconds": round(seconds, 1)}
    made = replace(found, about={**found.about, "fit": about})
    return FittedPlan(made, keep.history[0][1], keep.best[1], (before, after), improved, spent, seconds, keep.history)


class _Lesson(NamedTuple):
    """Noises, their labels and where they lead."""

    noise: Tensor
    labels: Tensor | None
    solution: Tensor

    @classmethod
    def of(cls, model: ScoreModel, num: int, seed: int, condition: Tensor | None, cache: Path | None) -> _Lesson:
        """Solve from so many noises."""
        labels = None if condition is None else condition.flatten().repeat(-(-num // condition.numel()))[:num]
        solution = converged(model, num, seed, labels, folder=cache).samples
        noise = SampleNoise(range(seed, seed + num), model.shape, device=model.device)()
        return cls(noise, None if labels is None else labels.to(model.device), solution.float().to(model.device))

    def label(self, chosen: Tensor) -> Tensor | None:
        """Labels of some of the noises."""
        return None if self.labels is None else self.labels[chosen]

    def run(self, model: ScoreModel, plan: Plan) -> Tensor:
        """Samples of a plan from all the noises."""
        scale = model.schedule.prior_scale(float(plan.t_start))
        return sample(model, plan=plan, x_T=self.noise * scale, condition=self.labels).samples


class _Student(nn.Module):
    """A learned plan, and how far its noises lie from the teacher's."""

    def __init__(self, learned: LearnedPlan, lesson: _Lesson, ball: float) -> None:
        super().__init__()
        self.learned, self.lesson, self.ball = learned, lesson, ball
        self.scale = learned.compiler.schedule.prior_scale(learned.compiler.times[0])
        self.offsets = nn.Parameter(torch.zeros_like(lesson.noise), requires_grad=ball > 0.0)

    def start(self, chosen: Tensor) -> Tensor:
        """Start states of some noises, each displaced within the ball."""
        noise = self.lesson.noise[chosen]
        if self.ball > 0.0:
            offset = self.offsets[chosen]
            radius = offset.square().flatten(1).mean(1).add(1e-12).sqrt().reshape(-1, *[1] * (offset.ndim - 1))
            noise = noise + offset * (self.ball / radius.clamp_min(self.ball))
        return noise * self.scale


def _named(model: ScoreModel, solver: str, nfe: int, grid: str | None) -> Plan:
    """A solver's plan, which is called by the name that calibration knows it by."""
    if grid is not None:
        found = candidates(model, nfe, [solver], [grid])
        if not found:
            raise ValueError(f"start={solver!r} has no plan of nfe={nfe} on grid={grid!r}: choose another of them")
        plan = found[0].plan
    else:
        plan = compile_plan(solver_of(solver), model.schedule, nfe=nfe, prediction=model.prediction)
    return replace(plan, about={**plan.about, "solver": solver})


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number, at least 1")


def _rms(samples: Tensor, solution: Tensor) -> float:
    return (samples - solution.to(samples)).double().square().mean().sqrt().item()
