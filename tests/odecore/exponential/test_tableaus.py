"""Exponential tableaux against the order conditions of stiff problems, in arbitrary arguments."""

from __future__ import annotations

import math

import pytest

from odecore.analysis.trees import order_of
from odecore.explicit.embedded import DORMAND_PRINCE
from odecore.explicit.tableaus import RK4, Tableau
from odecore.exponential import tableaus as methods
from odecore.exponential.phi_sums import ZERO, PhiSum, varphi
from odecore.exponential.tableaus import ExponentialTableau, lawson
from odecore.phi import phi

TABLEAUS = {name: value for name, value in vars(methods).items() if isinstance(value, ExponentialTableau)}
POINTS = (-0.3, -4.0, -50.0)


def value(one: PhiSum, z: float) -> float:
    return sum(weight * phi(order, scale * z) for weight, order, scale in one.terms)


def defect(tableau: ExponentialTableau, k: int, z: float, row: int | None = None) -> float:
    """``ψ_k = c^k φ_k(cz) - Σ_j a_j(z) c_j^{k-1}/(k-1)!`` of a stage or, without a row, of the result."""
    weights, c = (tableau.b, 1.0) if row is None else (tableau.a[row], tableau.c[row])
    total = math.fsum(value(a, z) * cj ** (k - 1) for a, cj in zip(weights, tableau.c, strict=False))
    return c**k * phi(k, c * z) - total / math.factorial(k - 1)


def stiff_order(tableau: ExponentialTableau) -> int:
    """Hochbruck & Ostermann 2005, table 1; the conditions of the highest order in their weak form, b at z = 0.

    Different arguments stand for linear operators that do not commute.
    """
    stages = range(tableau.stages)

    def vanishing(*values: float) -> bool:
        return max(map(abs, values)) < 1e-12

    def quadrature(k: int, weak: bool) -> bool:
        return vanishing(*(defect(tableau, k, z) for z in ((0.0,) if weak else POINTS)))

    def inner(k: int, at: float, power: int = 0) -> list[float]:
        return [sum(value(tableau.b[i], at) * tableau.c[i] ** power * defect(tableau, k, z, i) for i in stages)
                for z in POINTS]

    rows = vanishing(*(defect(tableau, 1, z, i) for z in POINTS for i in stages))
    nested = [sum(value(tableau.b[i], 0.0) * value(tableau.a[i][j], z) * defect(tableau, 2, w, j)
                  for i in stages for j in range(i)) for z in POINTS for w in POINTS]
    if not quadrature(1, weak=False):
        return 1 if quadrature(1, weak=True) else 0
    if not (rows and quadrature(2, weak=True)):
        return 1
    if not (quadrature(2, weak=False) and quadrature(3, weak=True) and vanishing(*inner(2, 0.0))):
        return 2
    if not (quadrature(3, weak=False) and vanishing(*(x for z in POINTS for x in inner(2, z)))
            and quadrature(4, weak=True) and vanishing(*inner(3, 0.0), *inner(2, 0.0, power=1), *nested)):
        return 3
    return 4


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_stiff_order_conditions_hold_as_far_as_declared(name: str) -> None:
    assert stiff_order(TABLEAUS[name]) == TABLEAUS[name].stiff_order


@pytest.mark.parametrize("name", TABLEAUS)
def test_without_a_linear_part_a_classical_method_of_the_same_order_remains(name: str) -> None:
    tableau = TABLEAUS[name]
    a = [[weight.at_zero for weight in row] for row in tableau.a]
    assert order_of(a, [weight.at_zero for weight in tableau.b]) == tableau.order
    assert order_of(a, [weight.at_zero for weight in tableau.embedded]) in {tableau.error_order - 1, 2}


def test_lawson_weights_carry_the_prediction_along_the_linear_flow() -> None:
    tableau = lawson(RK4)
    z = -0.7
    for i, row in enumerate(RK4.a):
        for j, a in enumerate(row):
            assert value(tableau.a[i][j], z) == pytest.approx(a * math.exp((RK4.c[i] - RK4.c[j]) * z))
    assert tableau.error_order == 0 and not tableau.first_same_as_last


def test_lawson_of_a_pair_keeps_its_estimate_and_its_last_stage() -> None:
    tableau = lawson(DORMAND_PRINCE.tableau, DORMAND_PRINCE.embedded, DORMAND_PRINCE.error_order)
    assert tableau.order == 5 and tableau.error_order == 5 and tableau.first_same_as_last


@pytest.mark.parametrize(("name", "stages"), [("ETD_RK1", 1), ("ETD_RK2", 2), ("ETD_RK3", 3), ("ETD_RK4", 4),
                                              ("KROGSTAD", 4), ("HOCHBRUCK_OSTERMANN", 5), ("LAWSON4", 4)])
def test_without_the_estimate_a_method_has_its_published_stages(name: str, stages: int) -> None:
    assert TABLEAUS[name].without_estimate.stages == stages


@pytest.mark.parametrize(("changes", "message"), [
    ({"a": ((), (varphi(1), ZERO))}, "row i with i entries"),
    ({"b": (varphi(1), varphi(1))}, "sum to one"),
    ({"embedded": (varphi(1),), "error_order": 2}, "give 2 weights"),
    ({"embedded": (varphi(1), ZERO)}, "error_order=0"),
    ({"error_order": 2}, "error_order=2"),
])
def test_inconsistent_tableaux_are_refused(changes: dict, message: str) -> None:
    arguments: dict = {"a": ((), (varphi(1),)), "b": (varphi(1) - varphi(2), varphi(2)), "order": 2, "stiff_order": 2}
    with pytest.raises(ValueError, match=message):
        ExponentialTableau(**(arguments | changes))


def test_methods_without_stages_that_repeat_the_result_do_not_hand_a_slope_on() -> None:
    assert not lawson(Tableau(((),), (1.0,), 1)).first_same_as_last
    assert methods.KROGSTAD.first_same_as_last and not methods.HOCHBRUCK_OSTERMANN.first_same_as_last
