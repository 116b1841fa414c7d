"""Implicit–explicit Runge–Kutta: orders, limits, exact linear solves, gradients, stiff problems, batches."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from odecore.analysis.stability import StabilityFunction
from odecore.driver.batch import bound
from odecore.driver.dense import evaluate
from odecore.driver.solve import SolveError, solve
from odecore.explicit.embedded import DORMAND_PRINCE, EmbeddedPair
from odecore.exponential.linear import Dense, Diagonal, Fourier
from odecore.implicit import additive as imex
from odecore.implicit import additive_tableaus as imex_tableaus
from odecore.implicit.additive import AdditiveRungeKutta
from odecore.implicit.additive_tableaus import ARS222, ARS443, IMEX_EULER, KENCARP3, KENCARP4, KENCARP5, AdditiveTableau
from odecore.implicit.jacobian import Banded
from odecore.implicit.newton import Chord, Newton, NewtonKrylov
from odecore.implicit.runge_kutta import ImplicitRungeKutta
from odecore.problem import Semilinear, Split
from odecore.stepper import Step

PAIRS = {name: value for name, value in vars(imex_tableaus).items() if isinstance(value, AdditiveTableau)}
EMBEDDED = [name for name, value in PAIRS.items() if value.implicit.embedded]
TIGHT = Chord(tolerance=1e-13)


def mild(y: Tensor, t: Tensor) -> Tensor:
    a, b = y.unbind(1)
    return torch.stack((torch.sin(t) * b - 0.3 * a * b, torch.cos(2 * t) + 0.2 * a * b), 1)


def stiff(y: Tensor, t: Tensor) -> Tensor:
    a, b = y.unbind(1)
    return torch.stack((-2 * a - a**3 + 0.5 * torch.cos(t), -b * (1 + a**2) + 0.5 * t), 1)


SPLIT = Split(mild, stiff)
START = torch.tensor([[0.7, -0.4], [-0.2, 0.9]], dtype=torch.float64)


def exact(problem: Callable[..., Tensor], y0: Tensor, t0: float, t1: float, method: str = "DOP853") -> Tensor:
    """Each sample by scipy, to rounding."""
    def right(t: float, y: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(y).reshape(1, *y0.shape[1:])
        return problem(state, torch.tensor([t], dtype=torch.float64)).flatten().numpy()

    rows = [solve_ivp(right, (t0, t1), row.flatten().numpy(), method=method, rtol=1e-12, atol=1e-13).y[:, -1]
            for row in y0]
    return torch.from_numpy(np.stack(rows)).reshape(y0.shape)


def one(stepper: AdditiveRungeKutta, problem: object, y: Tensor, t0: float, t1: float) -> Step:
    begin, end = (torch.full((len(y),), t, dtype=torch.float64) for t in (t0, t1))
    return stepper.step(problem, begin, end, y, ())  # type: ignore[arg-type]


@torch.no_grad()
def march(stepper: AdditiveRungeKutta, problem: object, y: Tensor, t0: float, t1: float, steps: int) -> Tensor:
    grid = np.linspace(t0, t1, steps + 1)
    for left, right in zip(grid[:-1], grid[1:], strict=True):
        y = one(stepper, problem, y, left, right).y
    return y


def slope(sizes: list[float], errors: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


@pytest.fixture(scope="module")
def reference() -> Tensor:
    return exact(SPLIT, START, 0.1, 0.9)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_converge_with_their_order_on_a_split_time_dependent_system(name: str, reference: Tensor) -> None:
    counts = [8, 12, 16, 24]
    stepper = AdditiveRungeKutta(PAIRS[name], TIGHT)
    errors = [float((march(stepper, SPLIT, START, 0.1, 0.9, n) - reference).abs().max()) for n in counts]
    assert slope([1 / n for n in counts], errors) == pytest.approx(stepper.order, abs=0.15)


@pytest.mark.parametrize(("tableau", "largest"), [(KENCARP3, 0.02), (KENCARP4, 0.04), (KENCARP5, 0.04)])
def test_error_estimates_shrink_with_their_order(tableau: AdditiveTableau, largest: float) -> None:
    stepper = AdditiveRungeKutta(tableau, TIGHT)
    sizes = [largest * factor for factor in (1, 0.7, 0.5, 0.35)]
    errors = [float(one(stepper, SPLIT, START, 0.4, 0.4 + h).error.norm()) for h in sizes]
    assert slope(sizes, errors) == pytest.approx(stepper.error_order, abs=0.15)


@pytest.mark.parametrize("name", [name for name in PAIRS if name not in EMBEDDED])
def test_pairs_without_embedded_weights_say_so(name: str) -> None:
    stepper = AdditiveRungeKutta(PAIRS[name])
    assert stepper.error_order == 0 and not one(stepper, SPLIT, START, 0.0, 0.1).error.any()


@pytest.mark.parametrize("name", PAIRS)
def test_without_an_implicit_part_a_step_is_that_of_the_explicit_method(name: str) -> None:
    tableau = PAIRS[name]
    embedded = tableau.implicit.embedded or tableau.explicit.b
    pair = EmbeddedPair(tableau.explicit, embedded, tableau.order)
    times = (torch.zeros(2, dtype=torch.float64), torch.full((2,), 0.3, dtype=torch.float64))
    expected = pair.step(mild, *times, START, pair.start(mild, times[0], START)[0])
    found = one(AdditiveRungeKutta(tableau), Split(mild, lambda y, t: torch.zeros_like(y)), START, 0.0, 0.3)
    torch.testing.assert_close(found.y, expected.y, rtol=0, atol=1e-14)
    torch.testing.assert_close(found.error, expected.error, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", EMBEDDED)
def test_without_an_explicit_part_a_step_is_that_of_the_implicit_method(name: str) -> None:
    begin, end = torch.full((2,), 0.1, dtype=torch.float64), torch.full((2,), 0.4, dtype=torch.float64)
    method = ImplicitRungeKutta(PAIRS[name].implicit, TIGHT)
    expected = method.step(stiff, begin, end, START, method.start(stiff, begin, START)[0])
    found = one(AdditiveRungeKutta(PAIRS[name], TIGHT), Split(lambda y, t: 0 * y, stiff), START, 0.1, 0.4)
    torch.testing.assert_close(found.y, expected.y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("z", [-0.5, -20.0, -1e6, 2j])
def test_a_linear_implicit_part_alone_is_multiplied_by_the_stability_function(name: str, z: complex) -> None:
    implicit = PAIRS[name].implicit
    expected = complex(StabilityFunction.of(implicit.a, implicit.b).at(z))
    y = torch.tensor([[1.0 + 0.5j]], dtype=torch.complex128)
    zero = Semilinear(Diagonal(complex(z)), lambda y, t: torch.zeros_like(y))
    found = one(AdditiveRungeKutta(PAIRS[name]), zero, y, 0.0, 1.0).y
    assert abs(complex(found / y) - expected) <= 1e-13


@pytest.mark.parametrize("name", PAIRS)
def test_semilinear_problems_take_the_steps_of_the_same_split_problem(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(2, 2, generator=generator, dtype=torch.float64) - 3 * torch.eye(2, dtype=torch.float64)
    stepper = AdditiveRungeKutta(PAIRS[name], TIGHT)
    direct = one(stepper, Semilinear(Dense(matrix), mild), START, 0.1, 0.4)
    newton = one(stepper, Split(mild, lambda y, t: y @ matrix.mT), START, 0.1, 0.4)
    torch.testing.assert_close(direct.y, newton.y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(direct.error, newton.error, rtol=1e-9, atol=1e-12)
    assert direct.newton == 0 and newton.newton > 0


@pytest.mark.parametrize("solver", [Newton(), Chord(), NewtonKrylov(), Newton(jacobian=Banded(1, 1))])
def test_every_solver_finds_the_same_stages(solver: object) -> None:
    expected = one(AdditiveRungeKutta(KENCARP4, TIGHT), SPLIT, START, 0.1, 0.4)
    found = one(AdditiveRungeKutta(KENCARP4, solver), SPLIT, START, 0.1, 0.4)
    torch.testing.assert_close(found.y, expected.y, rtol=1e-9, atol=1e-10)


def test_evaluations_are_counted_and_fall_on_the_stage_times() -> None:
    """ARS(4,4,3): no slope of the last stage of f, none of the first of g."""
    times: dict[str, list[float]] = {"f": [], "g": []}

    def recorded(name: str, part: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def function(y: Tensor, t: Tensor) -> Tensor:
            times[name].append(float(t[0]))
            return part(y, t)

        return function

    with torch.no_grad():
        step = one(AdditiveRungeKutta(ARS443), Split(recorded("f", mild), recorded("g", stiff)), START, 1.0, 3.0)
    assert times["f"] == pytest.approx([1 + 2 * c for c in ARS443.c[:4]])
    assert sorted(set(times["g"])) == pytest.approx(sorted({1 + 2 * c for c in ARS443.c[1:]}))
    assert step.nfe >= len(times["f"]) + step.newton


def test_a_semilinear_step_evaluates_the_mild_part_once_a_stage() -> None:
    calls = []

    def counted(y: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return mild(y, t)

    step = one(AdditiveRungeKutta(KENCARP5), Semilinear(Diagonal(-3.0), counted), START, 0.0, 0.1)
    assert step.nfe == len(calls) == KENCARP5.stages


@pytest.mark.parametrize("tableau", [ARS222, KENCARP4], ids=["ARS222", "KENCARP4"])
def test_gradients_through_a_step_agree_with_finite_differences(tableau: AdditiveTableau) -> None:
    stepper = AdditiveRungeKutta(tableau, Newton(tolerance=1e-14, limit=30))

    def loss(y: Tensor, theta: Tensor) -> Tensor:
        problem = Split(lambda y, t: theta[0] * mild(y, t), lambda y, t: theta[1] * stiff(y, t) - y.flip(1))
        step = one(stepper, problem, y, 0.2, 0.7)
        return (step.y * torch.tensor([1.0, -2.0])).sum() + step.error.sum()

    inputs = [START.clone().requires_grad_(), torch.tensor([1.3, 2.5], dtype=torch.float64, requires_grad=True)]
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    for which, gradient in enumerate(gradients):
        for index in np.ndindex(*gradient.shape):
            expected = central(lambda *x: float(loss(*x)), [x.detach() for x in inputs], which, index)
            assert float(gradient[index]) == pytest.approx(expected, rel=1e-9, abs=1e-10)


def test_gradients_through_a_semilinear_step_agree_with_finite_differences() -> None:
    def loss(y: Tensor, symbol: Tensor) -> Tensor:
        problem = Semilinear(Diagonal(symbol), lambda y, t: torch.sin(y.flip(1)) * t.unsqueeze(1))
        step = one(AdditiveRungeKutta(KENCARP3), problem, y, 0.2, 0.7)
        return (step.y * torch.tensor([1.0, -2.0])).sum() + step.error.sum()

    inputs = [START.clone().requires_grad_(), torch.tensor([-1.3, -9.0], dtype=torch.float64, requires_grad=True)]
    gradients = torch.autograd.grad(loss(*inputs), inputs)
    for which, gradient in enumerate(gradients):
        for index in np.ndindex(*gradient.shape):
            expected = central(lambda *x: float(loss(*x)), [x.detach() for x in inputs], which, index)
            assert float(gradient[index]) == pytest.approx(expected, rel=1e-9, abs=1e-10)


@pytest.mark.parametrize("problem", [SPLIT, Semilinear(Diagonal(-3.0), mild)], ids=["split", "semilinear"])
def test_the_length_of_a_step_has_a_gradient(problem: Split | Semilinear) -> None:
    stepper = AdditiveRungeKutta(KENCARP4, Newton(tolerance=1e-14, limit=30))
    begin = torch.full((2,), 0.2, dtype=torch.float64)

    def loss(end: Tensor) -> Tensor:
        return stepper.step(problem, begin, end, START, ()).y.sum()

    end = torch.tensor([0.7, 0.5], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(end), end)
    for i in range(2):
        expected = central(lambda x: float(loss(x)), [end.detach()], 0, (i,))
        assert float(gradient[i]) == pytest.approx(expected, rel=1e-9)


def central(function: Callable[..., float], inputs: list[Tensor], which: int, index: tuple[int, ...]) -> float:
    """A derivative by central differences of order eight."""
    def at(shift: float) -> float:
        moved = [x.clone() for x in inputs]
        moved[which][index] += shift
        return function(*moved)

    h = 2e-2
    weights = (4 / 5, -1 / 5, 4 / 105, -1 / 280)
    return sum(w * (at(k * h) - at(-k * h)) for k, w in enumerate(weights, 1)) / h


def van_der_pol(stiffness: float) -> Split:
    """The stiff second component is implicit, the first is not."""
    def fast(y: Tensor, t: Tensor) -> Tensor:
        a, b = y.unbind(1)
        return torch.stack((torch.zeros_like(a), stiffness * ((1 - a**2) * b - a)), 1)

    return Split(lambda y, t: torch.stack((y[:, 1], torch.zeros_like(y[:, 1])), 1), fast)


@pytest.mark.parametrize(("tableau", "bound"), [(KENCARP3, 1e-4), (KENCARP4, 2e-6), (KENCARP5, 5e-6)])
@torch.no_grad()
def test_van_der_pol_s_stiff_oscillator_is_solved_to_the_tolerance(tableau: AdditiveTableau, bound: float) -> None:
    """The stiff component loses order by the splitting, most with the pair of order 3."""
    problem, settings = van_der_pol(1e3), {"rtol": 1e-6, "atol": 1e-8, "first_step": 1e-3}
    y0 = torch.tensor([[2.0, -0.6666], [1.8, -0.8]], dtype=torch.float64)
    solution = solve(AdditiveRungeKutta(tableau), problem, y0, 0.0, 0.2, **settings)
    torch.testing.assert_close(solution.y, exact(problem, y0, 0.0, 0.2, "Radau"), rtol=bound, atol=bound / 10)
    explicit = solve(DORMAND_PRINCE, problem, y0, 0.0, 0.2, **settings)
    assert int(solution.accepted.max()) < int(explicit.accepted.max()) / 2


GRID = torch.arange(32, dtype=torch.float64) / 32
WAVES = 2 * math.pi * torch.fft.fftfreq(32, 1 / 32, dtype=torch.float64)
SYMBOL = -0.05 * WAVES**2


def advection_reaction(y: Tensor, t: Tensor) -> Tensor:
    """Periodic central differences of an advection of varying speed, and a logistic reaction."""
    gradient = (y.roll(-1, 1) - y.roll(1, 1)) * 16
    return -(1 + 0.5 * torch.sin(t)).unsqueeze(1) * gradient + 3 * y * (1 - y)


def waves() -> Tensor:
    return torch.stack((0.5 + 0.3 * torch.sin(2 * math.pi * GRID), 0.2 + 0.1 * torch.cos(4 * math.pi * GRID)))


@pytest.mark.parametrize("name", EMBEDDED)
def test_advection_diffusion_reaction_with_exact_diffusion_agrees_with_scipy(name: str) -> None:
    problem = Semilinear(Fourier(SYMBOL), advection_reaction)
    solution = solve(AdditiveRungeKutta(PAIRS[name]), problem, waves(), 0.0, 0.5, rtol=1e-6, atol=1e-8)
    expected = exact(problem, waves(), 0.0, 0.5)
    torch.testing.assert_close(solution.y, expected, rtol=2e-5, atol=2e-6)
    assert solution.newton == 0 and solution.nfe < 1500


@torch.no_grad()
def test_newton_with_a_periodic_stencil_takes_the_steps_of_the_exact_solves() -> None:
    def diffusion(y: Tensor, t: Tensor) -> Tensor:
        return 0.05 * 32**2 * (y.roll(-1, 1) - 2 * y + y.roll(1, 1))

    symbol = -0.05 * 32**2 * 4 * torch.sin(WAVES / 64) ** 2
    stepper = AdditiveRungeKutta(KENCARP4, Newton())
    tolerances = {"rtol": 1e-5, "atol": 1e-7}
    newton = solve(stepper, Split(advection_reaction, diffusion), waves(), 0.0, 0.3, **tolerances)
    direct = solve(stepper, Semilinear(Fourier(symbol), advection_reaction), waves(), 0.0, 0.3, **tolerances)
    torch.testing.assert_close(newton.y, direct.y, rtol=1e-9, atol=1e-9)
    assert torch.equal(newton.accepted, direct.accepted) and newton.newton > 0


def test_complex_states_follow_a_nonlinear_schroedinger_equation() -> None:
    problem = Semilinear(Fourier(-0.5j * WAVES**2 * 0.02), lambda y, t: 1j * y * (y * y.conj()))
    y0 = (torch.exp(2j * math.pi * GRID) * (1 + 0.2 * torch.cos(2 * math.pi * GRID))).unsqueeze(0)
    solution = solve(AdditiveRungeKutta(KENCARP5), problem, y0, 0.0, 0.5, rtol=1e-8, atol=1e-9)
    reference = solve_ivp(lambda t, y: problem(torch.from_numpy(y)[None], torch.tensor([t]))[0].numpy(), (0.0, 0.5),
                          y0[0].numpy(), method="DOP853", rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(solution.y[0], torch.from_numpy(reference.y[:, -1]), rtol=1e-6, atol=1e-6)


def test_complex_split_problems_need_not_be_holomorphic() -> None:
    y = torch.tensor([[0.5 + 0.3j], [-0.2 + 1j]], dtype=torch.complex128)
    complex_one = Split(lambda y, t: 1j * y, lambda y, t: -(y * y.conj()) * y - 2 * y.conj())

    def real(part: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda y, t: torch.view_as_real(part(torch.view_as_complex(y), t))

    stepper = AdditiveRungeKutta(KENCARP4, TIGHT)
    found = one(stepper, complex_one, y, 0.0, 0.4)
    pair = Split(real(lambda y, t: complex_one.explicit(y.unsqueeze(1), t).squeeze(1)),
                 real(lambda y, t: complex_one.implicit(y.unsqueeze(1), t).squeeze(1)))
    expected = one(stepper, pair, torch.view_as_real(y.squeeze(1)), 0.0, 0.4)
    torch.testing.assert_close(torch.view_as_real(found.y.squeeze(1)), expected.y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", [Newton(), Chord(), NewtonKrylov()])
@torch.no_grad()
def test_a_sample_is_solved_as_if_it_were_alone(solver: object) -> None:
    problem, stepper = van_der_pol(20.0), AdditiveRungeKutta(KENCARP3, solver)
    y0 = torch.tensor([[2.0, -0.66], [0.1, 3.0], [-1.0, 0.5]], dtype=torch.float64)
    together = solve(stepper, problem, y0, 0.0, 0.2, rtol=1e-3, atol=1e-4)
    for i in range(3):
        alone = solve(stepper, problem, y0[i:i + 1], 0.0, 0.2, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(together.y[i], alone.y[0], rtol=1e-12, atol=1e-12)
        assert int(together.accepted[i]) == int(alone.accepted[0])


def test_a_sample_whose_stages_do_not_converge_gets_an_infinite_error_alone() -> None:
    problem = Split(lambda y, t: 0 * y, lambda y, t: torch.exp(y))  # Y = r + hγ e^Y has no root for large r
    y = torch.tensor([[-2.0], [5.0]], dtype=torch.float64)
    step = one(AdditiveRungeKutta(KENCARP3), problem, y, 0.0, 0.1)
    assert torch.isinf(step.error[1]).all() and torch.isfinite(step.error[0]).all()


def test_a_stiff_part_far_from_its_equilibrium_is_damped_in_one_step() -> None:
    problem = Split(lambda y, t: torch.ones_like(y), lambda y, t: -1e9 * (y - torch.cos(t).unsqueeze(1)))
    y = torch.tensor([[5.0]], dtype=torch.float64)
    for tableau in (IMEX_EULER, ARS222, ARS443, KENCARP3, KENCARP4, KENCARP5):
        found = march(AdditiveRungeKutta(tableau), problem, y, 0.0, 1.0, 4)
        assert float(found) == pytest.approx(math.cos(1.0), abs=1e-6)


@pytest.mark.parametrize(("tableau", "order"), [(KENCARP3, 3), (KENCARP4, 4), (KENCARP5, 5)])
def test_dense_output_joins_the_steps_and_has_the_error_of_the_methods_order(
    tableau: AdditiveTableau, order: int
) -> None:
    sizes, errors = [0.02, 0.014, 0.01, 0.007], []
    for h in sizes:
        step = one(AdditiveRungeKutta(tableau, TIGHT), SPLIT, START, 0.4, 0.4 + h)
        assert step.dense is not None and (step.dense().nfe == 0) == (order < 5)
        coefficients = step.dense().coefficients
        torch.testing.assert_close(evaluate(coefficients, 1.0), step.y, rtol=1e-13, atol=1e-13)
        errors.append(float((evaluate(coefficients, 0.6) - exact(SPLIT, START, 0.4, 0.4 + 0.6 * h)).norm()))
    assert slope(sizes, errors) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("tableau", [KENCARP3, KENCARP4, KENCARP5])
def test_dense_output_of_a_stiff_problem_is_as_good_as_its_steps(tableau: AdditiveTableau) -> None:
    problem = Split(lambda y, t: -torch.sin(t).unsqueeze(1), lambda y, t: -1e7 * (y - torch.cos(t).unsqueeze(1)))
    ts = torch.linspace(0, 2, 81, dtype=torch.float64)
    found = solve(AdditiveRungeKutta(tableau), problem, torch.ones(1, 1, dtype=torch.float64), 0.0, 2.0, rtol=1e-6,
                  atol=1e-6, ts=ts)
    assert found.ys is not None and found.accepted[0] < 400
    assert (found.ys[0, :, 0] - torch.cos(ts)).abs().max() < 5e-5


def test_backward_integration_retraces_the_solution() -> None:
    stepper = AdditiveRungeKutta(KENCARP5)
    there = solve(stepper, SPLIT, START, 0.1, 0.6, rtol=1e-9, atol=1e-10).y
    back = solve(stepper, SPLIT, there, 0.6, 0.1, rtol=1e-9, atol=1e-10).y
    torch.testing.assert_close(back, START, rtol=1e-7, atol=1e-7)


def test_states_keep_their_dtype_in_single_precision() -> None:
    step = one(AdditiveRungeKutta(KENCARP4), bound(SPLIT, (), torch.float32), START.float(), 0.1, 0.4)
    expected = one(AdditiveRungeKutta(KENCARP4), SPLIT, START, 0.1, 0.4)
    assert step.y.dtype == step.error.dtype == torch.float32
    torch.testing.assert_close(step.y.double(), expected.y, rtol=2e-6, atol=2e-6)


def test_ready_made_steppers_carry_the_tableaus_of_their_names() -> None:
    assert all(getattr(imex, name).tableau is tableau for name, tableau in PAIRS.items())


def test_problems_that_are_not_split_are_refused() -> None:
    with pytest.raises(ValueError, match="AdditiveRungeKutta needs a Split problem"):
        one(AdditiveRungeKutta(KENCARP3), mild, START, 0.0, 0.1)


def test_a_stage_without_a_root_at_any_step_is_reported() -> None:
    problem = Split(lambda y, t: 0 * y, lambda y, t: torch.full_like(y, math.nan))
    with pytest.raises(SolveError):
        solve(AdditiveRungeKutta(KENCARP3), problem, START, 0.0, 1.0, rtol=1e-3, atol=1e-3)
