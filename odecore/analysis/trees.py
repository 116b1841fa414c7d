"""Rooted trees and the order conditions of Runge–Kutta methods that they index."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Tree = tuple["Tree", ...]
"""A rooted tree: the sorted tuple of the subtrees at its root; ``()`` is a single node."""

ColouredTree = tuple[int, tuple["ColouredTree", ...]]
"""A rooted tree with coloured nodes: the colour of the root, and the sorted subtrees at it."""

Rows = Sequence[Sequence[float]]
"""The rows of a tableau."""


@cache
def rooted_trees(nodes: int) -> tuple[Tree, ...]:
    """All rooted trees with so many nodes: 1, 1, 2, 4, 9, 20, 48, 115 of them for 1 to 8.

    Raises:
        ValueError: fewer than one node.
    """
    if nodes < 1:
        raise ValueError(f"nodes={nodes}: a tree has at least one")
    return tuple(dict.fromkeys(tuple(sorted(forest)) for forest in _forests(nodes - 1, nodes - 1)))


def _forests(nodes: int, largest: int) -> Iterator[Tree]:
    """Forests whose trees have at most ``largest`` nodes, the largest tree first."""
    if nodes == 0:
        yield ()
    for size in range(min(nodes, largest), 0, -1):
        for tree in rooted_trees(size):
            for rest in _forests(nodes - size, size):
                yield (tree, *rest)


def size(tree: Tree) -> int:
    """Count the nodes of a tree."""
    return 1 + sum(map(size, tree))


def density(tree: Tree) -> int:
    """Compute γ(τ), the product over all nodes of the size of the subtree at that node."""
    return size(tree) * math.prod(map(density, tree))


def square(a: Rows) -> NDArray[np.float64]:
    """Fill the rows of a tableau with zeros to a square matrix."""
    matrix = np.zeros((len(a), len(a)))
    for i, row in enumerate(a):
        matrix[i, : len(row)] = row
    return matrix


@cache
def colourings(tree: Tree, colours: int) -> tuple[ColouredTree, ...]:
    """Colour the nodes of a tree in every way that differs: 2, 4, 14, 52, 214 ways for two colours and 1 to 5 nodes.

    Source: Araújo, Murua & Sanz-Serna 1997, Symplectic methods based on decompositions,
        doi:10.1137/S0036142995292128.
    """
    branches = list(product(*(colourings(branch, colours) for branch in tree)))
    return tuple(dict.fromkeys((root, tuple(sorted(some))) for root in range(colours) for some in branches))


def order_defect(a: Rows, b: Sequence[float], order: int) -> float:
    """Measure how far weights are from an order: ``max |Φ(τ) - 1/γ(τ)|`` over the trees with ``order`` nodes.

    The elementary weight is ``Φ(τ) = Σ_i b_i Π_k (A u(τ_k))_i`` over the subtrees τ_k of the root, where
    ``u(τ)_i`` is the same product without b. A method has order p where the defects of 1 … p vanish.

    Args:
        a: rows of the tableau, zeros at their ends left out or not.
        b: weights.
        order: number of nodes.

    Source: Hairer, Nørsett & Wanner 1993, Solving ordinary differential equations I, theorem II.2.13.
    """
    return additive_order_defect((a,), (b,), order)


def additive_order_defect(a: Sequence[Rows], b: Sequence[Sequence[float]], order: int) -> float:
    """Measure how far an additive method is from an order, by trees whose nodes have the colours of its parts.

    For ``y' = Σ_ν f_ν(y)`` each node stands for one of the parts: the colour ν of the root chooses the
    weights ``b[ν]``, that of a subtree its matrix ``a[ν]`` in :func:`order_defect`. Trees of one colour are
    the conditions of each part alone, the others couple the parts.

    Args:
        a: rows of the tableau of each part.
        b: weights of each part.
        order: number of nodes.

    Source: Araújo, Murua & Sanz-Serna 1997, doi:10.1137/S0036142995292128; Kennedy & Carpenter 2003,
        doi:10.1016/S0168-9274(02)00138-1, section 2.1.
    """
    weights = [np.asarray(part, dtype=np.float64) for part in b]
    return max(abs(math.fsum(weights[condition.colour] * condition.weights) - condition.value)
               for condition in conditions(a, order))


class Condition(NamedTuple):
    """What a tree asks of the weights b: ``Σ_i b_i weights_i = value``.

    Attributes:
        colour: part whose weights b are meant.
        weights: product of ``A u`` over the subtrees at the root, one entry a stage.
        value: 1/γ(τ).
    """

    colour: int
    weights: NDArray[np.float64]
    value: float


def conditions(a: Sequence[Rows], nodes: int) -> Iterator[Condition]:
    """Give the conditions of all trees with so many nodes, coloured by the parts of an additive method.

    Args:
        a: rows of the tableau of each part.
        nodes: number of nodes.
    """
    matrices = [square(rows) for rows in a]

    @cache
    def inner(tree: ColouredTree) -> tuple[float, ...]:
        factors = np.ones(len(matrices[0]))
        for branch in tree[1]:
            factors = factors * (matrices[branch[0]] @ np.asarray(inner(branch)))
        return tuple(factors)

    for tree in rooted_trees(nodes):
        for coloured in colourings(tree, len(a)):
            yield Condition(coloured[0], np.asarray(inner(coloured)), 1 / density(tree))


def order_of(a: Rows, b: Sequence[float], tolerance: float = 1e-12, most: int = 9) -> int:
    """Find the order of weights by the order conditions, up to ``most``.

    Args:
        a: rows of the tableau.
        b: weights.
        tolerance: defect that counts as rounding.
        most: where to stop; the number of conditions grows nearly threefold with each order.
    """
    return additive_order_of((a,), (b,), tolerance, most)


def additive_order_of(
    a: Sequence[Rows], b: Sequence[Sequence[float]], tolerance: float = 1e-12, most: int = 6
) -> int:
    """Find the order of an additive method by the order conditions of coloured trees, up to ``most``.

    Args:
        a: rows of the tableau of each part.
        b: weights of each part.
        tolerance: defect that counts as rounding.
        most: where to stop; with two parts the number of conditions grows fourfold with each order.
    """
    order = 0
    while order < most and additive_order_defect(a, b, order + 1) <= tolerance:
        order += 1
    return order
