"""A plan whose numbers are parameters, so that gradients through the sampler can move them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from odecore.plan import Plan, Row, Weight
from samplers.candidates import compiled_on, solver_of
from samplers.grids import Times
from samplers.solver import Path
from scoremodels.follow import followed
from scoremodels.model import ScoreModel

FREE = ("times", "clock", "weights", "scale")
"""What may be learned: the times, those that the network is told, the weights of predictions, the last scale."""

_STEP = 1e-4
"""Step in log(σ/α) of the central differences of a solver's numbers."""
_HEADROOM = 4.0
"""From the first free time up to pure noise in log(σ/α), where that has no finite one."""
_LEAST_GAP = 1e-3
"""Between neighbouring times in log(σ/α)."""


class LearnedPlan(nn.Module):
    r"""A solver's plan on learned times, with learned differences of its weights; it begins as that solver.

    With κ = log(σ/α), whose first value is that of the start,

    * times: ``κ_{i+1} = κ_i - exp(g_i)``, so that they decrease whatever g is; everything that the solver computes
      from its times (weights, conversions) is computed from these;
    * clock: the network is told the time at ``κ + d`` of its row in place of that at κ;
    * weights: a row that weighs the predictions ``m_0, m_1, …`` of this row and those before by ``w_j`` weighs them by
      ``w_j + S c_j`` with ``S = |Σ w_j|`` and ``c_0 = -Σ_{j>0} c_j``: the sum stays, and with it the exact solution for
      a constant prediction; predictions that the solver has forgotten are remembered;
    * scale: the last state is multiplied by ``e^s``.

    Args:
        model: the model that the plan is for; only its schedule and what it predicts are read.
        start: a plan of a deterministic solver known by its name to :func:`samplers.candidates.solver_of`, with times.
        free: what to learn, some of ``FREE``; the rest stays as it is, or follows from the times.
        reach: how many earlier predictions learned weights read at most; None for all.

    Raises:
        ValueError: nothing or something unknown to learn, or a plan that the solver of its name does not give.

    Cost: to make a plan, ``2 n + 1`` compilations of the solver for n free times, on the host.

    Source: learned times: Tong et al. 2024 (LD3), arXiv:2405.15506; learned weights: Shaul et al. 2024 (bespoke
        non-stationary solvers), arXiv:2403.01329; both, and times of the network's own: Frankel et al. 2025 (S4S),
        arXiv:2502.17423.
    """

    def __init__(
        self, model: ScoreModel, start: Plan, *, free: Collection[str] = ("times", "clock", "weights"),
        reach: int | None = None,
    ) -> None:
        super().__init__()
        if not free or not set(free) <= set(FREE):
            raise ValueError(f"free={tuple(free)!r}: choose some of {', '.join(FREE)}")
        if reach is not None and reach < 1:
            raise ValueError(f"reach={reach}: give 1 or more earlier predictions, or None for all")
        self.compiler = _Compiler(model, start)
        levels, rows = self.compiler.start, start.rows
        top = self.compiler.top if math.isfinite(self.compiler.top) else float([*levels, 0.0][0]) + _HEADROOM
        gaps = -np.diff(levels, prepend=top)
        self.gaps = _parameter(np.log(np.maximum(gaps, _LEAST_GAP)), "times" in free)
        self._start, self._first = torch.from_numpy(levels.copy()), self.gaps.detach().clone()
        self.shifts = _parameter(np.zeros(len(rows)), "clock" in free)
        self.scale = _parameter(np.zeros(()), "scale" in free)
        most = len(rows) if reach is None else reach
        self.corrections = nn.ParameterDict({
            f"{name}_{index}": _parameter(np.zeros(min(index, most)), True)
            for index, row in enumerate(rows) for name in ("anchor", "point")
            if "weights" in free and index > 0 and getattr(row, name) != (1.0,)})
        if not any(p.numel() for p in self.parameters() if p.requires_grad):
            raise ValueError(f"free={tuple(free)!r}: a plan of nfe={start.nfe} has no such numbers to learn")

    def forward(self) -> Plan:
        """The plan, with tensors for numbers, whose gradients lead to the parameters."""
        table = self.compiler.table(self.levels())
        rows = [replace(row, t=self._told(index, row.t, level), anchor=self._corrected(f"anchor_{index}", row.anchor),
                        point=self._corrected(f"point_{index}", row.point))
                for index, (row, level) in enumerate(zip(table.rows, table.levels, strict=True))]
        if self.scale.requires_grad:
            rows[-1] = replace(rows[-1], anchor=tuple(weight * self.scale.exp() for weight in rows[-1].anchor))
        return Plan(tuple(rows), self.compiler.times[0], None, {}, table.entry)  # type: ignore[arg-type]

    def levels(self) -> Tensor:
        """log(σ/α) of the times between the first and the last, decreasing, none below the training's least noise."""
        moved = torch.cumsum(self.gaps.exp(), 0) - torch.cumsum(self._first.exp(), 0)
        least = self.compiler.bottom + _LEAST_GAP * torch.arange(len(moved) - 1, -1, -1, dtype=torch.float64)
        return torch.maximum(self._start - moved, torch.minimum(least, self._start))

    @torch.no_grad()
    def plan(self, **about: object) -> Plan:
        """The plan in plain numbers, checked for consistency; ``about`` says what to add to its description."""
        compiled = self.compiler.plan(self.levels().numpy())
        factor = float(self.scale.exp())
        exact = None if compiled.exact is None else (factor * compiled.exact[0], factor * compiled.exact[1])
        rows = tuple(Row(*(_plain(getattr(row, name)) for name in Row.__dataclass_fields__)) for row in self().rows)
        learned = {name: p.tolist() for name, p in self.named_parameters() if p.requires_grad and p.numel()}
        return replace(compiled, rows=rows, exact=exact, about={**compiled.about, "learned": learned, **about})

    def departure(self) -> Tensor:
        """Mean square of what was added to the start's numbers, in their own units."""
        moved = [self.gaps - self._first, self.shifts, self.scale.reshape(1), *self.corrections.values()]
        return torch.cat(moved).square().mean()

    def _told(self, index: int, t: Weight, level: Weight) -> Weight:
        """The time that the network is told in a row whose own has this log(σ/α)."""
        own = float(_detached(level))
        if not self.shifts.requires_grad or math.isinf(own):
            return t
        lowest, highest = min(own, self.compiler.bottom), max(own, self.compiler.top)
        shown = torch.clamp(level + self.shifts[index], lowest, highest)
        told = followed(self.compiler.times_at, shown, high=highest)
        # The way to κ and back is rounded: a row whose shift is zero has the solver's own time to the last digit.
        return torch.where(self.shifts[index] == 0.0, _detached(t) + told - told.detach(), told)

    def _corrected(self, name: str, weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
        if name not in self.corrections:
            return weights
        c = self.corrections[name]
        sums = [torch.as_tensor(w, dtype=torch.float64) for w in weights[2:]]
        size = torch.stack(sums).sum().abs()
        changes = [-c.sum(), *c]
        return (*weights[:2], *((sums[j] if j < len(sums) else 0.0) + (size * changes[j] if j < len(changes) else 0.0)
                                for j in range(max(len(sums), len(changes)))))


class _Table(NamedTuple):
    """A solver's rows with tensors for whatever changes with the levels, log(σ/α) of each row's time, the entry."""

    rows: list[Row]
    levels: list[Weight]
    entry: Weight


class _Compiler:
    """Compiles one solver on times given by their log(σ/α), the first and the last left out."""

    def __init__(self, model: ScoreModel, start: Plan) -> None:
        name, times = start.about.get("solver"), start.about.get("times")
        if not isinstance(name, str) or not isinstance(times, Sequence):
            raise ValueError("start has no solver and times in its about: give a plan of compile_plan or calibrate")
        self.model, self.name, self.nfe = model, name, start.nfe
        self.solver, self.schedule = solver_of(name), model.schedule
        self.times = [float(t) for t in times]
        self.top, self.bottom = self._level(self.schedule.t_max), self._level(self.schedule.t_min)
        self.start = np.array([self._level(t) for t in self.times[1:-1]])
        rows, _ = self._built(self.start)
        given, ours = ([w for row in some for part in _parts(row, 2 + start.nfe) for w in part]
                       for some in (start.rows, rows))
        if not np.allclose(given, ours, 1e-9, 1e-12):
            raise ValueError(f"start is not what solver {name!r} gives on its times for this model: give a plan of "
                             "compile_plan or calibrate for it, none of another model, nor a learned one")

    def times_at(self, levels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Network times at log(σ/α)."""
        return np.asarray(self.schedule.time_of_ratio(np.exp(levels)))

    def plan(self, levels: NDArray[np.float64]) -> Plan:
        """The solver's own plan there, checked."""
        plan = compiled_on(self.model, self.name, self.nfe, self._on(levels))
        return replace(plan, about={**plan.about, "solver": self.name})

    def table(self, levels: Tensor) -> _Table:
        """What the solver gives at the levels, with its derivatives by central differences."""
        at = levels.detach().numpy()
        rows, entry = self._built(at)
        values = self._numbers(rows, entry)
        numbers: list[Weight] = values.tolist()
        if levels.requires_grad and torch.is_grad_enabled():
            jacobian = torch.from_numpy(np.stack([self._slope(at, i) for i in range(len(at))], 1))
            moving = torch.from_numpy(values) + jacobian @ (levels - levels.detach())
            numbers = [moving[k] if jacobian[k].any() else value for k, value in enumerate(numbers)]
        told = [numbers.pop() for _ in rows][::-1]
        last = numbers.pop()
        made, left = [], iter(numbers)
        for index, row in enumerate(rows):
            t, after, a, b = (next(left) for _ in range(4))
            anchor, point = (tuple(next(left) for _ in range(3 + index)) for _ in range(2))
            made.append(Row(t, after, (a, b), anchor, point, row.noise, row.offset))
        return _Table(made, told, last)

    def _slope(self, at: NDArray[np.float64], i: int) -> NDArray[np.float64]:
        above, below = at.copy(), at.copy()
        above[i] += _STEP
        below[i] = max(at[i] - _STEP, min(self.bottom, at[i]))
        with np.errstate(invalid="ignore"):
            change = self._numbers(*self._built(above)) - self._numbers(*self._built(below))
        return np.nan_to_num(change / (above[i] - below[i]))

    def _built(self, levels: NDArray[np.float64]) -> tuple[tuple[Row, ...], float]:
        times = self._on(levels)
        path = Path(self.schedule, self.model.prediction, times, float(times[-1]))
        rows, _ = self.solver.build(path, self.nfe)
        return rows, 1.0 if self.solver.enter is None else self.solver.enter(path, self.nfe)

    def _numbers(self, rows: Sequence[Row], entry: float) -> NDArray[np.float64]:
        """All numbers, of which there are as many for any levels."""
        numbers = [w for index, row in enumerate(rows) for part in _parts(row, 3 + index) for w in part]
        return np.array([*numbers, entry, *(self._level(float(row.t)) for row in rows)])

    def _on(self, levels: NDArray[np.float64]) -> Times:
        """All times; those of the start as they were given, to the last digit."""
        inner = np.where(levels == self.start, self.times[1:-1], self.times_at(levels))
        return np.array([self.times[0], *inner, self.times[-1]])

    def _level(self, t: float) -> float:
        with np.errstate(divide="ignore"):
            return float(np.log(self.schedule.ratio(t)))


def _parts(row: Row, length: int) -> tuple[tuple[float, ...], ...]:
    """The numbers of a row, weights padded with zeros."""
    padded = (tuple(float(w) for w in (*weights, *[0.0] * (length - len(weights))))
              for weights in (row.anchor, row.point))
    return (float(row.t), float(row.t_next)), tuple(map(float, row.to_prediction)), *padded


def _detached(t: Weight) -> Weight:
    return t.detach() if isinstance(t, Tensor) else t


def _parameter(values: NDArray[np.float64], learned: bool) -> nn.Parameter:
    # In float64, as coefficients are: they meet the state's dtype only where the plan runs.
    return nn.Parameter(torch.tensor(values, dtype=torch.float64), requires_grad=learned)


def _plain(value: Any) -> Any:
    """Numbers for tensors."""
    return tuple(map(_plain, value)) if isinstance(value, tuple) else float(value)
