"""Stiff problems: all forms are one function, Jacobians are derivatives, and references agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from eval.stiff_problems import (
    PROBLEMS,
    StiffProblem,
    error,
    hires,
    kuramoto_sivashinsky,
    reference,
    robertson,
    van_der_pol,
)
from odecore.problem import ODE, Split

every_problem = pytest.mark.parametrize("make", PROBLEMS.values(), ids=PROBLEMS)
SHORT = {"robertson": partial(robertson, 4.0), "hires": partial(hires, 1.0), "van-der-pol": partial(van_der_pol, 100.0),
         "kuramoto-sivashinsky": partial(kuramoto_sivashinsky, 1.0, 32)}


def state(problem: StiffProblem) -> np.ndarray:
    start = problem.start[0].numpy()
    return start + 0.1 * np.cos(np.arange(len(start)))


@every_problem
def test_all_forms_are_the_slope_that_scipy_gets(make: Callable[[], StiffProblem]) -> None:
    problem = make()
    y, t = state(problem), torch.zeros(1, dtype=torch.float64)
    expected = problem.slope(0.0, y)
    at = torch.from_numpy(y).unsqueeze(0)
    values = [form(at, t) for form in problem.forms.values()]
    if Split in problem.forms:
        parts = problem.forms[Split]
        values.append(parts.explicit(at, t) + parts.implicit(at, t))
    assert ODE in problem.forms
    for value in values:
        np.testing.assert_allclose(value[0].numpy(), expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())


@every_problem
def test_jacobians_are_central_differences(make: Callable[[], StiffProblem]) -> None:
    problem = make()
    y = state(problem)
    h = 1e-5
    columns = [(problem.slope(0.0, y + h * e) - problem.slope(0.0, y - h * e)) / (2 * h) for e in np.eye(len(y))]
    expected = np.stack(columns, 1)
    np.testing.assert_allclose(problem.jacobian(0.0, y), expected, rtol=1e-6, atol=1e-7 * np.abs(expected).max())


@pytest.mark.parametrize("make", SHORT.values(), ids=SHORT)
def test_two_methods_find_the_same_reference(make: Callable[[], StiffProblem]) -> None:
    problem = make()
    found = reference(problem)
    assert found.gap < 1e-9 and error(problem, found.y) == 0.0
