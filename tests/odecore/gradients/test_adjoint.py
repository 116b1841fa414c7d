"""The discrete adjoint: exact gradients of plans, grids and adaptive solves in few stored states."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odecore.driver.solve import solve
from odecore.explicit.embedded import BOGACKI_SHAMPINE, DORMAND_PRINCE
from odecore.explicit.tableaus import RK4, Tableau
from odecore.gradients.adjoint import discrete, pull_back
from odecore.gradients.checkpoint import optimal_advances
from odecore.gradients.checkpointed import execute_checkpointed, integrate_checkpointed, solve_checkpointed
from odecore.plan import Plan, Row, execute
from odecore.schemes.exponential import exponential_multistep
from odecore.schemes.runge_kutta import runge_kutta
from odecore.schemes.variable import ode

TOLERANCE = 1e-10


def network(seed: int = 0, width: int = 3) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    body = torch.nn.Sequential(torch.nn.Linear(width, 8), torch.nn.Tanh(), torch.nn.Linear(8, width)).double()
    for parameter in body.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return body


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def multistep_plan(steps: int = 9, linear: float = -0.7) -> Plan:
    """Exponential Adams of order up to 3 on an uneven grid: registers with history."""
    times = [(i / steps) ** 1.5 for i in range(steps + 1)]
    return Plan(exponential_multistep(ode(linear), times, [min(i + 1, 3) for i in range(steps)]), 0.0)


def stages_plan(steps: int = 3) -> Plan:
    """Runge's fourth-order steps: rows with stages."""
    return Plan(runge_kutta(ode(), [i / steps for i in range(steps + 1)], [RK4] * steps), 0.0)


def relative(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    return max(((a - e).abs().max() / e.abs().max()).item() for a, e in zip(actual, expected, strict=True))


def extrapolated_difference(function: Callable[[float], Tensor]) -> float:
    """Derivative at 0 by central differences, extrapolated five times."""
    table = [((function(h) - function(-h)) / (2 * h)).item() for h in (0.08 / 2**k for k in range(6))]
    for level in range(1, 6):
        pairs = zip(table[:-1], table[1:], strict=True)
        table = [(4**level * fine - coarse) / (4**level - 1) for coarse, fine in pairs]
    return table[0]


@pytest.mark.parametrize("plan", [multistep_plan(), stages_plan()], ids=["multistep", "stages"])
@pytest.mark.parametrize("states", [None, 1, 2, 4])
def test_gradients_of_a_plan_equal_autograd(plan: Plan, states: int | None) -> None:
    body, x = network(), random(4, 3).requires_grad_()
    inputs = (x, *body.parameters())
    model = lambda x, t: body(x) * (1 + t)  # noqa: E731
    direct = execute(plan, model, x)
    replayed = execute_checkpointed(plan, model, x, states=states, parameters=body.parameters())
    assert torch.equal(direct, replayed)
    expected = torch.autograd.grad(direct.square().sum(), inputs)
    assert relative(torch.autograd.grad(replayed.square().sum(), inputs), expected) <= TOLERANCE


def test_gradients_of_a_plan_equal_finite_differences() -> None:
    plan, body, x = multistep_plan(), network(), random(4, 3).requires_grad_()
    weight = next(body.parameters())
    loss = execute_checkpointed(plan, lambda x, t: body(x), x, states=3, parameters=body.parameters()).sin().sum()
    to_x, to_weight = torch.autograd.grad(loss, (x, weight))
    directions = random(4, 3, seed=2), random(*weight.shape, seed=3)
    original = weight.detach().clone()

    @torch.no_grad()
    def shifted(along_x: float, along_weight: float) -> Tensor:
        weight.copy_(original + along_weight * directions[1])
        return execute(plan, lambda x, t: body(x), x + along_x * directions[0]).sin().sum()

    assert (to_x * directions[0]).sum().item() == pytest.approx(
        extrapolated_difference(lambda s: shifted(s, 0.0)), rel=TOLERANCE)
    assert (to_weight * directions[1]).sum().item() == pytest.approx(
        extrapolated_difference(lambda s: shifted(0.0, s)), rel=TOLERANCE)


def test_weights_and_times_of_a_plan_get_their_gradients() -> None:
    numbers = random(4, 2, seed=4).requires_grad_()
    times = torch.linspace(0, 1, 5, dtype=torch.float64).requires_grad_()
    rows = [Row(times[i], times[i + 1], (0.0, 1.0 + numbers[i, 1]), (1.0, 0.0, numbers[i, 0], *([0.1] if i else [])))
            for i in range(4)]
    plan, x = Plan(tuple(rows), 0.0), random(2, 3)
    model = lambda x, t: torch.sin(x + t)  # noqa: E731
    expected = torch.autograd.grad(execute(plan, model, x).sum(), (numbers, times))
    actual = torch.autograd.grad(execute_checkpointed(plan, model, x, states=2).sum(), (numbers, times))
    assert relative(actual, expected) <= TOLERANCE


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 13), st.integers(0, 100))
def test_any_number_of_steps_and_states_gives_the_gradient(steps: int, states: int, seed: int) -> None:
    a, b = random(2, seed=seed).requires_grad_()
    x = (random(3, seed=seed + 1).requires_grad_(), random(2, seed=seed + 2).requires_grad_())
    functions = [lambda s, i=i: (s[0] + 0.3 * torch.sin(a * s[0] + i) * s[1].sum(), s[1] * torch.cos(b + s[0][:2]))
                 for i in range(steps)]
    direct = x
    for function in functions:
        direct = function(direct)
    replayed = discrete(functions, x, states=states, parameters=(a, b))
    loss = lambda s: s[0].square().sum() + s[1].sin().sum()  # noqa: E731
    expected = torch.autograd.grad(loss(direct), (*x, a, b))
    for actual, wanted in zip(torch.autograd.grad(loss(replayed), (*x, a, b)), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=TOLERANCE, atol=1e-13)


@pytest.mark.parametrize(("steps", "states"), [(20, 3), (50, 4), (100, 6)])
def test_steps_run_as_often_as_the_optimal_schedule_says(steps: int, states: int) -> None:
    with_gradient: list[bool] = []

    def step(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with_gradient.append(torch.is_grad_enabled())
        return (state[0] * 1.01,)

    (final,) = discrete([step] * steps, (random(2).requires_grad_(),), states=states)
    assert len(with_gradient) == steps
    final.sum().backward()
    # One advance more than the optimum: the last step, whose result is the function's value.
    assert with_gradient.count(False) == optimal_advances(steps, states) + 1
    assert with_gradient.count(True) == steps


@pytest.mark.parametrize("states", [1, 3, 10])
def test_no_more_states_live_than_allowed(states: int) -> None:
    alive: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
    most = [0]

    def step(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        most[0] = max(most[0], len(alive))
        new = state[0] + 0.01
        alive.add(new.untyped_storage())
        return (new,)

    gc.disable()
    try:
        x = random(3).requires_grad_()
        alive.add(x.untyped_storage())
        (final,) = discrete([step] * 200, (x,), states=states)
        final.sum().backward()
        del final
    finally:
        gc.enable()
    assert x.grad is not None
    # The stored states, the current one, and the result of the whole.
    assert states <= most[0] <= states + 2


def test_a_budget_in_bytes_limits_the_states() -> None:
    calls = [0]

    def step(state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        calls[0] += 1
        return (state[0] * 1.01,)

    x = random(8).requires_grad_()  # 64 bytes
    discrete([step] * 20, (x,), memory=3 * 64 + 10)[0].sum().backward()
    assert calls[0] == 20 + optimal_advances(20, 3) + 1


def explicit_step(tableau: Tableau, field: Callable[[Tensor], Tensor], h: float, state: tuple[Tensor]) -> tuple[Tensor]:
    slopes: list[Tensor] = []
    for row in tableau.a:
        slopes.append(field(state[0] + h * sum((a * k for a, k in zip(row, slopes, strict=True)), torch.zeros(()))))
    return (state[0] + h * sum((b * k for b, k in zip(tableau.b, slopes, strict=True)), torch.zeros(())),)


def cubic(matrix: Tensor, x: Tensor) -> Tensor:
    return matrix @ x - x**3


def jacobian(matrix: Tensor, x: Tensor) -> Tensor:
    return matrix - torch.diag(3 * x**2)


@pytest.mark.parametrize("tableau", [RK4, DORMAND_PRINCE.tableau], ids=["rk4", "dormand-prince"])
def test_an_explicit_step_pulls_back_by_the_formula_of_its_adjoint(tableau: Tableau) -> None:
    matrix, x, lam, h = random(3, 3), random(3, seed=2), random(3, seed=3), 0.2
    points, slopes = [], []
    for row in tableau.a:
        points.append(x + h * sum((a * k for a, k in zip(row, slopes, strict=True)), torch.zeros(3)))
        slopes.append(cubic(matrix, points[-1]))
    pulled: dict[int, Tensor] = {}  # v_i = h (b_i λ + Σ_{j>i} a_ji L_j), L_i = J(U_i)ᵀ v_i, λ += Σ L_i
    for i in reversed(range(tableau.stages)):
        v = h * (tableau.b[i] * lam + sum((tableau.a[j][i] * pulled[j] for j in pulled), torch.zeros(3)))
        pulled[i] = jacobian(matrix, points[i]).T @ v
    expected = lam + sum(pulled.values())
    (actual,) = pull_back(partial(explicit_step, tableau, partial(cubic, matrix), h), (x,), (lam,), ()).state
    assert relative((actual,), (expected,)) <= TOLERANCE


def theta_step(matrix: Tensor, h: float, theta: float, state: tuple[Tensor]) -> tuple[Tensor]:
    """Implicit: Newton without gradients, then one step of it that carries them."""
    (x,) = state
    known = x + h * (1 - theta) * cubic(matrix, x)
    y = x.detach()
    identity = torch.eye(3, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(20):
            inverse = torch.linalg.inv(identity - h * theta * jacobian(matrix, y))
            y = y - inverse @ (y - known - h * theta * cubic(matrix, y))
    return (y - inverse @ (y - known - h * theta * cubic(matrix, y)),)


@pytest.mark.parametrize("theta", [0.5, 1.0])
def test_a_theta_step_pulls_back_by_the_formula_of_its_adjoint(theta: float) -> None:
    matrix, x, lam, h = random(3, 3), random(3, seed=2), random(3, seed=3), 0.2
    (y,) = theta_step(matrix, h, theta, (x,))
    s = torch.linalg.solve((torch.eye(3) - h * theta * jacobian(matrix, y)).T, lam)
    expected = s + h * (1 - theta) * jacobian(matrix, x).T @ s
    (actual,) = pull_back(partial(theta_step, matrix, h, theta), (x,), (lam,), ()).state
    assert actual is not None
    assert relative((actual,), (expected,)) <= TOLERANCE


def test_implicit_steps_replay_to_the_gradient_of_finite_differences() -> None:
    matrix, direction = random(3, 3), random(3, seed=5)
    x = random(3, seed=2).requires_grad_()
    steps = [partial(theta_step, matrix, 0.1, 0.5)] * 12
    (gradient,) = torch.autograd.grad(discrete(steps, (x,), states=3)[0].sum(), x)
    with torch.no_grad():
        difference = extrapolated_difference(lambda s: discrete(steps, (x + s * direction,))[0].sum())
    assert (gradient @ direction).item() == pytest.approx(difference, rel=TOLERANCE)


def pendulum(y: Tensor, t: Tensor, k: Tensor) -> Tensor:
    return torch.stack([y[:, 1], -k * torch.sin(y[:, 0]) + torch.cos(3 * t)], dim=1)


@pytest.mark.parametrize("stepper", [BOGACKI_SHAMPINE, DORMAND_PRINCE], ids=["bogacki-shampine", "dormand-prince"])
def test_a_fixed_grid_gives_gradients_of_state_times_and_arguments(stepper: object) -> None:
    y0 = random(3, 2).requires_grad_()
    k = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).requires_grad_()
    times = torch.tensor([0.0, 0.1, 0.3, 0.4, 0.8], dtype=torch.float64).requires_grad_()

    def plain() -> Tensor:
        bound = lambda y, t: pendulum(y, t, k)  # noqa: E731
        y, (carry, _) = y0, stepper.start(bound, times[0].expand(3), y0)
        for i in range(4):
            step = stepper.step(bound, times[i].expand(3), times[i + 1].expand(3), y, carry)
            y, carry = step.y, step.carry
        return y

    expected = torch.autograd.grad(plain().square().sum(), (y0, k, times))
    replayed = integrate_checkpointed(stepper, pendulum, y0, times, args=(k,), states=2)
    assert relative(torch.autograd.grad(replayed.square().sum(), (y0, k, times)), expected) <= TOLERANCE


def test_adaptive_steps_of_unequal_samples_give_the_gradient_of_autograd_through_the_driver() -> None:
    y0, scale = random(3, 2).requires_grad_(), torch.tensor(1.0, dtype=torch.float64).requires_grad_()
    k = torch.tensor([1.0, 30.0, 3.0], dtype=torch.float64)
    field = lambda y, t, k: pendulum(y, t, k * scale)  # noqa: E731
    options = {"rtol": 1e-5, "atol": 1e-6, "args": (k,), "first_step": 0.5}
    end = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    direct = solve(DORMAND_PRINCE, field, y0, 0.0, end, **options)
    assert direct.rejected.any() and len(set(direct.accepted.tolist())) > 1
    expected = torch.autograd.grad(direct.y.sum(), (y0, scale))
    replayed = solve_checkpointed(DORMAND_PRINCE, field, y0, 0.0, end, states=3, parameters=(scale,), **options)
    torch.testing.assert_close(replayed, direct.y, rtol=1e-13, atol=1e-13)
    assert relative(torch.autograd.grad(replayed.sum(), (y0, scale)), expected) <= TOLERANCE


def test_an_empty_interval_hands_the_gradient_through() -> None:
    y0 = random(2, 2).requires_grad_()
    end = solve_checkpointed(DORMAND_PRINCE, lambda y, t: y, y0, 1.0, 1.0, rtol=1e-3, atol=1e-3)
    assert torch.equal(torch.autograd.grad(end.sum(), y0)[0], torch.ones_like(y0))


def test_noise_by_row_is_replayed() -> None:
    rows = [Row(float(i), i + 1.0, anchor=(0.9, 0.0, 0.1), noise=0.3) for i in range(6)]
    plan, x = Plan(tuple(rows), 0.0), random(2, 3).requires_grad_()
    draw = lambda index: random(2, 3, seed=index)  # noqa: E731
    model = lambda x, t: torch.sin(3 * x)  # noqa: E731
    order = iter(range(6))
    direct = execute(plan, model, x, noise=lambda: draw(next(order)))
    replayed = execute_checkpointed(plan, model, x, states=2, noise=draw)
    assert relative(torch.autograd.grad(replayed.sum(), x), torch.autograd.grad(direct.sum(), x)) <= TOLERANCE


def test_complex_states_follow_autograds_convention() -> None:
    x = torch.complex(random(3), random(3, seed=2)).requires_grad_()
    symbol = torch.tensor([-1 + 2j, -0.5j, -3.0], dtype=torch.complex128)
    plan = Plan(runge_kutta(ode(symbol), [0.0, 0.1, 0.2, 0.3], [RK4] * 3), 0.0)
    model = lambda x, t: -x * x.abs().square()  # noqa: E731
    expected = torch.autograd.grad(execute(plan, model, x).abs().sum(), x)
    actual = torch.autograd.grad(execute_checkpointed(plan, model, x, states=2).abs().sum(), x)
    assert relative(actual, expected) <= TOLERANCE


def test_half_precision_is_accumulated_as_in_the_executor() -> None:
    x = random(2, 3).bfloat16().requires_grad_()
    plan = multistep_plan()
    model = lambda x, t: torch.sin(x)  # noqa: E731
    direct, replayed = execute(plan, model, x), execute_checkpointed(plan, model, x, states=2)
    assert replayed.dtype == torch.bfloat16 and torch.equal(direct, replayed)
    assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (direct, replayed)))


def test_the_replay_runs_in_the_mixed_precision_of_the_forward_pass() -> None:
    seen: list[torch.dtype] = []
    body = torch.nn.Linear(3, 3)

    def model(x: Tensor, t: float) -> Tensor:
        out = body(x)
        seen.append(out.dtype)
        return out

    with torch.autocast("cpu", dtype=torch.bfloat16):
        final = execute_checkpointed(stages_plan(), model, torch.ones(2, 3), states=2, parameters=body.parameters())
    final.sum().backward()
    assert set(seen) == {torch.bfloat16}


def test_a_forgotten_parameter_raises() -> None:
    body = network()
    final = execute_checkpointed(multistep_plan(), lambda x, t: body(x), random(2, 3).requires_grad_(), states=2)
    with pytest.raises(ValueError, match="not among the parameters"):
        final.sum().backward()


def test_a_parameter_that_is_computed_from_another_passes_its_gradient_on() -> None:
    raw, x = torch.tensor(0.3, dtype=torch.float64).requires_grad_(), random(2)
    rate = raw.exp()
    (final,) = discrete([lambda s: (s[0] * rate,)] * 5, (x,), states=2, parameters=(rate,))
    (gradient,) = torch.autograd.grad(final.sum(), raw)
    assert gradient.item() == pytest.approx(5 * rate.item() ** 5 * x.sum().item(), rel=TOLERANCE)


def test_a_parameter_changed_before_the_backward_pass_raises() -> None:
    body = network()
    final = execute_checkpointed(multistep_plan(), lambda x, t: body(x), random(2, 3), parameters=body.parameters())
    with torch.no_grad():
        next(body.parameters()).add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        final.sum().backward()


def test_a_second_backward_pass_raises() -> None:
    (final,) = discrete([lambda s: (s[0] * 2,)] * 3, (random(2).requires_grad_(),), states=2)
    final.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="used up"):
        final.sum().backward()


def test_steps_that_return_their_argument_are_allowed() -> None:
    x = random(2).requires_grad_()
    first, second = discrete([lambda s: (s[0], s[0])], (x,), states=1)
    (gradient,) = torch.autograd.grad((first + 2 * second).sum(), x)
    assert torch.equal(gradient, torch.full_like(x, 3.0))


def test_wrong_arguments_raise() -> None:
    x = random(2)
    with pytest.raises(ValueError, match="steps is empty"):
        discrete([], (x,))
    with pytest.raises(ValueError, match="states=0"):
        discrete([lambda s: s], (x,), states=0)
    with pytest.raises(ValueError, match="both given"):
        discrete([lambda s: s], (x,), states=1, memory=100)
    with pytest.raises(ValueError, match="noise=None"):
        execute_checkpointed(Plan((Row(0.0, 1.0, noise=1.0),), 0.0), lambda x, t: x, x)
    with pytest.raises(ValueError, match="times has shape"):
        integrate_checkpointed(DORMAND_PRINCE, lambda y, t: y, x, [0.0])
