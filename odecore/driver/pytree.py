"""States that are nested containers of tensors, as one flat state, and solves of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ParamSpec, TypeVar

import torch
from jaxtyping import Inexact
from torch import Tensor

from odecore.driver.dense import DenseSolution
from odecore.driver.events import events_of
from odecore.driver.solution import SolveError
from odecore.problem import RightHandSide, Separable, bind

Tree = Any
"""A tensor of shape (samples, …), or a dict, list, tuple or named tuple of trees."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tensors of a tree lie in a flat state of shape (samples, N).

    Args:
        template: a tree of the structure and shapes.

    Raises:
        ValueError: no tensors, something else than tensors, or different numbers of samples or dtypes.
    """

    template: Tree

    def __post_init__(self) -> None:
        leaves = list(_leaves(self.template, self.template, "y0"))
        if not leaves:
            raise ValueError("y0 holds no tensors: give one at least")
        first = leaves[0][1]
        for name, leaf in leaves:
            if leaf.ndim < 1:
                raise ValueError(f"{name} has shape (): give one row for each sample")
            if len(leaf) != len(first):
                raise ValueError(f"{name} has shape {tuple(leaf.shape)}: give all tensors {len(first)} samples, as the "
                                 "first one has")
            if leaf.dtype != first.dtype:
                raise ValueError(f"{name} has dtype {leaf.dtype}: give all tensors the dtype of the first one, "
                                 f"{first.dtype}")

    def flat(self, tree: Tree, name: str = "y0") -> Inexact[Tensor, "samples width"]:
        """Write a tree of this layout as one state.

        Raises:
            ValueError: another structure, or tensors of other shapes.
        """
        parts = []
        for (where, given), (_, wanted) in zip(_leaves(self.template, tree, name),
                                               _leaves(self.template, self.template, name), strict=True):
            if given.shape[1:] != wanted.shape[1:]:
                raise ValueError(f"{where} has shape {tuple(given.shape)}: give {tuple(wanted.shape)}, as in y0")
            parts.append(given.reshape(len(given), wanted.shape[1:].numel()))
        return torch.cat(parts, 1)

    def tree(self, flat: Tensor, axes: int = 1) -> Tree:
        """Read a state back; its last axis, after ``axes`` others, is that of the flat state."""
        shapes = [leaf.shape[1:] for _, leaf in _leaves(self.template, self.template, "y0")]
        pieces = flat.split([shape.numel() for shape in shapes], axes)
        return _rebuilt(self.template, iter([piece.reshape(*flat.shape[:axes], *shape)
                                             for piece, shape in zip(pieces, shapes, strict=True)]))

    def problem(self, field: Callable[..., Any]) -> RightHandSide:
        """A field or problem of trees as one of flat states.

        The linear part of a :class:`~odecore.problem.Semilinear` problem acts on flat states as it is.

        Raises:
            ValueError: a separable problem, whose state is one tensor by its definition.
        """
        if isinstance(field, Separable):
            raise ValueError("field is Separable, whose state is one tensor of positions and momenta: stack them")

        def change(part: Callable[..., Any]) -> RightHandSide:
            def function(y: Tensor, t: Tensor, *args: Tensor) -> Tensor:
                return self.flat(part(self.tree(y), t, *args), "the field's value")

            return function

        return bind(field, change)

    def reader(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of a tree as one of a flat state."""
        return lambda y, *rest: function(self.tree(y), *rest)

    def result(self, result: Any) -> Any:
        """A solution or a flat tensor, whatever axes it has in front, with states that are trees."""
        if isinstance(result, Tensor):
            return self.tree(result, result.ndim - 1)
        dense = result.dense
        if dense is not None:
            dense = TreeSolution(**{field.name: getattr(dense, field.name) for field in fields(dense)}, layout=self)
        crossings = tuple(found._replace(y=self.result(found.y)) for found in result.crossings)
        return result._replace(y=self.result(result.y), ys=None if result.ys is None else self.result(result.ys),
                               dense=dense, crossings=crossings)


@dataclass(frozen=True, slots=True)
class TreeSolution(DenseSolution):
    """A :class:`~odecore.driver.dense.DenseSolution` whose values are trees.

    Attributes:
        layout: where their tensors lie.
    """

    layout: Layout

    def __call__(self, times: float | Tensor) -> Tree:
        """Evaluate at times, as the flat solution does."""
        return self.layout.result(DenseSolution.__call__(self, times))


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def on_trees(solver: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a solver ``(stepper, field, y0, …)`` take trees for states; the field gets and returns them then."""
    @functools.wraps(solver)
    def wrapper(stepper: Any, field: Any, y0: Tree, *rest: Any, **options: Any) -> Any:
        run: Any = solver
        if isinstance(y0, Tensor):
            return run(stepper, field, y0, *rest, **options)
        layout = Layout(y0)
        if options.get("event") is not None:
            options["event"] = tuple(replace(event, function=layout.reader(event.function))
                                     for event in events_of(options["event"]))
        try:
            return layout.result(run(stepper, layout.problem(field), layout.flat(y0), *rest, **options))
        except SolveError as error:
            raise SolveError(str(error), layout.result(error.solution)) from None

    return wrapper  # type: ignore[return-value]


def _leaves(template: Tree, tree: Tree, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree with their names, in the order of the template."""
    if isinstance(template, Tensor):
        if not isinstance(tree, Tensor):
            raise ValueError(f"{name} is {type(tree).__name__}: give a tensor")
        yield name, tree
    elif isinstance(template, Mapping):
        if not isinstance(tree, Mapping) or tree.keys() != template.keys():
            keys = list(tree) if isinstance(tree, Mapping) else type(tree).__name__
            raise ValueError(f"{name} has the keys {keys}: give a mapping with {list(template)}")
        for key, part in template.items():
            yield from _leaves(part, tree[key], f"{name}[{key!r}]")
    elif isinstance(template, list | tuple):
        if not isinstance(tree, list | tuple) or len(tree) != len(template):
            raise ValueError(f"{name} is {type(tree).__name__}: give {len(template)} parts, in a list or tuple")
        for index, (part, value) in enumerate(zip(template, tree, strict=True)):
            yield from _leaves(part, value, f"{name}[{index}]")
    else:
        raise ValueError(f"{name} is {type(template).__name__}: give tensors in dicts, lists or tuples")


def _rebuilt(template: Tree, pieces: Iterator[Tensor]) -> Tree:
    """A tree like the template with other tensors."""
    if isinstance(template, Tensor):
        return next(pieces)
    if isinstance(template, Mapping):
        return {key: _rebuilt(part, pieces) for key, part in template.items()}
    parts = [_rebuilt(part, pieces) for part in template]
    if isinstance(template, list):
        return parts
    return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)
