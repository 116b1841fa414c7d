"""Dense output: orders over whole intervals, states at given times, gradients, against scipy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import DOP853 as ScipyDOP853
from scipy.integrate import RK45, solve_ivp
from torch import Tensor

from odecore.analysis.trees import density, rooted_trees, square
from odecore.driver.control import INTEGRAL, Controller
from odecore.driver.dense import bootstrapped
from odecore.driver.solve import Solution, Status, solve
from odecore.explicit import embedded, interpolants, pairs, tableaus
from odecore.explicit.embedded import BOGACKI_SHAMPINE, DOP853, DORMAND_PRINCE, TSITOURAS, EmbeddedPair
from odecore.explicit.interpolants import Interpolant
from odecore.implicit import runge_kutta as implicit_runge_kutta
from odecore.implicit.newton import Chord
from odecore.stepper import Stepper

FIXED = Controller(largest=1.0, smallest=0.99)
"""With a tolerance that all errors meet: steps of one length."""


def exactly(stepper: implicit_runge_kutta.ImplicitRungeKutta) -> Stepper:
    """The same with stages solved more exactly than a tolerance that all errors meet asks for."""
    return replace(stepper, solver=Chord(1e-13))


def coupled(y: Tensor, t: Tensor) -> Tensor:
    """p' = -2 t p², q' = cos(3t) (q - p) + p', solved by p = 1 / (r + t²) and q = r exp(sin(3t) / 3) + p."""
    p, q = y.unbind(1)
    rate = -2 * t * p**2
    return torch.stack([rate, torch.cos(3 * t) * (q - p) + rate], 1)


def exact(r: Tensor, t: Tensor) -> Tensor:
    p = 1 / (r + t**2)
    return torch.stack([p, torch.exp(torch.sin(3 * t) / 3) * r + p], -1)


R = torch.tensor([[1.2], [0.9]], dtype=torch.float64)
START, ENDS = 0.5, torch.tensor([2.0, -1.0], dtype=torch.float64)
GRID = START + (ENDS.unsqueeze(1) - START) * torch.linspace(0, 1, 151, dtype=torch.float64)
"""One sample goes forwards and one backwards."""


def run(stepper: Stepper = DORMAND_PRINCE, **changes: object) -> Solution:
    y0 = exact(R, torch.full((2, 1), START, dtype=torch.float64))[:, 0]
    arguments: dict = {"field": coupled, "y0": y0, "t0": START, "t1": ENDS, "rtol": 1e-8, "atol": 1e-8} | changes
    return solve(stepper, **arguments)


@pytest.mark.parametrize(("stepper", "coarsest"), [
    (embedded.HEUN_EULER, 32), (pairs.FEHLBERG2, 32), (BOGACKI_SHAMPINE, 32), (DORMAND_PRINCE, 16), (TSITOURAS, 16),
    (DOP853, 8), (pairs.PRINCE_DORMAND8, 8), (replace(DORMAND_PRINCE, interpolant=None), 16),
    (replace(DOP853, interpolant=None), 8), (exactly(implicit_runge_kutta.KVAERNO3), 8),
    (exactly(implicit_runge_kutta.GAUSS4), 16), (exactly(implicit_runge_kutta.GAUSS6), 16),
], ids=["heun-euler", "fehlberg2", "bogacki-shampine", "dormand-prince", "tsitouras", "dop853", "prince-dormand8",
        "dormand-prince-bootstrapped", "dop853-bootstrapped", "kvaerno3", "gauss4", "gauss6"])
def test_the_largest_error_between_steps_falls_with_the_order_of_the_method(stepper: Stepper, coarsest: int) -> None:
    steps = [coarsest, coarsest * 3 // 2, coarsest * 2, coarsest * 3]
    errors = [(run(stepper, rtol=0.0, atol=1e6, first_step=1.5 / n, controller=FIXED, ts=GRID).ys
               - exact(R, GRID)).abs().max().item() for n in steps]
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(stepper.order, abs=0.15)


@pytest.mark.parametrize(("interpolant", "tableau"), [
    (interpolants.DORMAND_PRINCE, tableaus.DORMAND_PRINCE), (interpolants.TSITOURAS, tableaus.TSITOURAS),
    (interpolants.DOP853, tableaus.DOP853)], ids=["dormand-prince", "tsitouras", "dop853"])
def test_interpolants_meet_the_order_conditions_at_all_times(
    interpolant: Interpolant, tableau: tableaus.Tableau
) -> None:
    matrix, weights = square((*tableau.a, *interpolant.extra)), np.array(interpolant.weights)

    def elementary(tree: tuple) -> np.ndarray:
        return math.prod((matrix @ elementary(branch) for branch in tree), start=np.ones(len(matrix)))

    for nodes in range(1, interpolant.order + 1):
        for tree in rooted_trees(nodes):
            wanted = np.eye(len(weights))[nodes - 1] / density(tree)  # θ^nodes / γ
            np.testing.assert_allclose(weights @ elementary(tree), wanted, rtol=0, atol=2e-12)
    np.testing.assert_allclose(weights.sum(0)[: tableau.stages], tableau.b, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("ours", "theirs"), [(DORMAND_PRINCE, RK45), (DOP853, ScipyDOP853)])
def test_the_polynomial_of_a_step_is_that_of_scipy(ours: EmbeddedPair, theirs: type) -> None:
    def field(t: float, y: np.ndarray) -> np.ndarray:
        return coupled(torch.from_numpy(y).unsqueeze(0), torch.tensor([t], dtype=torch.float64))[0].numpy()

    solver = theirs(field, 0.5, [0.7, 1.9], 2.0, first_step=0.3, rtol=1e-2, atol=1e-2)
    before = torch.tensor(solver.y).unsqueeze(0)
    solver.step()
    t0, t1 = torch.tensor([[solver.t_old], [solver.t]], dtype=torch.float64)
    carry, _ = ours.start(coupled, t0, before)
    dense = ours.step(coupled, t0, t1, before, carry).dense()
    times = np.linspace(solver.t_old, solver.t, 11)
    theta = torch.linspace(0, 1, 11, dtype=torch.float64).unsqueeze(1)
    values = sum(c * theta**k for k, c in enumerate(dense.coefficients[0]))
    np.testing.assert_allclose(values.numpy(), solver.dense_output()(times).T, rtol=0, atol=1e-13)
    assert dense.nfe == (3 if ours is DOP853 else 0)


@pytest.mark.parametrize(("name", "stepper"), [("RK45", DORMAND_PRINCE), ("DOP853", DOP853)])
def test_states_at_times_are_those_of_scipy(name: str, stepper: Stepper) -> None:
    times = np.linspace(0.5, 2.0, 37)

    def field(t: float, y: np.ndarray) -> np.ndarray:
        return coupled(torch.from_numpy(y).unsqueeze(0), torch.tensor([t], dtype=torch.float64))[0].numpy()

    y0 = exact(R[:1], torch.tensor([[0.5]], dtype=torch.float64))[0]
    theirs = solve_ivp(field, (0.5, 2.0), y0[0].numpy(), name, times, rtol=1e-10, atol=1e-10).y.T
    ours = run(stepper, y0=y0, t1=2.0, ts=torch.from_numpy(times), rtol=1e-10, atol=1e-10).ys[0]
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=0, atol=3e-8)


@pytest.mark.parametrize("stepper", [BOGACKI_SHAMPINE, DORMAND_PRINCE, DOP853, implicit_runge_kutta.SDIRK2])
def test_states_at_times_are_the_dense_solution_there(stepper: Stepper) -> None:
    options: dict = {"ts": GRID, "rtol": 1e-5, "atol": 1e-5, "controller": INTEGRAL}
    solution = run(stepper, dense=True, **options)
    assert solution.accepted[0] != solution.accepted[1] and solution.dense is not None
    torch.testing.assert_close(solution.ys, solution.dense(GRID), rtol=0, atol=1e-13)
    torch.testing.assert_close(solution.ys, exact(R, GRID), rtol=0, atol=2e-3)
    assert torch.equal(solution.ys[:, -1], solution.y)
    torch.testing.assert_close(solution.ys, run(stepper, **options).ys, rtol=0, atol=1e-13)


def test_dense_solutions_are_evaluated_in_any_order_and_shape() -> None:
    dense = run(dense=True, t1=2.0).dense
    times = torch.tensor([1.7, 0.5, 2.0, 1.7], dtype=torch.float64)
    values = dense(times)
    assert values.shape == (2, 4, 2) and torch.equal(values[:, 0], values[:, 3])
    assert torch.equal(dense(1.7), values[:, 0])
    torch.testing.assert_close(dense(torch.stack([times, times.flip(0)])), torch.stack([values[0], values[1].flip(0)]),
                               rtol=0, atol=0)


@pytest.mark.parametrize(("times", "match"), [(0.4999, "from 0.5 to 2.0"), (2.1, "holds 2.1"), (math.nan, "nan"),
                                              (torch.ones(3, 2), "shape")])
def test_times_out_of_range_are_refused(times: float | Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(dense=True, t1=2.0).dense(times)


def test_a_dense_solution_of_unequal_ranges_knows_each_of_them() -> None:
    dense = run(dense=True, t1=torch.tensor([2.0, 0.5])).dense
    values = dense(torch.tensor([[2.0], [0.5]]))
    torch.testing.assert_close(values, exact(R, torch.tensor([[2.0], [0.5]], dtype=torch.float64)), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="sample 1 goes from 0.5 to 0.5"):
        dense(1.0)


@pytest.mark.parametrize(("ts", "match"), [
    (torch.tensor([0.5, 1.0, 0.9]), "sort"), (torch.tensor([0.4]), "between"), (torch.tensor([2.5]), "between"),
    (torch.tensor([math.nan]), "between"), (torch.ones(3, 2), "shape"), (torch.ones(0), "shape")])
def test_times_that_a_solve_cannot_pass_in_order_are_refused(ts: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        run(t1=2.0, ts=ts)


def test_times_on_steps_cost_no_evaluation_and_times_between_are_counted() -> None:
    calls: list[float] = []

    def recorded(y: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t[0]))
        return coupled(y, t)

    plain = run(DOP853)
    assert run(DOP853, ts=torch.stack([torch.full((2,), START, dtype=torch.float64), ENDS], 1)).nfe == plain.nfe
    solution = run(DOP853, field=recorded, dense=True)
    attempts_with_success = (solution.nfe - plain.nfe) // 3
    assert len(calls) == solution.nfe and attempts_with_success >= int(solution.accepted.max())
    assert torch.equal(solution.y, plain.y)


def test_bootstrapping_counts_its_evaluations_and_reproduces_polynomials() -> None:
    calls: list[float] = []
    power = 6

    def field(y: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t))
        return (power * t ** (power - 1)).reshape(-1, 1)

    t0, t1 = torch.tensor([0.5], dtype=torch.float64), torch.tensor([2.0], dtype=torch.float64)
    dense = bootstrapped(field, t0, t1, t0.reshape(1, 1)**power, t1.reshape(1, 1)**power, order=7)
    assert dense.nfe == len(calls) == 2 + 1 + 2 + 3 and dense.coefficients.shape == (1, 7, 1)
    expected = [math.comb(power, k) * 0.5 ** (power - k) * 1.5**k for k in range(power + 1)]
    torch.testing.assert_close(dense.coefficients.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0,
                               atol=1e-9)


def test_times_that_a_sample_does_not_reach_are_nan_and_its_range_ends_before() -> None:
    solution = run(field=lambda y, t: y**2, y0=torch.ones(1, 1, dtype=torch.float64), t0=0.0, t1=2.0, partial=True,
                   ts=torch.tensor([0.0, 0.5, 1.5]), dense=True)
    assert solution.status.item() != Status.FINISHED
    assert solution.ys[0, :2, 0].tolist() == pytest.approx([1.0, 2.0]) and torch.isnan(solution.ys[0, 2]).all()
    with pytest.raises(ValueError, match="goes from 0.0 to"):
        solution.dense(1.5)


def test_complex_states_are_the_real_ones() -> None:
    times = torch.linspace(0, 2, 23, dtype=torch.float64)
    y0 = torch.tensor([[1.0 + 0.5j], [1j]], dtype=torch.complex128)
    for stepper in (DORMAND_PRINCE, DOP853, replace(DORMAND_PRINCE, interpolant=None)):
        solution = solve(stepper, lambda y, t: 2j * y, y0, 0.0, 2.0, rtol=1e-8, atol=1e-8, ts=times, dense=True)
        wanted = y0.unsqueeze(1) * torch.exp(2j * times).reshape(1, -1, 1)
        torch.testing.assert_close(solution.ys, wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(solution.dense(times), solution.ys, rtol=0, atol=1e-13)


def test_half_precision_states_at_times_keep_their_dtype() -> None:
    y0 = torch.ones(2, 1, dtype=torch.bfloat16)
    solution = solve(DORMAND_PRINCE, lambda y, t: -y, y0, 0.0, 1.0, rtol=1e-2, atol=1e-2, dense=True,
                     ts=torch.tensor([0.3, 0.7]))
    assert solution.ys.dtype == solution.dense(0.3).dtype == torch.bfloat16


@pytest.mark.parametrize("stepper", [BOGACKI_SHAMPINE, DOP853, replace(DORMAND_PRINCE, interpolant=None)])
def test_states_at_times_have_the_gradients_of_finite_differences(stepper: Stepper) -> None:
    y0 = exact(R, torch.full((2, 1), START, dtype=torch.float64))[:, 0].requires_grad_()
    k = torch.tensor([1.1, 0.8], dtype=torch.float64, requires_grad=True)
    ts = torch.tensor([[0.5, 0.9, 1.3, 2.0], [0.5, 0.1, -0.2, -1.0]], dtype=torch.float64)
    inner = ts[:, 1:3].clone().requires_grad_()

    def states(y0: Tensor, k: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
        times = torch.cat([ts[:, :1], inner, ts[:, 3:]], 1)
        solution = solve(stepper, lambda y, t, k: k.unsqueeze(1) * coupled(y, t), y0, START, ENDS, args=(k,), rtol=0.0,
                         atol=1e6, first_step=0.5, controller=FIXED, ts=times, dense=True)
        return solution.ys, solution.dense(times)

    assert torch.autograd.gradcheck(states, (y0, k, inner), rtol=1e-6, atol=1e-7)


def test_the_gradient_of_a_time_is_the_slope_of_the_solution() -> None:
    ts = torch.tensor([[0.5, 1.0, 2.0], [0.5, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    states = run(DOP853, ts=ts, rtol=1e-10, atol=1e-10).ys
    (gradient,) = torch.autograd.grad(states[..., 0].sum(), ts)
    slope = torch.stack([coupled(y, t)[:, 0] for y, t in zip(states.detach().unbind(1), ts.detach().unbind(1),
                                                             strict=True)], 1)
    torch.testing.assert_close(gradient, slope, rtol=0, atol=1e-6)


@pytest.mark.parametrize("changes", [{"weights": ((1.0,), (1.0, 0.0))}, {"extra": ((1.0, 0.0, 0.0),)}])
def test_interpolants_with_rows_that_do_not_fit_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="give rows|each row"):
        Interpolant(**({"weights": ((1.0, 0.0),), "order": 1} | changes))
