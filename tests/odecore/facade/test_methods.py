"""Names of methods."""

from __future__ import annotations

import math
import sys

import pytest
import torch
import torchdiffeq  # noqa: F401  (its table of methods is read below)

from odecore.analysis.trees import order_of
from odecore.driver.integrate import integrate
from odecore.explicit.embedded import EmbeddedPair
from odecore.explicit.pairs import FEHLBERG2, HEUN3, PRINCE_DORMAND8, THREE_EIGHTHS, without_error
from odecore.explicit.tableaus import Tableau
from odecore.exponential.linear import Diagonal
from odecore.facade.methods import ADAPTIVE, FIXED, IN_PARTS, SCIPY, method_names, stepper
from odecore.facade.odeint import odeint
from odecore.problem import Semilinear


def test_every_name_of_torchdiffeq_is_known() -> None:
    assert set(sys.modules["torchdiffeq._impl.odeint"].SOLVERS) <= set(method_names())


def test_no_name_means_two_methods() -> None:
    assert not set(ADAPTIVE) & set(FIXED) and len(set(method_names())) == len(method_names())


@pytest.mark.parametrize("name", [name for name in method_names() if name != SCIPY])
def test_a_name_gives_a_stepper_with_an_order(name: str) -> None:
    assert stepper(name).order >= 1
    assert name in FIXED or stepper(name).error_order >= 2


@pytest.mark.parametrize("name", IN_PARTS)
def test_methods_for_problems_in_parts_have_names_and_solve_them(name: str) -> None:
    problem = Semilinear(Diagonal(-2.0), lambda y, t: torch.cos(t).unsqueeze(1).expand_as(y))
    method, y0 = stepper(name), torch.ones(1, 1, dtype=torch.float64)
    found = integrate(method, problem, y0, torch.linspace(0, 1, 65, dtype=torch.float64)).y
    exact = 0.6 * math.exp(-2) + 0.4 * math.cos(1) + 0.2 * math.sin(1)
    assert abs(float(found) - exact) < 0.1 * 8.0 ** -method.order


def test_odeint_says_what_methods_for_problems_in_parts_need() -> None:
    with pytest.raises(ValueError, match=r"method='kencarp4' takes the parts.*odecore.solve.*Split"):
        odeint(lambda t, y: -y, torch.ones(2), torch.tensor([0.0, 1.0]), method="kencarp4")
    assert not set(IN_PARTS) & set(method_names())


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    with pytest.raises(ValueError, match="dopri5"):
        stepper("dopri6")


@pytest.mark.parametrize("tableau", [HEUN3, THREE_EIGHTHS, FEHLBERG2.tableau, PRINCE_DORMAND8.tableau])
def test_tableaus_have_their_order(tableau: Tableau) -> None:
    assert order_of(tableau.a, tableau.b) == tableau.order


@pytest.mark.parametrize("pair", [FEHLBERG2, PRINCE_DORMAND8])
def test_embedded_weights_have_their_order(pair: EmbeddedPair) -> None:
    assert order_of(pair.tableau.a, pair.embedded) == pair.error_order - 1


def test_a_method_without_an_error_estimate_has_none() -> None:
    method, y, t = without_error(HEUN3), torch.ones(2, 1), torch.zeros(2, dtype=torch.float64)
    step = method.step(lambda y, t: -y, t, t + 0.1, y, ())
    assert method.error_order == 0 and not step.error.any()
