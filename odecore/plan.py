"""A fixed-grid solver as a table of numbers, one row per network evaluation, and its executor.

Every explicit fixed-grid method on ``dx/dt = L(t) x + N(t, x)`` with known ``L`` is a *general
linear method*: each new state is a linear combination of a few stored tensors, with weights that
depend on the grid but not on the data. A scheme compiles its grid into a :class:`Plan` once, on
the host, in float64; :func:`execute` runs any plan.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from odecore.registers import Registers as Registers
from odecore.registers import Weight as Weight
from odecore.registers import combine as combine


@dataclass(frozen=True, slots=True)
class Row:
    """What happens around one network evaluation ``raw = network(point, t)``.

    In this order, with ``h_1, h_2, …`` the predictions of earlier rows, newest first::

        prediction  = a · point + b · raw                          (a, b) = to_prediction
        anchor'     = anchor-weights · (anchor, point, prediction, h_1, h_2, …) + noise · ε + offset
        point'      = point-weights  · (anchor', point, prediction, h_1, h_2, …)

    Args:
        t: time at which the network is evaluated.
        t_next: time that the anchor (the last accepted state) holds after this row.
        to_prediction: turns the raw network output into the quantity that the scheme interpolates.
        anchor: weights of the new accepted state; ``(1.0,)`` keeps it.
        point: weights of the next evaluation point, over the *new* anchor; ``(1.0,)`` puts it there.
        noise: standard deviation of the fresh noise that is added to the new anchor.
        offset: what is added to the new anchor in any case, of problems with a known inhomogeneous part.
    """

    t: Weight
    t_next: Weight
    to_prediction: tuple[Weight, Weight] = (0.0, 1.0)
    anchor: tuple[Weight, ...] = (1.0,)
    point: tuple[Weight, ...] = (1.0,)
    noise: Weight = 0.0
    offset: Weight = 0.0

    def __post_init__(self) -> None:
        for name in ("t", "t_next", "noise", "offset"):
            object.__setattr__(self, name, _number(getattr(self, name)))
        for name in ("to_prediction", "anchor", "point"):
            object.__setattr__(self, name, tuple(_number(w) for w in getattr(self, name)))
        object.__setattr__(self, "anchor", _trimmed(self.anchor))
        object.__setattr__(self, "point", _trimmed(self.point))
        if len(self.to_prediction) != 2:
            raise ValueError(f"to_prediction={self.to_prediction}: give two weights, of the point and of the output")

    @property
    def noisy(self) -> bool:
        """Whether the row adds noise."""
        return isinstance(self.noise, Tensor) or self.noise != 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """A compiled solver: rows of weights, made once, and valid for any state shape, dtype and device.

    Args:
        rows: one :class:`Row` per network evaluation, in order.
        t_start: time of the initial state.
        exact: ``(A, B)`` such that for a *constant* prediction m the exact solution at the end is
            ``A x_0 + B m``; the plan checks that its rows, without offsets, reproduce it. None skips the check.
        about: what the plan was compiled from (solver, grid, schedule, …), JSON values only.
        entry: factor that takes the initial state to the first point; other than 1 where steps in closed
            form come before the first row.

    Raises:
        ValueError: no rows, non-finite numbers, accepted times that turn back, or rows that do
            not solve the problem with constant prediction.

    Source: general linear methods, J. C. Butcher (1966), doi:10.1090/S0025-5718-1966-0189251-X.
    """

    rows: tuple[Row, ...]
    t_start: Weight
    exact: tuple[Weight, Weight] | None = None
    about: Mapping[str, object] = field(default_factory=dict)
    entry: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "t_start", _number(self.t_start))
        object.__setattr__(self, "about", dict(self.about))
        if self.exact is not None:
            object.__setattr__(self, "exact", tuple(_number(w) for w in self.exact))
        if not self.rows:
            raise ValueError("rows=(): a plan needs at least one row")
        _check_finite(self)
        _check_order_of_times(self)
        if self.exact is not None:
            _check_consistency(self)

    @property
    def nfe(self) -> int:
        """Number of network evaluations: one per row."""
        return len(self.rows)

    @property
    def depth(self) -> int:
        """Number of earlier predictions that any row reads."""
        return max(0, *(max(len(row.anchor), len(row.point)) - 3 for row in self.rows))

    def to_json(self) -> str:
        """Write the plan as JSON; :meth:`from_json` restores every float64 bit."""
        return json.dumps({
            "format": "fewstep-plan-1", "about": dict(self.about), "t_start": _encode(self.t_start),
            "exact": None if self.exact is None else [_encode(w) for w in self.exact], "entry": self.entry,
            "rows": [{name: _encode(getattr(row, name)) for name in Row.__dataclass_fields__} for row in self.rows]})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: not JSON, another format, or a plan that fails its own checks.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the plan is not valid JSON ({error}); write it with Plan.to_json") from error
        if not isinstance(data, dict) or data.get("format") != "fewstep-plan-1":
            raise ValueError("the text is no plan of format 'fewstep-plan-1'; write it with Plan.to_json")
        try:
            rows = tuple(Row(**{name: _decode(value) for name, value in row.items()}) for row in data["rows"])
            exact = None if data["exact"] is None else tuple(_decode(w) for w in data["exact"])
            return cls(rows, _decode(data["t_start"]), exact, data["about"], data.get("entry", 1.0))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"the plan lacks or garbles a field ({error!r}); write it with Plan.to_json") from error


def execute(
    plan: Plan,
    model: Callable[[Tensor, Weight], Tensor],
    x: Tensor,
    *,
    noise: Callable[[], Tensor] | None = None,
    callback: Callable[[int, Row, Registers], None] | None = None,
    progress: Callable[[Sequence[Row]], Iterable[Row]] | None = None,
    part: range | None = None,
    registers: Registers | None = None,
) -> Tensor:
    """Run a plan from the state ``x`` at ``plan.t_start`` to the time of its last row.

    Args:
        plan: the compiled solver.
        model: the network, ``model(point, t) -> raw``; ``point`` has the shape and dtype of ``x``
            and ``t`` is the row's number (or tensor of numbers, one per sample). It must not
            keep ``point``, whose memory is reused.
        x: initial state, any shape, real or complex.
        noise: draws standard normal noise of the shape of ``x``; needed if a row adds noise.
        callback: called after each row with its index, the row, and the registers (to be read).
        progress: wraps the rows, for instance ``tqdm`` or ``rich.progress.track``.
        part: indices of consecutive rows to run alone, from a state where they begin; None for all.
        registers: those of a run that ended where the part begins, to go on with in place of ``x``, of which
            only the dtype counts; None for a start whose rows read no earlier predictions.

    Returns:
        The final state, of the shape and dtype of ``x``.

    Raises:
        ValueError: ``x`` is no floating-point tensor, or noise is needed and not given.

    Cost: ``plan.nfe`` evaluations; ``plan.depth`` + 4 tensors of the state's size at most.
    """
    if not (x.is_floating_point() or x.is_complex()):
        raise ValueError(f"x has dtype {x.dtype}: give a floating-point or complex state")
    part = range(plan.nfe) if part is None else part
    rows = plan.rows[part.start:part.stop]
    noisy = [row.noisy for row in rows]
    if any(noisy) and noise is None:
        raise ValueError("noise=None, but the plan adds noise: pass a function that draws it")
    if registers is None:
        registers = Registers(x if plan.entry == 1.0 or part.start else plan.entry * x, plan.depth)
    for index, row in enumerate(rows if progress is None else progress(rows)):
        raw = model(registers.point.to(x.dtype), row.t)
        registers.advance(row, raw, noise() if noise is not None and noisy[index] else None)
        if callback is not None:
            callback(part.start + index, row, registers)
    return registers.anchor.to(x.dtype)


def _number(value: object) -> Weight:
    """Accept tensors as they are and everything else as a Python float."""
    return value if isinstance(value, Tensor) else float(value)  # type: ignore[arg-type]


def _trimmed(weights: tuple[Weight, ...]) -> tuple[Weight, ...]:
    """Drop trailing zeros, keeping at least one weight."""
    end = len(weights)
    while end > 1 and not isinstance(weights[end - 1], Tensor) and weights[end - 1] == 0.0:
        end -= 1
    return weights[:end]


def _check_finite(plan: Plan) -> None:
    for index, row in enumerate(plan.rows):
        for name in Row.__dataclass_fields__:
            value = getattr(row, name)
            for weight in value if isinstance(value, tuple) else (value,):
                if not (weight.isfinite().all() if isinstance(weight, Tensor) else math.isfinite(weight)):
                    raise ValueError(f"rows[{index}].{name}={value}: all numbers of a plan must be finite")
        if len(row.anchor) > 3 + index or len(row.point) > 3 + index:
            raise ValueError(f"rows[{index}] reads more than the {index} predictions made before it")


def _check_order_of_times(plan: Plan) -> None:
    times = [torch.as_tensor(t, dtype=torch.float64) for t in (plan.t_start, *(row.t_next for row in plan.rows))]
    span = times[-1] - times[0]
    direction, rounding = torch.sign(span), 1e-12 * span.abs()
    for index, (before, after) in enumerate(zip(times[:-1], times[1:], strict=True)):
        if not plan.rows[index].noisy and bool((direction * (after - before) < -rounding).any()):
            raise ValueError(f"rows[{index}].t_next={plan.rows[index].t_next} turns back from {before.tolist()}: "
                             "only a row that adds noise may do so")


def _check_consistency(plan: Plan, tolerance: float = 1e-9) -> None:
    """Run the rows on the problem with constant prediction, whose solution is ``A x_0 + B m``."""
    assert plan.exact is not None
    for name, start, constant, exact in (("A", 1.0, 0.0, plan.exact[0]), ("B", 0.0, 1.0, plan.exact[1])):
        registers = Registers(torch.tensor(start, dtype=_dtype(plan)), plan.depth, reuse=False)
        raw = torch.tensor(constant, dtype=_dtype(plan))
        for row in plan.rows:
            registers.advance(Row(row.t, row.t_next, (0.0, 1.0), row.anchor, row.point), raw)
        wanted = torch.as_tensor(exact, dtype=registers.anchor.dtype)
        scale = 1.0 + max(abs(torch.as_tensor(e)).max().item() for e in plan.exact)
        error = (registers.anchor - wanted).abs().max().item()
        if not error <= tolerance * scale:
            raise ValueError(f"rows give {name}={registers.anchor.tolist()} on the problem with constant prediction, "
                             f"whose solution has {name}={wanted.tolist()}: the weights are inconsistent")


def _dtype(plan: Plan) -> torch.dtype:
    complex_ = any(isinstance(w, Tensor) and w.is_complex() for row in plan.rows for w in (*row.anchor, *row.point))
    return torch.complex128 if complex_ else torch.float64


def _encode(value: object) -> object:
    if isinstance(value, tuple):
        return [_encode(v) for v in value]
    if isinstance(value, Tensor):
        data = torch.view_as_real(value) if value.is_complex() else value
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape),
                "data": data.detach().double().flatten().tolist()}
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(v) for v in value)
    if isinstance(value, dict):
        dtype = getattr(torch, value["dtype"])
        data = torch.tensor(value["data"], dtype=torch.float64)
        if dtype.is_complex:
            data = torch.view_as_complex(data.reshape(-1, 2))
        return data.to(dtype).reshape(value["shape"])
    return value
