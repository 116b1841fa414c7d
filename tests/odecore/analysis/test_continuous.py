"""Continuous extensions satisfy the order conditions at any time, and join the steps smoothly."""

from __future__ import annotations

import numpy as np
import pytest

from odecore.analysis.continuous import closing_row, continuous_weights, stiff_response
from odecore.analysis.trees import additive_order_defect, order_defect
from odecore.explicit.tableaus import RK4
from odecore.implicit import additive_tableaus
from odecore.implicit.runge_kutta import KVAERNO4, KVAERNO5, RADAU5


@pytest.mark.parametrize("method", [KVAERNO4, KVAERNO5, RADAU5], ids=["kvaerno4", "kvaerno5", "radau5"])
def test_weights_have_the_order_at_any_time_and_no_higher_one(method: object) -> None:
    tableau = method.tableau  # type: ignore[attr-defined]
    order = tableau.order - 1
    rows = np.array(continuous_weights((tableau.a,), tableau.b, order))
    for theta in (0.2, 0.6):
        weights = (theta ** np.arange(1, order + 1)) @ rows
        defects = [order_defect(tableau.a, weights / theta**n, n) for n in range(1, order + 2)]
        assert max(defects[:-1]) < 1e-12 and defects[-1] > 1e-4


def test_pieces_meet_with_equal_slopes() -> None:
    rows = np.array(continuous_weights((KVAERNO5.tableau.a,), KVAERNO5.tableau.b, 4))
    np.testing.assert_allclose(rows.sum(0), KVAERNO5.tableau.b, rtol=0, atol=1e-14)
    np.testing.assert_allclose(rows[0], np.eye(7)[0], rtol=0, atol=1e-14)
    np.testing.assert_allclose(np.arange(1, 5) @ rows, np.eye(7)[-1], rtol=0, atol=1e-13)


def test_the_extension_of_a_collocation_method_interpolates_its_slopes() -> None:
    rows = np.array(continuous_weights((RADAU5.tableau.a,), RADAU5.tableau.b, 4))
    for i, c in enumerate(RADAU5.tableau.c):
        slope = (np.arange(1, 5) * c ** np.arange(4)) @ rows
        np.testing.assert_allclose(slope, np.eye(4)[i], rtol=0, atol=1e-13)


def test_a_closing_row_reaches_the_end_to_its_order_in_both_parts() -> None:
    pair = additive_tableaus.KENCARP5
    gamma = pair.implicit.a[-1][-1]
    row = closing_row((pair.explicit.a, pair.implicit.a), 3, gamma)
    parts = ((*pair.explicit.a, pair.explicit.b), (*pair.implicit.a, (*row, gamma)))
    weights = ((*pair.explicit.b, 0.0), (*row, gamma))
    assert max(additive_order_defect(parts, weights, n) for n in (1, 2, 3)) < 1e-13


def test_a_first_slope_that_is_too_large_does_not_enter_a_stiff_step() -> None:
    pair = additive_tableaus.KENCARP5
    gamma = pair.implicit.a[-1][-1]
    row = closing_row((pair.explicit.a, pair.implicit.a), 3, gamma)
    parts = ((*pair.explicit.a, pair.explicit.b), (*pair.implicit.a, (*row, gamma)))
    response = stiff_response(parts[1])
    assert response[0] == 1.0 and abs(response[-1]) < 1e-13 and abs(response[1] + 1.0) < 1e-13
    rows = np.array(continuous_weights(parts, (*pair.explicit.b, 0.0), 4, response=response))
    np.testing.assert_allclose(rows @ response, 0.0, rtol=0, atol=1e-12)
    np.testing.assert_allclose(rows.sum(0)[:-1], pair.explicit.b, rtol=0, atol=1e-12)


def test_too_high_an_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order=4: the stages admit no weights of this order"):
        continuous_weights((RK4.a,), RK4.b, 4)
