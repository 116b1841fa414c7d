"""Implicit Runge–Kutta steppers: orders, stiff problems, independence of samples, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from odecore.driver.integrate import integrate
from odecore.driver.solve import SolveError, Status, solve
from odecore.gradients.checkpointed import integrate_checkpointed, solve_checkpointed
from odecore.half_steps import HalfSteps
from odecore.implicit import runge_kutta as implicit_runge_kutta
from odecore.implicit import tableaus as implicit_tableaus
from odecore.implicit.anderson import Anderson
from odecore.implicit.jacobian import Banded
from odecore.implicit.newton import Chord, Newton, NewtonKrylov, RootFinder
from odecore.implicit.runge_kutta import (
    BACKWARD_EULER,
    GAUSS4,
    KVAERNO3,
    KVAERNO5,
    RADAU3,
    RADAU5,
    SDIRK2,
    TR_BDF2,
    ImplicitRungeKutta,
    with_slope,
)
from odecore.stepper import Stepper

METHODS = {name: value for name, value in vars(implicit_runge_kutta).items() if isinstance(value, ImplicitRungeKutta)}
STIFFLY_ACCURATE = [name for name, value in METHODS.items() if value.first_same_as_last and name != "CRANK_NICOLSON"]
FINDERS: dict[str, RootFinder] = {"newton": Newton(1e-14), "chord": Chord(1e-14), "krylov": NewtonKrylov(1e-14),
                                  "anderson": Anderson(1e-14)}
every_method = pytest.mark.parametrize("name", METHODS)
every_finder = pytest.mark.parametrize("finder", FINDERS.values(), ids=FINDERS)


def rotating(y: Tensor, t: Tensor) -> Tensor:
    """Non-linear and non-autonomous, with the solution (cos t², sin t² + t)."""
    t = t.to(y.dtype)
    u, v = y[:, 0], y[:, 1] - t
    squeeze = 1 - u * u - v * v
    return torch.stack((-2 * t * v + u * squeeze, 2 * t * u + v * squeeze + 1), 1)


def rotation(t: float) -> Tensor:
    return torch.tensor([[math.cos(t * t), math.sin(t * t) + t]], dtype=torch.float64)


def robertson(y: Tensor, t: Tensor) -> Tensor:
    forth, back, last = 0.04 * y[:, 0], 1e4 * y[:, 1] * y[:, 2], 3e7 * y[:, 1].square()
    return torch.stack((back - forth, forth - back - last, last), 1)


def van_der_pol(y: Tensor, t: Tensor, mu: Tensor) -> Tensor:
    return torch.stack((y[:, 1], mu * (1 - y[:, 0].square()) * y[:, 1] - y[:, 0]), 1)


def reference(field: Callable[..., Tensor], y0: list[float], t1: float, method: str = "Radau", **options: float
              ) -> tuple[Tensor, int]:
    """SciPy's solution and its number of steps."""
    def plain(t: float, y: np.ndarray) -> np.ndarray:
        return field(torch.tensor(y).unsqueeze(0), torch.tensor([t]))[0].numpy()

    found = solve_ivp(plain, (0.0, t1), y0, method=method, **options)
    return torch.tensor(found.y[:, -1]).unsqueeze(0), found.t.size - 1


def slope_of(sizes: list[float], errors: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


@torch.no_grad()
@every_method
def test_methods_have_their_order(name: str) -> None:
    counts = {6: (3, 5, 7, 10), 5: (6, 8, 12, 16)}.get(METHODS[name].order, (16, 24, 32, 48))
    errors = [(integrate(METHODS[name], rotating, rotation(0.5), torch.linspace(0.5, 1.5, n + 1)).y - rotation(1.5))
              .abs().max().item() for n in counts]
    assert slope_of([1 / n for n in counts], errors) == pytest.approx(METHODS[name].order, abs=0.15)


@torch.no_grad()
@every_method
def test_error_estimates_shrink_as_declared(name: str) -> None:
    stepper = METHODS[name]
    t0, sizes = torch.tensor([0.7], dtype=torch.float64), [0.04, 0.03, 0.02, 0.015]
    carry, _ = stepper.start(rotating, t0, rotation(0.7))
    errors = [stepper.step(rotating, t0, t0 + h, rotation(0.7), carry).error.norm().item() for h in sizes]
    assert slope_of(sizes, errors) == pytest.approx(stepper.error_order, abs=0.15)


@torch.no_grad()
@every_finder
@pytest.mark.parametrize("name", ["KVAERNO3", "RADAU3", "GAUSS4"])
def test_every_solver_takes_the_same_step(finder: RootFinder, name: str) -> None:
    times = [0.5, 0.6, 0.75]
    ours = integrate(ImplicitRungeKutta(METHODS[name].tableau, finder), rotating, rotation(0.5), times)
    theirs = integrate(METHODS[name], rotating, rotation(0.5), times)
    torch.testing.assert_close(ours.y, theirs.y, rtol=0, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("name", ["TR_BDF2", "RADAU5", "GAUSS4"])
def test_without_derivatives_every_evaluation_is_counted(name: str) -> None:
    calls = []

    def field(y: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return rotating(y, t)

    found = integrate(ImplicitRungeKutta(METHODS[name].tableau, Anderson()), field, rotation(0.5), [0.5, 0.6, 0.7])
    assert found.nfe == len(calls)


@torch.no_grad()
def test_a_banded_jacobian_takes_the_same_step_in_fewer_evaluations() -> None:
    def heat(y: Tensor, t: Tensor) -> Tensor:
        left, right = torch.nn.functional.pad(y[:, :-1], (1, 0)), torch.nn.functional.pad(y[:, 1:], (0, 1))
        return 400 * (left - 2 * y + right) - y**3

    y0 = torch.linspace(0, 3, 20, dtype=torch.float64).sin().unsqueeze(0)
    for method in (KVAERNO3, RADAU3):
        dense, banded = (integrate(ImplicitRungeKutta(method.tableau, Newton(jacobian=jacobian)), heat, y0, [0.0, 0.05])
                         for jacobian in (Newton().jacobian, Banded(1, 1)))
        torch.testing.assert_close(banded.y, dense.y, rtol=0, atol=1e-12)
        assert banded.nfe < dense.nfe / 3


@torch.no_grad()
@pytest.mark.parametrize("name", STIFFLY_ACCURATE)
def test_stiffly_accurate_methods_follow_the_problem_of_prothero_and_robinson(name: str) -> None:
    def field(y: Tensor, t: Tensor) -> Tensor:
        return -1e6 * (y - torch.sin(t).unsqueeze(1)) + torch.cos(t).unsqueeze(1)

    found = integrate(METHODS[name], field, torch.zeros(1, 1, dtype=torch.float64), torch.linspace(0, 1, 11))
    assert abs(found.y.item() - math.sin(1.0)) <= 1e-7  # h²/λ: what is stiff costs no accuracy


@torch.no_grad()
@pytest.mark.parametrize("name", STIFFLY_ACCURATE)
def test_error_estimates_do_not_see_what_is_damped(name: str) -> None:
    """A transient of rate 1e8 off the slow solution: an unfiltered estimate would be its h λ = 1e7 times."""
    def field(y: Tensor, t: Tensor) -> Tensor:
        return -1e8 * (y - torch.cos(t).unsqueeze(1)) - torch.sin(t).unsqueeze(1)

    t0, t1 = torch.zeros(1, dtype=torch.float64), torch.full((1,), 0.1, dtype=torch.float64)
    y = torch.full((1, 1), 1 + 1e-3, dtype=torch.float64)
    carry, _ = METHODS[name].start(field, t0, y)
    assert METHODS[name].step(field, t0, t1, y, carry).error.abs().max() <= 3e-3


@torch.no_grad()
@pytest.mark.parametrize("method", [RADAU5, KVAERNO5])
def test_robertson_agrees_with_scipy_in_no_more_steps(method: ImplicitRungeKutta) -> None:
    exact, _ = reference(robertson, [1.0, 0.0, 0.0], 1e4, rtol=1e-10, atol=1e-14)
    _, theirs = reference(robertson, [1.0, 0.0, 0.0], 1e4, rtol=1e-6, atol=1e-10)
    y0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    found = solve(method, robertson, y0, 0.0, 1e4, rtol=1e-6, atol=1e-10, first_step=1e-4)
    torch.testing.assert_close(found.y, exact, rtol=1e-5, atol=0)
    assert found.accepted.item() + found.rejected.item() <= 1.1 * theirs


@torch.no_grad()
@pytest.mark.parametrize("name", ["SDIRK2", "TR_BDF2", "KVAERNO3", "KVAERNO4", "RADAU3", "GAUSS6"])
def test_the_error_follows_the_tolerance_on_robertson(name: str) -> None:
    exact, _ = reference(robertson, [1.0, 0.0, 0.0], 40.0, rtol=1e-10, atol=1e-14)
    y0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    found = solve(METHODS[name], robertson, y0, 0.0, 40.0, rtol=1e-4, atol=1e-8, first_step=1e-4)
    torch.testing.assert_close(found.y, exact, rtol=2e-3, atol=0)
    assert found.accepted.item() <= 150


@torch.no_grad()
@pytest.mark.parametrize("name", ["KVAERNO5", "RADAU5"])
def test_stages_are_solved_as_far_as_the_driver_notices_and_on_grids_always_tightly(name: str) -> None:
    tight = ImplicitRungeKutta(METHODS[name].tableau, Chord(1e-13))
    for rtol in (1e-3, 1e-5):
        ours, theirs = (solve(method, rotating, rotation(0.5), 0.5, 1.5, rtol=rtol, atol=rtol)
                        for method in (METHODS[name], tight))
        assert ours.nfe < 0.8 * theirs.nfe and ours.accepted <= theirs.accepted + 1
        assert (ours.y - rotation(1.5)).abs().max() <= 5 * rtol
    grids = [integrate(method, rotating, rotation(0.5), [0.5, 0.6, 0.7]).y for method in (METHODS[name], tight)]
    torch.testing.assert_close(*grids, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("name", ["KVAERNO5", "RADAU5"])
def test_the_tightest_tolerances_are_met(name: str) -> None:
    found = solve(METHODS[name], rotating, rotation(0.5), 0.5, 1.5, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.y, rotation(1.5), rtol=0, atol=2e-11)


@torch.no_grad()
def test_van_der_pol_takes_as_many_steps_as_scipy() -> None:
    def field(y: Tensor, t: Tensor) -> Tensor:
        return van_der_pol(y, t, torch.tensor(1e3))

    exact, _ = reference(field, [2.0, 0.0], 850.0, rtol=1e-10, atol=1e-12)
    _, theirs = reference(field, [2.0, 0.0], 850.0, rtol=1e-3, atol=1e-5)
    found = solve(RADAU5, field, torch.tensor([[2.0, 0.0]], dtype=torch.float64), 0.0, 850.0, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found.y, exact, rtol=1e-2, atol=0)
    assert found.accepted.item() <= 1.2 * theirs


@torch.no_grad()
@pytest.mark.parametrize("method", [KVAERNO3, RADAU5, ImplicitRungeKutta(KVAERNO3.tableau, NewtonKrylov())],
                         ids=["KVAERNO3", "RADAU5", "krylov"])
def test_a_hard_sample_leaves_the_others_as_they_are_alone(method: ImplicitRungeKutta) -> None:
    y0 = torch.tensor([[2.0, 0.0]] * 3, dtype=torch.float64)
    mu = torch.tensor([1.0, 300.0, 5.0], dtype=torch.float64)
    options = {"rtol": 1e-5, "atol": 1e-7}
    together = solve(method, van_der_pol, y0, 0.0, 2.0, args=(mu,), **options)
    for i in range(3):
        alone = solve(method, van_der_pol, y0[i:i + 1], 0.0, 2.0, args=(mu[i:i + 1],), **options)
        torch.testing.assert_close(together.y[i:i + 1], alone.y, rtol=1e-12, atol=1e-14)
        assert (together.accepted[i], together.rejected[i]) == (alone.accepted[0], alone.rejected[0])


@torch.no_grad()
@pytest.mark.parametrize("method", [KVAERNO3, RADAU3, HalfSteps(GAUSS4), ImplicitRungeKutta(implicit_tableaus.SDIRK2)],
                         ids=["KVAERNO3", "RADAU3", "GAUSS4 in halves", "SDIRK2 without an estimate"])
def test_a_sample_whose_stages_are_not_found_has_an_infinite_error(method: Stepper) -> None:
    def field(y: Tensor, t: Tensor) -> Tensor:
        return torch.tensor([[1.0], [1e3]]) * (1 + y * y)

    y = torch.ones(2, 1, dtype=torch.float64)
    t0, t1 = torch.tensor([[0.0, 0.0], [0.01, 1.0]], dtype=torch.float64)
    carry, _ = method.start(field, t0, y)
    step = method.step(field, t0, t1, y, carry)
    assert step.error.isinf().squeeze(1).tolist() == [False, True]
    for run in (integrate, integrate_checkpointed):
        with pytest.raises(SolveError) as caught:
            run(method, field, y, torch.stack((t0, t1)))
        assert caught.value.solution.status[1] == Status.NOT_CONVERGED


@torch.no_grad()
def test_complex_and_half_precision_states_are_solved() -> None:
    y0 = torch.tensor([[1.0 + 0.5j], [0.3j]], dtype=torch.complex128)
    found = solve(KVAERNO5, lambda y, t: 1j * y * y.abs().square(), y0, 0.0, 1.0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.y, y0 * torch.exp(1j * y0.abs().square()), rtol=0, atol=1e-6)
    half = solve(RADAU3, lambda y, t: -y, torch.ones(2, 1, dtype=torch.bfloat16), 0.0, 1.0, rtol=1e-3, atol=1e-3)
    assert half.y.dtype == torch.bfloat16 and (half.y - math.exp(-1)).abs().max() <= 5e-3


@torch.no_grad()
@pytest.mark.parametrize("name", ["BACKWARD_EULER", "SDIRK2", "KVAERNO5", "RADAU5"])
def test_dense_output_costs_nothing_and_agrees_with_the_solution(name: str) -> None:
    ts = torch.linspace(0.6, 1.4, 7, dtype=torch.float64)
    options = {"rtol": 1e-5, "atol": 1e-5}
    with_states = solve(METHODS[name], rotating, rotation(0.5), 0.5, 1.5, ts=ts, **options)
    without = solve(METHODS[name], rotating, rotation(0.5), 0.5, 1.5, **options)
    assert with_states.nfe == without.nfe
    exact = torch.cat([rotation(t) for t in ts.tolist()]).unsqueeze(0)
    torch.testing.assert_close(with_states.ys, exact, rtol=0, atol=1e-2 if name == "BACKWARD_EULER" else 1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", ["KVAERNO4", "KVAERNO5", "RADAU5"])
def test_dense_output_of_a_stiff_problem_is_as_good_as_its_steps(name: str) -> None:
    def relaxing(y: Tensor, t: Tensor) -> Tensor:
        return -1e7 * (y - torch.cos(t).unsqueeze(1)) - torch.sin(t).unsqueeze(1)

    ts = torch.linspace(0, 2, 81, dtype=torch.float64)
    found = solve(METHODS[name], relaxing, torch.ones(1, 1, dtype=torch.float64), 0.0, 2.0, rtol=1e-6, atol=1e-6, ts=ts,
                  longest=0.1)
    assert found.ys is not None and found.accepted[0] < 30
    assert (found.ys[0, :, 0] - torch.cos(ts)).abs().max() < 2e-5


def swinging(y: Tensor, t: Tensor, theta: Tensor) -> Tensor:
    return torch.tanh(y @ theta.mT) + torch.sin(t).unsqueeze(1) * y.flip(1)


THETA = torch.tensor([[-0.6, 1.1], [-0.9, -0.4]], dtype=torch.float64)
Y0 = torch.tensor([[1.0, 0.2], [-0.4, 0.7]], dtype=torch.float64)
TIMES = torch.tensor([0.0, 0.1, 0.25], dtype=torch.float64)


def unrolled(tableau: implicit_tableaus.ImplicitTableau, y: Tensor, theta: Tensor, times: Tensor) -> Tensor:
    """The same steps by so many plain iterations of all stages that autograd through them is exact."""
    for t0, t1 in zip(times[:-1], times[1:], strict=True):
        h = t1 - t0
        slopes = [torch.zeros_like(y)] * tableau.stages
        for _ in range(45):
            points = [y + h * sum(a * k for a, k in zip(row, slopes, strict=True)) for row in tableau.a]
            slopes = [swinging(point, (t0 + c * h).expand(len(y)), theta)
                      for point, c in zip(points, tableau.c, strict=True)]
        y = y + h * sum(b * k for b, k in zip(tableau.b, slopes, strict=True))
    return y


def gradients_of(run: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
    inputs = [x.clone().requires_grad_() for x in (Y0, THETA, TIMES)]
    y = run(*inputs)
    weights = torch.arange(1.0, 5.0, dtype=torch.float64).reshape(2, 2)
    return [y.detach(), *torch.autograd.grad((y.sin() * weights).sum() + y.square().sum(), inputs)]


def assert_gradients_agree(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-10 * b.norm()


@every_finder
@pytest.mark.parametrize("method", [BACKWARD_EULER, TR_BDF2, GAUSS4, RADAU3], ids=["Euler", "BDF2", "Gauss", "Radau"])
def test_gradients_of_steps_are_those_of_the_unrolled_iteration(method: ImplicitRungeKutta, finder: RootFinder) -> None:
    stepper = ImplicitRungeKutta(method.tableau, finder)

    def stepped(y: Tensor, theta: Tensor, times: Tensor) -> Tensor:
        def field(y: Tensor, t: Tensor) -> Tensor:
            return swinging(y, t, theta)

        nodes = times.unsqueeze(1).expand(-1, 2)
        carry, _ = stepper.start(field, nodes[0], y)
        for t0, t1 in zip(nodes[:-1], nodes[1:], strict=True):
            y, carry, *_ = stepper.step(field, t0, t1, y, carry)
        return y

    def checkpointed(y: Tensor, theta: Tensor, times: Tensor) -> Tensor:
        return integrate_checkpointed(stepper, lambda y, t: swinging(y, t, theta), y, times, states=1,
                                      parameters=[theta])

    expected = gradients_of(lambda y, theta, times: unrolled(method.tableau, y, theta, times))
    assert_gradients_agree(gradients_of(stepped), expected)
    assert_gradients_agree(gradients_of(checkpointed), expected)


@pytest.mark.parametrize("finder", [FINDERS["newton"], FINDERS["krylov"]], ids=["newton", "krylov"])
@pytest.mark.parametrize("method", [KVAERNO3, RADAU5], ids=["Kværnø 3", "Radau 5"])
def test_gradients_of_adaptive_solves_are_those_of_autograd(method: ImplicitRungeKutta, finder: RootFinder) -> None:
    stepper, mu = ImplicitRungeKutta(method.tableau, finder), torch.tensor(30.0, dtype=torch.float64)
    options = {"rtol": 1e-2, "atol": 1e-3}
    results = []
    for checkpointing in (True, False):
        y, leaf = Y0.clone().requires_grad_(), mu.clone().requires_grad_()

        def field(y: Tensor, t: Tensor, mu: Tensor = leaf) -> Tensor:
            return van_der_pol(y, t, mu)

        end = (solve_checkpointed(stepper, field, y, 0.0, 0.1, states=2, parameters=[leaf], **options) if checkpointing
               else solve(stepper, field, y, 0.0, 0.1, **options).y)
        results.append(torch.autograd.grad(end.square().sum(), (y, leaf)))
    assert_gradients_agree(*map(list, results))


@pytest.mark.parametrize("finder", [FINDERS["newton"], FINDERS["krylov"]], ids=["newton", "krylov"])
@pytest.mark.parametrize("method", [SDIRK2, KVAERNO5, RADAU5], ids=["SDIRK2", "Kværnø 5", "Radau 5"])
def test_gradients_of_a_stiff_step_are_finite_differences(method: ImplicitRungeKutta, finder: RootFinder) -> None:
    stepper, times = ImplicitRungeKutta(method.tableau, finder), [0.0, 0.1, 0.3]
    y0 = torch.tensor([[1.8, -0.6]], dtype=torch.float64)

    def end(mu: Tensor) -> Tensor:
        return integrate(stepper, lambda y, t: van_der_pol(y, t, mu), y0, times).y.sum()

    mu = torch.tensor(50.0, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(end(mu), mu)
    with torch.no_grad():  # the central difference of order eight
        weights, h = (4 / 5, -1 / 5, 4 / 105, -1 / 280), 0.5
        difference = sum(w / h * (end(mu + i * h) - end(mu - i * h)) for i, w in enumerate(weights, 1))
    assert gradient.item() == pytest.approx(float(difference), rel=1e-10)


@pytest.mark.parametrize("tableau", [implicit_tableaus.KVAERNO3,
                                     implicit_tableaus.ImplicitTableau(((1.0, 0.0), (0.0, 1.0)), (0.5, 0.5), 1)])
def test_an_estimate_from_the_slope_needs_distinct_implicit_stages(tableau: implicit_tableaus.ImplicitTableau) -> None:
    with pytest.raises(ValueError, match="distinct times"):
        with_slope(tableau)


def test_radau_has_the_estimate_of_hairer_and_wanner() -> None:
    """IV.8: γ0 is the inverse of the real eigenvalue of A^{-1}, the difference of weights γ0/3 (-13 ∓ 7√6, -1) A."""
    gamma = 1 / (3 + 3 ** (2 / 3) - 3 ** (1 / 3))
    tableau = RADAU5.tableau
    a = np.array([row[1:] for row in tableau.a[1:]])
    expected = gamma / 3 * np.array([-13 - 7 * 6**0.5, -13 + 7 * 6**0.5, -1]) @ a
    assert tableau.embedded[0] == pytest.approx(gamma, rel=1e-12)
    np.testing.assert_allclose(np.subtract(tableau.embedded, tableau.b)[1:], expected, rtol=1e-12)
