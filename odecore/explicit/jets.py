"""Taylor arithmetic: power series that torch's functions work on, coefficient after coefficient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp

from odecore.explicit import series

Extend = Callable[[int], Tensor]
"""``k -> coefficient k``, from coefficients up to k of what it was made from, and up to k - 1 of itself."""


class NoJet(Exception):
    """A function was met that Taylor arithmetic cannot follow."""


class Tape:
    """The series that follow from one set of independent ones, in the order in which they were made.

    The slopes of functions like tanh are needed to one order less than the functions: they come one behind.
    """

    def __init__(self) -> None:
        self.series: list[Jet] = []
        self.slopes: list[Jet] = []
        self.behind = False

    def slope(self, make: Callable[[], Tensor]) -> Any:
        """Make series that are one order behind."""
        before, self.behind = self.behind, True
        try:
            return make()
        finally:
            self.behind = before

    def extend(self, k: int) -> None:
        """Give every series its coefficient k; the independent ones have theirs."""
        if k > 1:
            for jet in self.slopes:
                jet.coefficients.append(jet.extend(k - 1))
        for jet in self.series:
            jet.coefficients.append(jet.extend(k))


class Jet(Tensor):
    """A power series ``Σ_k u_k s^k`` that stands for a tensor while a function is evaluated.

    The function is evaluated once, on the constant coefficients; every operation writes down on a tape how its
    next coefficient follows from those of its operands. An operation without a rule gets its coefficients from
    nested dual numbers, of that operation alone. The jet itself holds no numbers, so that what looks for them
    behind Python's back fails, instead of losing derivatives.

    Args:
        value: the constant coefficient.
        extend: how the others follow; None for an independent series, to which its owner appends them.
        tape: where it is written down.

    Source: Griewank & Walther 2008, Evaluating derivatives, chapter 13, doi:10.1137/1.9780898717761.
    """

    coefficients: list[Tensor]
    extend: Extend
    tape: Tape

    @staticmethod
    def __new__(cls: type[Jet], value: Tensor, extend: Extend | None, tape: Tape) -> Jet:  # noqa: D102
        jet = torch.Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype, device=value.device)
        jet.coefficients, jet.tape = [value], tape
        if extend is not None:
            jet.extend = extend
            (tape.slopes if tape.behind else tape.series).append(jet)
        return jet

    def __init__(self, value: Tensor, extend: Extend | None, tape: Tape) -> None:
        super().__init__()

    def derived(self, value: Tensor, extend: Extend) -> Jet:
        """A series that follows from this one."""
        return Jet(value, extend, self.tape)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NoJet(f"{func} reached for the numbers of a jet")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _apply(func, args, kwargs or {})


def _apply(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name = _name(func)
    if name in series.COMPOSITE:
        return series.COMPOSITE[name](*args, **kwargs)
    if name in series.UNREACHABLE or (name.endswith("_") and not name.endswith("__")) or kwargs.get("out") is not None:
        raise NoJet(f"{name} changes a tensor in place or reads numbers out of it")
    if name in series.INTEGRATED:
        return series.INTEGRATED[name](func, *args, **kwargs)
    constant, named = _at(args, 0), {key: _at(value, 0) for key, value in kwargs.items()}
    value = func(*constant, **named)
    if name in series.CONSTANT or not _is_continuous(value):
        return value
    jet = next(_jets((args, tuple(kwargs.values()))))
    places = [i for i, a in enumerate(args) if isinstance(a, Jet)]
    if name in series.LINEAR and args[0] is jet:
        return _wrapped(jet, value, lambda k: func(jet.coefficients[k], *constant[1:], **named))
    if name in series.JOINED:
        return jet.derived(value, lambda k: func(
            [a.coefficients[k] if isinstance(a, Jet) else torch.zeros_like(a) for a in args[0]], *args[1:], **kwargs))
    if name in series.AFFINE and places == [0]:
        rest = (*args[1:2], *([None] if len(args) > 2 else []), *args[3:])
        named = {**kwargs, "bias": None} if "bias" in kwargs else kwargs
        return jet.derived(value, lambda k: func(jet.coefficients[k], *rest, **named))
    if name in series.PRODUCT and len(places) == len(list(_jets(args))) < 3:
        return jet.derived(value, lambda k: _product(func, args, kwargs, places, k))
    if not isinstance(value, Tensor):
        raise NoJet(f"{name} has no rule and returns several tensors")
    return jet.derived(value, lambda k: _nested(func, args, kwargs, k))


def _name(func: Any) -> str:
    """What a function is called; the property behind a getter."""
    name = getattr(func, "__name__", "")
    return func.__self__.__name__ if name == "__get__" else series.SAME.get(name, name)


def _at(tree: Any, k: int) -> Any:
    """An argument with the coefficients k in place of series."""
    if isinstance(tree, Jet):
        return tree.coefficients[k]
    return type(tree)([_at(part, k) for part in tree]) if type(tree) in (tuple, list) else tree


def _jets(tree: Any) -> Iterator[Jet]:
    if isinstance(tree, Jet):
        yield tree
    elif type(tree) in (tuple, list):
        for part in tree:
            yield from _jets(part)


def _is_continuous(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() or value.is_complex()
    return isinstance(value, tuple | list) and any(map(_is_continuous, value))


def _wrapped(like: Jet, value: Any, extend: Callable[[int], Any]) -> Any:
    """A series for each of one or several tensors."""
    if isinstance(value, Tensor):
        return like.derived(value, extend)
    return tuple(like.derived(part, partial(_part, extend, i)) for i, part in enumerate(value))


def _part(extend: Callable[[int], Any], index: int, k: int) -> Tensor:
    return extend(k)[index]


def _product(
    func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], places: list[int], k: int
) -> Tensor:
    """``Σ_j func(u_j, v_{k-j})``, or ``func(u_k, v)`` with a constant."""
    total = None
    for order in [(k,)] if len(places) == 1 else [(j, k - j) for j in range(k + 1)]:
        chosen = list(args)
        for place, j in zip(places, order, strict=True):
            chosen[place] = args[place].coefficients[j]
        term = func(*chosen, **kwargs)
        total = term if total is None else total + term
    assert total is not None
    return total


def _nested(func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], k: int) -> Tensor:
    """Coefficient k of one operation, by dual numbers nested k deep in s."""
    named = tuple(kwargs.values())

    def polynomial(tree: Any, s: Tensor) -> Any:
        if type(tree) in (tuple, list):
            return type(tree)([polynomial(part, s) for part in tree])
        if not isinstance(tree, Jet):
            return tree
        total = tree.coefficients[k]
        for coefficient in reversed(tree.coefficients[:k]):
            total = coefficient + s.to(coefficient.dtype) * total
        return total

    def along(s: Tensor) -> Tensor:
        return func(*polynomial(args, s), **dict(zip(kwargs, polynomial(named, s), strict=True)))

    derivative: Callable[[Tensor], Tensor] = along
    for _ in range(k):
        derivative = _derivative(derivative)
    like = next(_jets((args, named))).coefficients[0]
    return derivative(torch.zeros((), dtype=like.abs().dtype, device=like.device)) / math.factorial(k)


def _derivative(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda s: jvp(function, (s,), (torch.ones_like(s),))[1]
