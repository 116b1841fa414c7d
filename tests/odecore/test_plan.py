"""The plan, its checks, its JSON form and its executor."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odecore.plan import Plan, Registers, Row, combine, execute

numbers = st.floats(allow_nan=False, allow_infinity=False)


def heun_rows(t0: float, t1: float, steps: int) -> list[Row]:
    """Heun's method on dx/dt = f(t, x), written by hand."""
    h = (t1 - t0) / steps
    rows = []
    for i in range(steps):
        t = t0 + i * h
        rows += [Row(t, t, point=(1.0, 0.0, h)), Row(t + h, t + h, anchor=(1.0, 0.0, h / 2, h / 2))]
    return rows


def test_execution_equals_a_loop_written_by_hand() -> None:
    steps, h = 7, 1.0 / 7
    field = lambda x, t: -x * x + math.sin(t)  # noqa: E731
    x0 = torch.linspace(0.1, 2.0, 5, dtype=torch.float64)
    y = x0.clone()
    for i in range(steps):
        k1 = field(y, i * h)
        y = y + h / 2 * (k1 + field(y + h * k1, (i + 1) * h))
    plan = Plan(heun_rows(0.0, 1.0, steps), 0.0, (1.0, 1.0))
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            torch.testing.assert_close(execute(plan, field, x0), y, rtol=1e-14, atol=0)


def test_the_initial_state_is_left_alone() -> None:
    x0 = torch.ones(3)
    with torch.no_grad():
        execute(Plan(heun_rows(0.0, 1.0, 4), 0.0), lambda x, t: x.mul_(1.0) + 1, x0)
    assert torch.equal(x0, torch.ones(3))


def test_history_is_read_newest_first() -> None:
    rows = [Row(0.0, 1.0, anchor=(0.0, 0.0, 1.0)), Row(1.0, 2.0, anchor=(0.0, 0.0, 1.0)),
            Row(2.0, 3.0, anchor=(0.0, 0.0, 1.0, 10.0, 100.0))]
    predictions = iter([1.0, 2.0, 3.0])
    with torch.no_grad():
        result = execute(Plan(rows, 0.0), lambda x, t: torch.full_like(x, next(predictions)), torch.zeros(2))
    assert result.tolist() == [123.0, 123.0]


def test_buffers_are_reused_when_gradients_are_off() -> None:
    plan = Plan(heun_rows(0.0, 1.0, 50), 0.0)
    seen: set[int] = set()
    with torch.no_grad():
        execute(plan, lambda x, t: -x, torch.ones(4), callback=lambda i, row, registers: seen.update(
            register.data_ptr() for register in (registers.anchor, registers.point)))
    assert len(seen) <= plan.depth + 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_states_are_accumulated_in_float32(dtype: torch.dtype) -> None:
    steps = 4096
    rows = [Row(i, i + 1.0, anchor=(1.0, 0.0, 1.0 / steps)) for i in range(steps)]
    with torch.no_grad():
        result = execute(Plan(rows, 0.0, (1.0, 1.0)), lambda x, t: torch.ones_like(x), torch.ones(1, dtype=dtype))
    assert result.dtype == dtype
    assert result.item() == 2.0


def test_the_network_sees_the_dtype_of_the_state() -> None:
    seen = set()
    with torch.no_grad():
        execute(Plan(heun_rows(0.0, 1.0, 2), 0.0), lambda x, t: seen.add(x.dtype) or x, torch.ones(1, dtype=torch.half))
    assert seen == {torch.half}


def test_gradients_flow_to_state_parameters_and_weights() -> None:
    def run(x0: torch.Tensor, k: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows = [Row(0.0, 0.0, point=(1.0, 0.0, weight)), Row(1.0, 1.0, anchor=(1.0, 0.0, 0.5 * weight, 0.5 * weight))]
        return execute(Plan(rows, 0.0), lambda x, t: torch.sin(k * x), x0)

    inputs = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.3, 0.7], 1.3, 0.25)]
    assert torch.autograd.gradcheck(run, inputs)


def test_weights_may_broadcast_one_per_sample() -> None:
    h = torch.tensor([[0.1], [0.2]], dtype=torch.float64)
    with torch.no_grad():
        result = execute(Plan([Row(0.0, h, anchor=(1.0, 0.0, h))], 0.0, (1.0, h)), lambda x, t: x, torch.ones(2, 3))
    torch.testing.assert_close(result, torch.tensor([[1.1], [1.2]]).expand(2, 3))


def test_execution_compiles_to_one_graph() -> None:
    plan = Plan(heun_rows(0.0, 1.0, 3), 0.0)
    run = torch.compile(lambda x: execute(plan, lambda y, t: -y * t, x), fullgraph=True, backend="aot_eager")
    x0 = torch.linspace(0, 1, 4)
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            torch.testing.assert_close(run(x0), execute(plan, lambda y, t: -y * t, x0))


def test_noise_is_added_with_its_standard_deviation() -> None:
    plan = Plan([Row(0.0, 1.0, anchor=(2.0,), noise=0.5)], 0.0)
    result = execute(plan, lambda x, t: x, torch.ones(3), noise=lambda: torch.tensor([-1.0, 0.0, 1.0]))
    assert result.tolist() == [1.5, 2.0, 2.5]


def test_a_plan_that_needs_noise_says_so_before_any_evaluation() -> None:
    plan = Plan([Row(0.0, 1.0, noise=0.5)], 0.0)
    with pytest.raises(ValueError, match="noise=None"):
        execute(plan, lambda x, t: pytest.fail("the network was evaluated"), torch.ones(3))


@given(st.lists(st.tuples(numbers, numbers, numbers, numbers), min_size=1, max_size=4))
def test_json_restores_every_bit(values: list[tuple[float, ...]]) -> None:
    rows = [Row(a, 0.0, (b, c), (a, b, d), (1.0, d), abs(d)) for a, b, c, d in values]
    plan = Plan(rows, 0.0, about={"solver": "x", "times": [1.5, 0.1]})
    assert Plan.from_json(plan.to_json()) == plan


def test_json_restores_tensor_weights() -> None:
    weight = torch.tensor([1 / 3, 0.1 + 0.2j], dtype=torch.complex128)
    plan = Plan([Row(0.0, 1.0, anchor=(weight,))], 0.0)
    restored = Plan.from_json(plan.to_json()).rows[0].anchor[0]
    assert isinstance(restored, torch.Tensor) and torch.equal(restored, weight)


@pytest.mark.parametrize("text", [
    "{", "[]", '{"format": "other"}', '{"format": "fewstep-plan-1"}',
    '{"format": "fewstep-plan-1", "rows": [3], "exact": null, "t_start": 0, "about": {}}'])
def test_damaged_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="plan"):
        Plan.from_json(text)


def test_inconsistent_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="inconsistent"):
        Plan([Row(0.0, 1.0, anchor=(1.0, 0.0, 0.9))], 0.0, (1.0, 1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_weights_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"rows\[0\].anchor"):
        Plan([Row(0.0, 1.0, anchor=(1.0, bad))], 0.0)


def test_times_that_turn_back_are_refused() -> None:
    with pytest.raises(ValueError, match="only a row that adds noise"):
        Plan([Row(0.0, 2.0), Row(2.0, 1.0), Row(1.0, 3.0)], 0.0)


def test_history_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="predictions made before"):
        Plan([Row(0.0, 1.0, anchor=(1.0, 0.0, 1.0, 1.0))], 0.0)


def test_an_empty_plan_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Plan((), 0.0)


def test_integer_states_are_refused() -> None:
    with pytest.raises(ValueError, match="floating-point"):
        execute(Plan([Row(0.0, 1.0)], 0.0), lambda x, t: x, torch.ones(2, dtype=torch.long))


def test_registers_may_hand_out_points_that_are_never_overwritten() -> None:
    plan = Plan(heun_rows(0.0, 1.0, 3), 0.0)
    registers, points = Registers(torch.ones(2), plan.depth, reuse=False), []
    with torch.no_grad():
        for row in plan.rows:
            points.append((registers.point, registers.point.clone()))
            registers.advance(row, -registers.point)
    assert all(torch.equal(point, copy) for point, copy in points)


def test_combining_nothing_gives_zero() -> None:
    assert combine((0.0, 0.0), (torch.ones(2), torch.ones(2))).tolist() == [0.0, 0.0]


def test_a_plan_is_plain_data() -> None:
    assert json.loads(Plan([Row(0.0, 1.0)], 0.0).to_json())["rows"][0]["t_next"] == 1.0
