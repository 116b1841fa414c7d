"""A right-hand side ``func(t, y)`` of tensors of any shape, or of tuples of them, as one of the driver's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odecore.driver.solve import Norm, summed_tolerance
from odecore.stepper import send

Value = Tensor | tuple[Tensor, ...]
"""A state as the caller sees it."""

Function = Callable[..., Any]
"""``(t, y) -> value`` of the shapes of y."""

Tolerance = float | Tensor | Sequence[float | Tensor]
"""One number, numbers that broadcast over the state, or one of these for each tensor of a tuple."""

PER_SAMPLE = "per_sample"
"""The norm with which each row of y0 is a system of its own."""


class Margin(NamedTuple):
    """A function ``(y, t, signs) -> value`` of shape (samples,), positive before an event, and its signs."""

    function: Callable[[Tensor, Tensor, Tensor], Tensor]
    signs: Tensor


@dataclass(frozen=True, slots=True)
class System:
    """How a caller's state and functions correspond to the driver's.

    The driver's state is ``(1, *shape)`` for a tensor, ``(1, numbers)`` for a tuple, and the tensor
    itself where each of its rows is a sample.

    Args:
        shapes: shape of the state, or of each tensor of a tuple.
        is_tuple: whether the state is a tuple.
        independent: whether rows are samples.
        func: right-hand side.
    """

    func: Function
    shapes: tuple[torch.Size, ...]
    is_tuple: bool = False
    independent: bool = False

    def pack(self, value: Value) -> Tensor:
        """Turn a state, or what the right-hand side returned, into a state of the driver."""
        if not self.is_tuple:
            return _tensor(value) if self.independent else _tensor(value).unsqueeze(0)
        if isinstance(value, Tensor) or len(value) != len(self.shapes):
            raise ValueError(f"func returned {type(value).__name__} for a tuple of {len(self.shapes)} tensors: return "
                             "a tuple of as many")
        for part, shape in zip(value, self.shapes, strict=True):
            if part.shape != shape:
                raise ValueError(f"func returned shape {tuple(part.shape)} for a state of shape {tuple(shape)}: they "
                                 "must be the same")
        return torch.cat([part.reshape(-1) for part in value]).unsqueeze(0)

    def unpack(self, states: Tensor) -> Value:
        """Turn states of the driver, of shape (*leading, samples, …), into what the caller sees."""
        if self.independent:
            return states
        if not self.is_tuple:
            axis = states.ndim - len(self.shapes[0]) - 1
            return states.squeeze(axis)
        parts = states.squeeze(-2).split([shape.numel() for shape in self.shapes], -1)
        return tuple(part.reshape((*part.shape[:-1], *shape)) for part, shape in zip(parts, self.shapes, strict=True))

    def time(self, t: Tensor, y: Tensor) -> Tensor:
        """The time as functions see it: a number in the state's precision, or one a row that broadcasts over y."""
        seen = t.to(y.device, y.real.dtype if y.is_complex() else y.dtype)
        return seen.reshape(-1, *[1] * (y.ndim - 1)) if self.independent else seen[0]

    def field(self, y: Tensor, t: Tensor, *_: Tensor) -> Tensor:
        """The right-hand side as the driver calls it, with arguments that are not for it."""
        return self.pack(self.func(self.time(t, y), self.unpack(y)))

    def margin(self, event_fn: Function, y0: Tensor, t0: Tensor) -> Margin:
        """How far each sample is from an event: the least of the values, each with its sign at the start."""
        def values(y: Tensor, t: Tensor) -> Tensor:
            found = torch.as_tensor(event_fn(self.time(t, y), self.unpack(y)))
            return found.reshape(len(y) if self.independent else 1, -1)

        with torch.no_grad():
            signs = torch.sign(values(y0, t0.expand(len(y0)).to(y0.device)))
        return Margin(lambda y, t, signs: (values(y, t) * signs).amin(1), signs)

    def norm(self, norm: Callable[[Any], Tensor] | str | None, rtol: Tolerance, atol: Tolerance, like: Tensor) -> Norm:
        """The error ratio that a norm of scaled errors gives, with tolerances of any kind."""
        relative, absolute = self.tolerance("rtol", rtol, like), self.tolerance("atol", atol, like)
        if self.independent:
            return lambda error, magnitude, _r, _a: summed_tolerance(error, magnitude, relative, absolute)  # type: ignore[arg-type]
        measure = norm if callable(norm) else largest_root_mean_square

        def ratio(error: Tensor, magnitude: Tensor, _rtol: float, _atol: float) -> Tensor:
            scale = absolute + relative * magnitude
            scaled = torch.where(error == 0, torch.zeros_like(error), error / scale)  # 0 / 0 without tolerance
            return torch.as_tensor(measure(self.unpack(scaled)), device=error.device).abs().reshape(1)

        return ratio

    def tolerance(self, name: str, tolerance: Tolerance, like: Tensor) -> float | Tensor:
        """A tolerance that broadcasts over the driver's state.

        Raises:
            ValueError: not finite, negative, with a gradient, or one a tensor in the wrong number.
        """
        if isinstance(tolerance, Sequence):
            if not self.is_tuple or len(tolerance) != len(self.shapes):
                raise ValueError(f"{name} has {len(tolerance)} entries: give one number, or one for each of the "
                                 f"{len(self.shapes)} tensors of a tuple")
            parts = [torch.as_tensor(part, dtype=torch.float64).expand(shape).reshape(-1)
                     for part, shape in zip(tolerance, self.shapes, strict=True)]
            tolerance = torch.cat(parts)
        given = torch.as_tensor(tolerance)
        if given.requires_grad:
            raise ValueError(f"{name} requires a gradient: step sizes have none; pass {name}.detach()")
        if not bool((torch.isfinite(given) & (given >= 0)).all()):
            raise ValueError(f"{name}={tolerance}: give finite tolerances, not negative")
        if given.ndim == 0:
            return float(given)
        return send(given.to(like.real.dtype if like.is_complex() else like.dtype), like.device)


def system_of(func: Function, y0: Value, independent: bool = False) -> tuple[System, Tensor]:
    """Describe a caller's problem; return it with the driver's initial state.

    Raises:
        ValueError: y0 is no tensor or tuple of tensors, or cannot have a norm for each sample.
    """
    if isinstance(y0, Tensor):
        if independent and y0.ndim < 1:
            raise ValueError(f"y0 has shape () with norm={PER_SAMPLE!r}: give one row a sample")
        system = System(func, (y0.shape,), independent=independent)
        return system, system.pack(y0)
    if not isinstance(y0, tuple) or not y0 or not all(isinstance(part, Tensor) for part in y0):
        raise ValueError(f"y0 is of type {type(y0).__name__}: give a tensor or a tuple of tensors")
    if independent:
        raise ValueError(f"norm={PER_SAMPLE!r} with a tuple y0: concatenate its tensors to one of shape (samples, …), "
                         "or use odecore.driver.solve")
    system = System(func, tuple(part.shape for part in y0), is_tuple=True)
    return system, system.pack(y0)


def root_mean_square(tensor: Tensor) -> Tensor:
    """The norm of a tensor that steps are measured by."""
    return tensor.abs().square().mean().sqrt()


def largest_root_mean_square(value: Value) -> Tensor:
    """The largest of the tensors' norms."""
    if isinstance(value, Tensor):
        return root_mean_square(value)
    norms = [root_mean_square(part) for part in value if part.numel()]
    return torch.stack([norm.double() for norm in norms]).amax() if norms else torch.zeros((), dtype=torch.float64)


def _tensor(value: Value) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"func returned {type(value).__name__}: return a tensor of the shape of y")
    return value
