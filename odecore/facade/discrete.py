"""States at times with the exact gradient of the steps between them, in a bounded number of stored states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from odecore.driver.moving import moving_end, moving_start
from odecore.facade.fixed import FixedGrid, Inside
from odecore.facade.odeint import Problem
from odecore.gradients.checkpointed import integrate_checkpointed, solve_checkpointed


class Budget(NamedTuple):
    """What needs a gradient, and how many states may be stored for it."""

    parameters: tuple[Tensor, ...]
    states: int | None
    memory: int | None


def discrete_states(
    problem: Problem, parameters: Iterable[Tensor], *, states: int | None = None, memory: int | None = None
) -> Tensor:
    """Integrate a problem through its times.

    Args:
        problem: what to integrate.
        parameters: what else than the state and the times needs a gradient.
        states: most states stored at one time; None stores all.
        memory: the same as a budget in bytes.

    Returns:
        States of the driver, of shape (times, samples, …).

    Raises:
        ValueError: SciPy's methods, which have no steps of ours; as :func:`~odecore.gradients.adjoint.discrete`.

    Cost: as :func:`~odecore.gradients.adjoint.discrete`; on a grid between each two times, where steps end too.
    """
    budget = Budget(tuple(parameters), states, memory)
    if problem.method is None:
        raise ValueError("method='scipy_solver' with adjoint_method='discrete': choose one of odecore.facade.methods")
    if isinstance(problem.options, FixedGrid):
        return _fixed(problem, problem.options, budget)
    return _adaptive(problem, budget)


def _adaptive(problem: Problem, budget: Budget) -> Tensor:
    run, t, times = problem.run(), problem.t, problem.t.detach()
    assert problem.method is not None
    y, found = moving_start(problem.system.field, problem.y0, t[0]), [problem.y0]
    for leg in run.legs(float(times[0]), float(times[-1])):
        due = times[leg.holds(times)]
        stops = torch.cat([due[due != leg.end], torch.tensor([leg.end], dtype=torch.float64)])
        states = solve_checkpointed(problem.method, run.field(leg, y), y, leg.begin, leg.end, ts=stops,
                                    **budget._asdict(), **run.arguments()).unbind(1)
        found += states[:len(due)]
        y = states[-1]
    field = problem.system.field
    return torch.stack([found[0], *(moving_end(field, *pair) for pair in zip(found[1:], t[1:], strict=True))])


def _fixed(problem: Problem, grid: FixedGrid, budget: Budget) -> Tensor:
    t, way = problem.t, torch.sign(problem.t[-1] - problem.t[0]).detach()
    nodes = grid.nodes(problem.system, problem.y0, t)
    assert problem.method is not None
    real = problem.y0.real.dtype if problem.y0.is_complex() else problem.y0.dtype
    method = Inside(problem.method, real) if grid.perturb else problem.method
    y, found = problem.y0, [problem.y0]
    for begin, end in zip(t[:-1], t[1:], strict=True):
        between = nodes[(way * nodes > way * begin) & (way * nodes < way * end)]
        times = torch.cat([begin.reshape(1), between, end.reshape(1)])
        y = integrate_checkpointed(method, problem.system.field, y, times, **budget._asdict())
        found.append(y)
    return torch.stack(found)
