"""Rooted trees and the order conditions of Runge–Kutta methods that they index."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

Tree = tuple["Tree", ...]
"""A rooted tree: the sorted tuple of the subtrees at its root; ``()`` is a single node."""


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


def square(a: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Fill the rows of a tableau with zeros to a square matrix."""
    matrix = np.zeros((len(a), len(a)))
    for i, row in enumerate(a):
        matrix[i, : len(row)] = row
    return matrix


def order_defect(a: Sequence[Sequence[float]], b: Sequence[float], order: int) -> float:
    """Measure how far weights are from an order: ``max |Φ(τ) - 1/γ(τ)|`` over the trees with ``order`` nodes.

    The elementary weight is ``Φ(τ) = Σ_i b_i Π_k (A u(τ_k))_i`` over the subtrees τ_k of the root, where
    ``u(τ)_i`` is the same product without b. A method has order p where the defects of 1 … p vanish.

    Args:
        a: rows of the tableau, zeros at their ends left out or not.
        b: weights.
        order: number of nodes.

    Source: Hairer, Nørsett & Wanner 1993, Solving ordinary differential equations I, theorem II.2.13.
    """
    matrix, weights = square(a), np.asarray(b, dtype=np.float64)

    @cache
    def inner(tree: Tree) -> tuple[float, ...]:
        product = np.ones(len(weights))
        for branch in tree:
            product = product * (matrix @ np.asarray(inner(branch)))
        return tuple(product)

    return max(abs(math.fsum(weights * np.asarray(inner(tree))) - 1 / density(tree)) for tree in rooted_trees(order))


def order_of(a: Sequence[Sequence[float]], b: Sequence[float], tolerance: float = 1e-12, most: int = 9) -> int:
    """Find the order of weights by the order conditions, up to ``most``.

    Args:
        a: rows of the tableau.
        b: weights.
        tolerance: defect that counts as rounding.
        most: where to stop; the number of conditions grows nearly threefold with each order.
    """
    order = 0
    while order < most and order_defect(a, b, order + 1) <= tolerance:
        order += 1
    return order
