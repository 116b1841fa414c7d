"""Function transforms and compilation through steps, plans and both drivers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, jvp, vmap

from odecore.driver.fetch import fetch_largest
from odecore.driver.integrate import integrate
from odecore.driver.solve import SolveError, solve
from odecore.explicit.adams import adams_bashforth_moulton
from odecore.explicit.embedded import BOGACKI_SHAMPINE, DORMAND_PRINCE, TSITOURAS
from odecore.explicit.symplectic import FOREST_RUTH
from odecore.explicit.taylor import Taylor
from odecore.plan import Plan, Registers, execute
from odecore.problem import Separable
from odecore.schemes import exponential_multistep, ode
from odecore.stepper import Stepper

Y0 = torch.tensor([[0.3, 1.0], [2.0, -1.0]], dtype=torch.float64)
K = torch.tensor(1.3, dtype=torch.float64)
TIMES = torch.linspace(0, 1, 6, dtype=torch.float64)

Flow = Callable[[Tensor, Tensor], Tensor]
"""``(k, y0) -> y1`` of the problem below."""


def field_of(k: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda y, t: -k * y + torch.cos(5 * t).reshape(-1, 1) * torch.sin(y)


def problem_of(k: Tensor) -> Separable:
    return Separable(lambda p, t: torch.sinh(p), lambda q, t: -k * torch.sin(q) + torch.cos(5 * t))


def gridwise(stepper: Stepper) -> Flow:
    return lambda k, y0: integrate(stepper, field_of(k), y0, TIMES).y


def symplectic(k: Tensor, y0: Tensor) -> Tensor:
    return integrate(FOREST_RUTH, problem_of(k), y0, TIMES).y


def planned(k: Tensor, y0: Tensor) -> Tensor:
    plan = Plan(exponential_multistep(ode(), TIMES.tolist(), [1, 2, 3, 3, 3]), 0.0)
    field = field_of(k)
    return execute(plan, lambda x, t: field(x, torch.tensor([t], dtype=torch.float64)), y0)


def adaptively(stepper: Stepper) -> Flow:
    return lambda k, y0: solve(stepper, field_of(k), y0, 0.0, 1.0, rtol=1e-8, atol=1e-8).y


FIXED: dict[str, Flow] = {
    "grid-dormand-prince": gridwise(DORMAND_PRINCE), "grid-adams": gridwise(adams_bashforth_moulton(3)),
    "grid-taylor": gridwise(Taylor(3)), "grid-symplectic": symplectic, "plan": planned,
}
ADAPTIVE: dict[str, Flow] = {
    "adaptive-tsitouras": adaptively(TSITOURAS), "adaptive-adams": adaptively(adams_bashforth_moulton(4)),
}
FLOWS = FIXED | ADAPTIVE


def directional(flow: Flow) -> tuple[Tensor, float]:
    """A central difference in k and y0 together, and its accuracy: adaptive steps move with the arguments."""
    h = 1e-5
    difference = (flow(K + h, Y0 + h) - flow(K - h, Y0 - h)) / (2 * h)
    return difference, 1e-8 if flow in FIXED.values() else 1e-5


@pytest.mark.parametrize("name", FLOWS)
def test_jvp_is_the_directional_derivative(name: str) -> None:
    value, tangent = jvp(FLOWS[name], (K, Y0), (torch.ones_like(K), torch.ones_like(Y0)))[:2]
    torch.testing.assert_close(value, FLOWS[name](K, Y0), rtol=1e-14, atol=1e-14)
    difference, accuracy = directional(FLOWS[name])
    torch.testing.assert_close(tangent, difference, rtol=0, atol=accuracy)


@pytest.mark.parametrize("name", FLOWS)
def test_grad_is_what_backward_gives(name: str) -> None:
    def loss(k: Tensor, y0: Tensor) -> Tensor:
        return FLOWS[name](k, y0).square().sum()

    leaves = (K.clone().requires_grad_(), Y0.clone().requires_grad_())
    loss(*leaves).backward()
    for value, leaf in zip(grad(loss, (0, 1))(K, Y0), leaves, strict=True):
        torch.testing.assert_close(value, leaf.grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", FLOWS)
def test_jacobians_by_rows_and_by_columns_agree_and_couple_no_samples(name: str) -> None:
    rows, columns = (transform(FLOWS[name], 1)(K, Y0) for transform in (jacrev, jacfwd))
    torch.testing.assert_close(rows, columns, rtol=1e-11, atol=1e-12)
    assert not rows[0, :, 1].any() and not rows[1, :, 0].any()


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_on_a_fixed_grid_is_a_loop(name: str, axes: tuple[int | None, int | None]) -> None:
    arguments = [value if axis is None else torch.stack((value, value / 2, -value))
                 for value, axis in zip((K, Y0), axes, strict=True)]
    mapped = vmap(FIXED[name], axes)(*arguments)
    for i in range(3):
        alone = FIXED[name](*(a if axis is None else a[i] for a, axis in zip(arguments, axes, strict=True)))
        torch.testing.assert_close(mapped[i], alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_through_the_adaptive_driver_meets_the_tolerance_of_every_copy(
    name: str, axes: tuple[int | None, int | None]
) -> None:
    arguments = [value if axis is None else torch.stack((value, value / 2, 5 * value))
                 for value, axis in zip((K, Y0), axes, strict=True)]
    mapped = vmap(ADAPTIVE[name], axes)(*arguments)
    for i in range(3):
        k, y0 = (a if axis is None else a[i] for a, axis in zip(arguments, axes, strict=True))
        exact = solve(DORMAND_PRINCE, field_of(k), y0, 0.0, 1.0, rtol=1e-11, atol=1e-11).y
        torch.testing.assert_close(mapped[i], exact, rtol=0, atol=1e-6)


def test_gradients_of_every_copy_come_through_vmap_of_the_adaptive_driver() -> None:
    def loss(k: Tensor, y0: Tensor) -> Tensor:
        return ADAPTIVE["adaptive-tsitouras"](k, y0).square().sum()

    rates = torch.stack((K, K / 2))
    inside = vmap(grad(loss), (0, None))(rates, Y0)
    outside = grad(lambda k: vmap(loss, (0, None))(k, Y0).sum())(rates)
    alone = torch.stack([grad(loss)(k, Y0) for k in rates])
    torch.testing.assert_close(inside, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(inside, outside, rtol=1e-12, atol=1e-13)


def test_mapped_copies_share_steps_that_are_short_enough_for_all() -> None:
    counts: list[Tensor] = []

    def end(k: Tensor) -> Tensor:
        solution = solve(BOGACKI_SHAMPINE, field_of(k), Y0, 0.0, 1.0, rtol=1e-6, atol=1e-6)
        counts.append(solution.accepted)
        return solution.y

    rates = torch.tensor([0.1, 30.0], dtype=torch.float64)
    vmap(end)(rates)
    for k in rates:
        end(k)
    shared, easy, hard = counts
    assert bool((shared >= hard).all()) and bool((hard > easy).all())


def test_a_copy_that_fails_makes_the_mapped_solve_fail() -> None:
    with pytest.raises(SolveError, match="non-finite"):
        vmap(lambda k: solve(TSITOURAS, lambda y, t: torch.log(k) * y, Y0, 0.0, 1.0, rtol=1e-3, atol=1e-3).y)(
            torch.tensor([1.0, -1.0], dtype=torch.float64))
    with pytest.raises(SolveError, match="non-finite"):
        vmap(lambda k: integrate(TSITOURAS, lambda y, t: torch.log(k) * y, Y0, TIMES).y)(
            torch.tensor([1.0, -1.0], dtype=torch.float64))


def test_initial_states_that_are_not_finite_are_refused_in_any_copy() -> None:
    with pytest.raises(ValueError, match="y0 holds non-finite values"):
        vmap(lambda y0: ADAPTIVE["adaptive-tsitouras"](K, y0))(torch.stack((Y0, Y0 * torch.nan)))


def test_the_largest_copy_is_fetched_through_nested_maps_and_gradients() -> None:
    heard: list[Tensor] = []

    def loss(values: Tensor) -> Tensor:
        heard.append(fetch_largest(values.square()))
        return values.sum()

    values = torch.tensor([[[1.0, 2.0], [3.0, 0.0]], [[-4.0, 0.5], [0.0, 1.0]]])
    vmap(vmap(grad(loss)))(values)
    assert heard[0].tolist() == [16.0, 4.0]


COMPILED = [pytest.param("aot_eager"), pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("stepper", [DORMAND_PRINCE, TSITOURAS], ids=["dormand-prince", "tsitouras"])
def test_a_step_compiles_to_one_graph(stepper: Any, backend: str) -> None:
    field = field_of(K)

    def step(t0: Tensor, t1: Tensor, y: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
        taken = stepper.step(field, t0, t1, y, (slope,))
        return taken.y, taken.error, taken.magnitude, *taken.carry

    t0, t1 = torch.tensor([0.1, 0.2], dtype=torch.float64), torch.tensor([0.3, 0.1], dtype=torch.float64)
    arguments = (t0, t1, Y0, field(Y0, t0))
    compiled = torch.compile(step, fullgraph=True, backend=backend)(*arguments)
    torch.testing.assert_close(compiled, step(*arguments), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("backend", COMPILED)
def test_a_row_of_a_plan_compiles_to_one_graph(backend: str) -> None:
    plan = Plan(exponential_multistep(ode(-1.0), TIMES.tolist(), [1, 2, 3, 3, 3]), 0.0)

    def advance(anchor: Tensor, raw: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
        registers = Registers(anchor, plan.depth)
        registers.predictions = [first, second]
        return registers.advance(plan.rows[3], raw), registers.anchor, *registers.predictions

    arguments = tuple(Y0 * factor for factor in (1.0, 0.5, -0.2, 0.7))
    with torch.no_grad():
        compiled = torch.compile(advance, fullgraph=True, backend=backend)(*arguments)
        torch.testing.assert_close(compiled, advance(*arguments), rtol=1e-14, atol=1e-15)


def states_between(k: Tensor) -> Tensor:
    return solve(TSITOURAS, field_of(k), Y0, 0.0, 1.0, rtol=1e-9, atol=1e-9, ts=TIMES).ys


def states_of_dense(k: Tensor) -> Tensor:
    return solve(TSITOURAS, field_of(k), Y0, 0.0, 1.0, rtol=1e-9, atol=1e-9, dense=True).dense(TIMES)


def time_of_event(k: Tensor) -> Tensor:
    return solve(TSITOURAS, field_of(k), Y0, 0.0, 1.0, rtol=1e-9, atol=1e-9,
                 event=lambda y, t: y[:, 1].abs() - 0.8).t


@pytest.mark.parametrize("read", [states_between, states_of_dense])
def test_states_between_the_steps_come_through_vmap(read: Callable[[Tensor], Tensor]) -> None:
    rates = torch.stack((K, K / 2, 2 * K))
    torch.testing.assert_close(vmap(read)(rates), torch.stack([read(k) for k in rates]), rtol=0, atol=1e-6)
    inside = vmap(grad(lambda k: read(k).square().sum()))(rates)
    alone = torch.stack([grad(lambda k: read(k).square().sum())(k) for k in rates])
    torch.testing.assert_close(inside, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("read", [states_between, states_of_dense, time_of_event])
def test_what_a_solve_records_has_the_gradient_of_backward_under_transforms(read: Callable[[Tensor], Tensor]) -> None:
    k = K.clone().requires_grad_()
    (expected,) = torch.autograd.grad(read(k).sum(), k)
    torch.testing.assert_close(grad(lambda k: read(k).sum())(K), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(jvp(lambda k: read(k).sum(), (K,), (torch.ones_like(K),))[1], expected, rtol=1e-6,
                               atol=1e-6)


def test_what_differs_between_mapped_copies_and_steers_the_host_is_refused() -> None:
    rates = torch.stack((K, K / 2))
    with pytest.raises(ValueError, match=r"event\[0\] differs between the copies.*further samples"):
        vmap(time_of_event)(rates)
    options: dict = {"rtol": 1e-3, "atol": 1e-3}
    for name, run in {
            "t1": lambda k: solve(TSITOURAS, field_of(K), Y0, 0.0, k, **options).y,
            "ts": lambda k: solve(TSITOURAS, field_of(K), Y0, 0.0, 2.0, ts=k.reshape(1), **options).ys,
            "times": lambda k: solve(TSITOURAS, field_of(K), Y0, 0.0, 2.0, dense=True, **options).dense(k)}.items():
        with pytest.raises(ValueError, match=f"{name} differs between the copies"):
            vmap(run)(rates)
    with pytest.raises(ValueError, match="times differs between the copies"):
        vmap(lambda k: integrate(TSITOURAS, field_of(K), Y0, torch.stack((k * 0, k))).y)(rates)
