"""Additive tableaus: order conditions of two-coloured trees, embedded weights, stability of the implicit part."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from odecore.analysis.stability import StabilityFunction
from odecore.analysis.trees import (
    additive_order_defect,
    additive_order_of,
    colourings,
    order_defect,
    order_of,
    rooted_trees,
    square,
)
from odecore.explicit.tableaus import HEUN, RK4, Tableau
from odecore.implicit import additive_tableaus as imex_tableaus
from odecore.implicit.additive_tableaus import (
    ARS222,
    ARS343,
    HEUN_CRANK_NICOLSON,
    IMEX_EULER,
    KENCARP4,
    AdditiveTableau,
)
from odecore.implicit.tableaus import BACKWARD_EULER, SDIRK2, ImplicitTableau

PAIRS = {name: value for name, value in vars(imex_tableaus).items() if isinstance(value, AdditiveTableau)}
EMBEDDED = [name for name, value in PAIRS.items() if value.implicit.embedded]


def parts(tableau: AdditiveTableau) -> tuple:
    return ((tableau.explicit.a, tableau.implicit.a), (tableau.explicit.b, tableau.implicit.b))


def test_trees_of_two_colours_are_as_many_as_counted() -> None:
    counts = [sum(len(colourings(tree, 2)) for tree in rooted_trees(n)) for n in range(1, 7)]
    assert counts == [2, 4, 14, 52, 214, 916]


def test_a_method_split_into_itself_keeps_its_order_and_defects() -> None:
    both = ((RK4.a, RK4.a), (RK4.b, RK4.b))
    assert additive_order_of(*both) == 4
    assert additive_order_defect(*both, 5) == order_defect(RK4.a, RK4.b, 5)


def test_coupling_conditions_are_not_implied_by_the_orders_of_the_parts() -> None:
    other_nodes = Tableau(((), (1 / 3,)), (-1 / 2, 3 / 2), 2)
    assert order_of(other_nodes.a, other_nodes.b) == order_of(HEUN.a, HEUN.b) == 2
    assert additive_order_of((HEUN.a, other_nodes.a), (HEUN.b, other_nodes.b)) == 1


def test_the_coupling_condition_of_order_three_is_the_one_written_by_hand() -> None:
    # The tall tree with colours explicit, implicit, explicit from the root up.
    e, i = KENCARP4.explicit, KENCARP4.implicit
    assert np.asarray(e.b) @ square(i.a) @ square(e.a) @ np.ones(6) == pytest.approx(1 / 6, abs=1e-15)


@pytest.mark.parametrize("name", PAIRS)
def test_every_two_coloured_condition_holds_to_the_declared_order_and_no_further(name: str) -> None:
    tableau = PAIRS[name]
    defects = [additive_order_defect(*parts(tableau), nodes) for nodes in range(1, tableau.order + 2)]
    assert max(defects[:-1]) < 1e-14 and defects[-1] > 1e-4


@pytest.mark.parametrize("name", PAIRS)
def test_each_part_alone_has_the_order_it_declares(name: str) -> None:
    for part in (PAIRS[name].explicit, PAIRS[name].implicit):
        assert order_of(part.a, part.b) == part.order


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_weights_have_the_declared_order_in_both_parts_together(name: str) -> None:
    tableau = PAIRS[name]
    embedded = tableau.implicit.embedded
    defects = [additive_order_defect(parts(tableau)[0], (embedded, embedded), nodes)
               for nodes in range(1, tableau.implicit.embedded_order + 2)]
    assert max(defects[:-1]) < 1e-14 and defects[-1] > 1e-4


@pytest.mark.parametrize("name", ["KENCARP3", "KENCARP4"])
@pytest.mark.parametrize("theta", [0.2, 0.6, 1.0])
def test_interpolants_satisfy_the_two_coloured_conditions_at_any_time(name: str, theta: float) -> None:
    interpolant = PAIRS[name].interpolant
    assert interpolant is not None
    weights = sum(theta**j * np.array(row) for j, row in enumerate(interpolant.weights, 1))
    defects = [additive_order_defect(parts(PAIRS[name])[0], (weights / theta**n,) * 2, n)
               for n in range(1, interpolant.order + 2)]
    assert max(defects[:-1]) < 1e-13
    assert defects[-1] > 1e-3 if theta < 1 else np.allclose(weights, PAIRS[name].implicit.b, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", PAIRS)
def test_row_sums_of_both_parts_are_equal(name: str) -> None:
    np.testing.assert_allclose(PAIRS[name].explicit.c, PAIRS[name].implicit.c, rtol=0, atol=2e-15)
    assert PAIRS[name].c[0] == 0.0


@pytest.mark.parametrize(("name", "times"), [
    ("KENCARP3", (0, 1767732205903 / 2027836641118, 3 / 5, 1)),
    ("KENCARP4", (0, 1 / 2, 83 / 250, 31 / 50, 17 / 20, 1)),
    ("KENCARP5", (0, 41 / 100, 2935347310677 / 11292855782101, 1426016391358 / 7196633302097, 92 / 100, 24 / 100,
                  3 / 5, 1))])
def test_row_sums_are_the_published_stage_times(name: str, times: tuple[float, ...]) -> None:
    np.testing.assert_allclose(PAIRS[name].c, times, rtol=0, atol=2e-15)


@pytest.mark.parametrize("name", PAIRS)
def test_implicit_parts_are_l_stable_but_for_the_trapezoid(name: str) -> None:
    stability = StabilityFunction.of(PAIRS[name].implicit.a, PAIRS[name].implicit.b)
    assert stability.a_stable and stability.l_stable == (name != "HEUN_CRANK_NICOLSON")
    assert stability.at_infinity == (name == "HEUN_CRANK_NICOLSON")


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_implicit_methods_damp_stiff_parts(name: str) -> None:
    stability = StabilityFunction.of(PAIRS[name].implicit.a, PAIRS[name].implicit.embedded)
    assert stability.a_stable and 0 < stability.at_infinity < 0.21


@pytest.mark.parametrize("name", PAIRS)
def test_implicit_parts_have_one_diagonal_entry_and_end_in_their_last_stage(name: str) -> None:
    implicit = PAIRS[name].implicit
    assert implicit.diagonal and implicit.explicit_first and implicit.stiffly_accurate
    assert len({implicit.a[i][i] for i in range(1, implicit.stages)}) == 1


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_that_end_in_their_last_stage_are_known(name: str) -> None:
    assert PAIRS[name].ends_in_last_stage == (name in {"IMEX_EULER", "ARS222", "ARS443"})


def test_the_simple_pairs_are_made_of_known_methods() -> None:
    assert IMEX_EULER.implicit.a[1][1:] == BACKWARD_EULER.a[0]
    assert tuple(row[1:] for row in ARS222.implicit.a[1:]) == SDIRK2.a
    assert HEUN_CRANK_NICOLSON.explicit is HEUN


def test_ars343_agrees_with_the_published_decimals() -> None:
    explicit, implicit = square(ARS343.explicit.a), square(ARS343.implicit.a)
    np.testing.assert_allclose(explicit[2, :2], (0.3212788860, 0.3966543747), atol=6e-10)
    np.testing.assert_allclose(explicit[3, :3], (-0.105858296, 0.5529291479, 0.5529291479), atol=6e-10)
    np.testing.assert_allclose(implicit[2, 1:3], (0.2820667392, 0.4358665215), atol=6e-10)
    np.testing.assert_allclose(implicit[3, 1:], (1.208496649, -0.644363171, 0.4358665215), atol=6e-10)


def test_every_coefficient_is_needed_to_its_last_digits() -> None:
    """A slip in one entry shows in the conditions, whichever it is."""
    for name in ("KENCARP3", "KENCARP4", "KENCARP5"):
        (explicit, implicit), weights = parts(PAIRS[name])
        for which, rows in enumerate((square(explicit), square(implicit))):
            for i, j in zip(*np.nonzero(rows), strict=True):
                slipped = [square(explicit), square(implicit)]
                slipped[which][i, j] *= 1 + 1e-8
                defects = [additive_order_defect(slipped, weights, n) for n in range(1, PAIRS[name].order + 1)]
                assert max(defects) > 1e-12, (name, which, i, j)


@pytest.mark.parametrize(("explicit", "implicit", "message"), [
    (HEUN, ImplicitTableau(((1.0,),), (1.0,), 1), "same length"),
    (HEUN, ImplicitTableau(((0.0, 0.0), (0.25, 0.25)), (0.5, 0.5), 1), "row sums"),
    (HEUN, ImplicitTableau(((0.25, -0.25), (0.5, 0.5)), (0.5, 0.5), 1), "diagonally implicit")])
def test_parts_that_do_not_fit_are_refused(explicit: Tableau, implicit: ImplicitTableau, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdditiveTableau(explicit, implicit, 1)


def test_tableaus_compare_by_value_and_cannot_be_changed() -> None:
    assert dataclasses.replace(KENCARP4) == KENCARP4
    with pytest.raises(dataclasses.FrozenInstanceError):
        KENCARP4.order = 5  # type: ignore[misc]
    assert math.isclose(sum(KENCARP4.explicit.b), 1.0)
