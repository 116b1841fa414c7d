"""Tableaus: rooted-tree order conditions, consistency, stability."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import DOP853 as ScipyDOP853
from scipy.integrate import RK23, RK45

from odecore.analysis.stability import StabilityFunction
from odecore.analysis.trees import density, order_defect, order_of, rooted_trees, size, square
from odecore.explicit import embedded, tableaus
from odecore.explicit.embedded import EmbeddedPair
from odecore.explicit.tableaus import Tableau
from odecore.implicit import tableaus as implicit_tableaus
from odecore.implicit.tableaus import ImplicitTableau, collocation, theta

EXPLICIT = {name: value for name, value in vars(tableaus).items() if isinstance(value, Tableau)}
PAIRS = {name: value for name, value in vars(embedded).items() if isinstance(value, EmbeddedPair)}
IMPLICIT = {name: value for name, value in vars(implicit_tableaus).items() if isinstance(value, ImplicitTableau)}
ALL = EXPLICIT | IMPLICIT

L_STABLE = {"BACKWARD_EULER", "SDIRK2", "TR_BDF2", "KVAERNO3", "KVAERNO4", "KVAERNO5", "RADAU3", "RADAU5"}


def test_rooted_trees_are_as_many_as_cayley_counted() -> None:
    assert [len(rooted_trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]
    assert all(size(tree) == 6 and len(set(rooted_trees(6))) == 20 for tree in rooted_trees(6))


def test_densities_of_the_tall_and_the_bushy_tree() -> None:
    assert (density((((),),)), density(((), ()))) == (6, 3)


@pytest.mark.parametrize("name", ALL)
def test_weights_have_the_declared_order_and_no_higher(name: str) -> None:
    tableau = ALL[name]
    assert order_of(tableau.a, tableau.b) == tableau.order
    assert order_defect(tableau.a, tableau.b, tableau.order + 1) > 1e-8


@pytest.mark.parametrize("name", PAIRS)
def test_explicit_pairs_have_embedded_weights_of_the_declared_order(name: str) -> None:
    pair = PAIRS[name]
    assert order_of(pair.tableau.a, pair.embedded) == pair.error_order - 1


@pytest.mark.parametrize("name", [name for name, value in IMPLICIT.items() if value.embedded])
def test_implicit_pairs_have_embedded_weights_of_the_declared_order(name: str) -> None:
    tableau = IMPLICIT[name]
    assert order_of(tableau.a, tableau.embedded) == tableau.embedded_order


@pytest.mark.parametrize("name", PAIRS)
def test_first_same_as_last_is_read_off_the_tableau(name: str) -> None:
    assert PAIRS[name].first_same_as_last == (name != "HEUN_EULER")


@pytest.mark.parametrize(("ours", "theirs"), [("BOGACKI_SHAMPINE", RK23), ("DORMAND_PRINCE", RK45),
                                              ("DOP853", ScipyDOP853)])
def test_explicit_tableaus_agree_with_scipy(ours: str, theirs: type) -> None:
    tableau, stages = EXPLICIT[ours], len(theirs.B)
    strict = (slice(stages), slice(stages - 1))
    np.testing.assert_allclose(square(tableau.a)[strict], theirs.A[strict], rtol=1e-14, atol=0)
    np.testing.assert_allclose(tableau.b[:stages], theirs.B, rtol=1e-14, atol=0)
    np.testing.assert_allclose(tableau.c[:stages], theirs.C[:stages], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", IMPLICIT)
def test_implicit_methods_are_a_stable_and_l_stable_as_they_should(name: str) -> None:
    stability = StabilityFunction.of(IMPLICIT[name].a, IMPLICIT[name].b)
    assert stability.a_stable and stability.l_stable == (name in L_STABLE)


@pytest.mark.parametrize("name", EXPLICIT)
def test_no_explicit_method_is_a_stable(name: str) -> None:
    stability = StabilityFunction.of(EXPLICIT[name].a, EXPLICIT[name].b)
    assert not stability.a_stable and stability.at_infinity == math.inf


@pytest.mark.parametrize("name", ALL)
def test_stability_functions_approximate_the_exponential_to_the_order(name: str) -> None:
    stability = StabilityFunction.of(ALL[name].a, ALL[name].b)
    taylor = [1 / math.factorial(k) for k in range(ALL[name].order + 1)]
    product = np.convolve(stability.denominator, taylor)[: len(taylor)]
    expected = np.zeros(len(taylor))
    expected[: len(stability.numerator)] = stability.numerator[: len(taylor)]
    np.testing.assert_allclose(product, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", IMPLICIT)
def test_stiffly_accurate_methods_end_in_their_last_stage(name: str) -> None:
    assert IMPLICIT[name].stiffly_accurate == (name in L_STABLE | {"CRANK_NICOLSON"})
    assert not IMPLICIT[name].stiffly_accurate or IMPLICIT[name].c[-1] == pytest.approx(1.0, abs=1e-14)


def test_radau5_agrees_with_the_matrix_in_closed_form() -> None:
    r = math.sqrt(6)
    closed = [[(88 - 7 * r) / 360, (296 - 169 * r) / 1800, (-2 + 3 * r) / 225],
              [(296 + 169 * r) / 1800, (88 + 7 * r) / 360, (-2 - 3 * r) / 225],
              [(16 - r) / 36, (16 + r) / 36, 1 / 9]]
    np.testing.assert_allclose(implicit_tableaus.RADAU5.a, closed, rtol=1e-13)


def test_an_order_below_the_declared_is_noticed() -> None:
    assert order_of(tableaus.RK4.a, (0.25, 0.25, 0.25, 0.25)) == 2


def test_coinciding_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct"):
        collocation((0.5, 0.5), 4)


def test_theta_outside_of_the_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="θ between"):
        theta(1.5)


@pytest.mark.parametrize("changes", [{"a": ((1.0, 0.0),)}, {"b": (0.9,)}, {"embedded": (1.0,)},
                                     {"embedded": (0.5,), "embedded_order": 1}])
def test_implicit_tableaus_that_do_not_fit_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError):
        ImplicitTableau(**({"a": ((1.0,),), "b": (1.0,), "order": 1} | changes))


@pytest.mark.parametrize("changes", [{"a": ((), (0.5, 0.5))}, {"a": ((),)}, {"b": (0.5, 0.4)}, {"b": (1.0,)}])
def test_explicit_tableaus_that_do_not_fit_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError):
        Tableau(**({"a": ((), (0.5,)), "b": (0.0, 1.0), "order": 2} | changes))


@pytest.mark.parametrize("name", ALL)
def test_stage_times_are_row_sums(name: str) -> None:
    tableau = ALL[name]
    np.testing.assert_allclose(tableau.c, square(tableau.a).sum(1), rtol=0, atol=1e-13)
    assert tableau.stages == len(tableau.c) == len(tableau.b)


def test_trees_without_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="nodes=0"):
        rooted_trees(0)
