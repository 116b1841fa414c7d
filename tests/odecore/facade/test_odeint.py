"""The call of torchdiffeq: equal to torchdiffeq in values, gradients, events and options."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchdiffeq
from torch import Tensor, nn

from odecore.driver.solve import SolveError
from odecore.facade.adjoint import odeint_adjoint
from odecore.facade.methods import ADAPTIVE, FIXED, SCIPY
from odecore.facade.odeint import odeint, odeint_event

THEIRS = list(sys.modules["torchdiffeq._impl.odeint"].SOLVERS)
THEIR_ADAPTIVE = ["dopri8", "dopri5", "bosh3", "fehlberg2", "adaptive_heun"]
THEIR_RUNGE_KUTTA = ["euler", "midpoint", "heun2", "heun3", "rk4"]
GRID = {"step_size": 0.1}


class Field(nn.Module):
    """A non-linear, time-dependent right-hand side with parameters."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[-0.1, 2.0], [-2.0, -0.1]], dtype=dtype))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(y) @ self.weight + torch.sin(2 * t)


class Pair(nn.Module):
    """The same for a tuple of a matrix and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return -self.rate * y[0] * y[1], torch.cos(t) - 0.1 * y[0].sum()


def state(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([[1.0, 0.5], [-0.3, 0.2]], dtype=dtype)


def pair() -> tuple[Tensor, Tensor]:
    return torch.tensor([[1.0, 2.0, -0.5]], dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)


def times(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


FORWARD, BACKWARD = times(0.0, 0.3, 1.0), times(1.0, 0.55, 0.2)


def gradients(solver: Callable[..., Tensor], t: Tensor = FORWARD, **options: Any) -> list[Tensor]:
    func, y0, moving = Field(), state().requires_grad_(), t.clone().requires_grad_()
    y = solver(func, y0, moving, **options)
    weights = torch.arange(1.0, 1.0 + y.numel(), dtype=y.dtype).reshape(y.shape)
    return [y.detach(), *torch.autograd.grad((weights * y).sum(), [y0, moving, func.weight])]


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("t", [FORWARD, BACKWARD, FORWARD[:2], FORWARD[:1]], ids=["forward", "backward", "two", "one"])
@pytest.mark.parametrize("method", THEIRS)
def test_every_method_of_torchdiffeq_gives_its_values(method: str, t: Tensor) -> None:
    func, options = Field().requires_grad_(False), GRID if method in FIXED else {}
    if method in THEIR_RUNGE_KUTTA or len(t) == 1:
        tolerance = 1e-13
    else:
        tolerance = {"dopri8": 3e-5, "bosh3": 5e-4, "fehlberg2": 1e-4, "adaptive_heun": 1e-4}.get(method, 3e-6)
    if method.endswith("adams"):
        tolerance, options = 2e-5, {"step_size": 0.02, "max_order": 5}  # the starts differ
    tolerances = {"rtol": 1e-6, "atol": 1e-6} if method in ADAPTIVE else {}
    ours = odeint(func, state(), t, method=method, options=options, **tolerances)
    if method == SCIPY and (t is BACKWARD or len(t) == 1):  # theirs goes forwards only, and loses the shape
        theirs = torchdiffeq.odeint(func, state(), t)
    else:
        theirs = torchdiffeq.odeint(func, state(), t, method=method, options=options, **tolerances)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", [*ADAPTIVE, *(name for name in FIXED if name not in THEIRS)])
def test_every_other_method_solves_the_problem(method: str) -> None:
    def func(t: Tensor, y: Tensor) -> Tensor:
        return -y + torch.cos(5 * t)

    y0 = times(0.3, 2.0)
    exact = (y0 - 1 / 26) * math.exp(-1.0) + (math.cos(5.0) + 5 * math.sin(5.0)) / 26
    options = {} if method in ADAPTIVE else GRID
    y = odeint(func, y0, times(0.0, 1.0), method=method, rtol=1e-4, atol=1e-4, options=options)
    torch.testing.assert_close(y[1], exact, rtol=0, atol=0.1 if method == "implicit_euler" else 1e-2)


def test_single_precision_stays_single() -> None:
    t = times(0.0, 0.5, 1.0, dtype=torch.float32)
    y = odeint(Field(torch.float32), state(torch.float32), t, rtol=1e-5, atol=1e-6)
    assert y.dtype == torch.float32
    theirs = torchdiffeq.odeint(Field(torch.float32), state(torch.float32), t, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y, theirs, rtol=1e-4, atol=1e-4)


def test_a_function_gets_scalar_times_in_the_precision_of_the_state() -> None:
    seen = []
    odeint(lambda t, y: (seen.append(t), -y)[1], torch.ones(2), times(0.0, 1.0))
    assert {(t.shape, t.dtype) for t in seen} == {(torch.Size(()), torch.float32)}


def test_a_complex_state_goes_round() -> None:
    y = odeint(lambda t, y: 1j * y, torch.ones(2, dtype=torch.complex128), times(0.0, math.pi))
    torch.testing.assert_close(y[1], -torch.ones(2, dtype=torch.complex128), rtol=0, atol=1e-6)


@pytest.mark.parametrize("t", [FORWARD, BACKWARD], ids=["forward", "backward"])
@pytest.mark.parametrize("solver", ["odeint", "odeint_adjoint"])
@pytest.mark.parametrize(("options", "tolerance"), [
    ({"rtol": 1e-8, "atol": 1e-8}, 1e-5), ({"method": "rk4"}, 1e-12), ({"method": "euler", "options": GRID}, 1e-12),
    ({"method": "midpoint", "options": {"step_size": 0.07, "interp": "cubic"}}, 1e-12)])
def test_gradients_are_those_of_torchdiffeq(solver: str, t: Tensor, options: dict, tolerance: float) -> None:
    ours = {"odeint": odeint, "odeint_adjoint": odeint_adjoint}[solver]
    assert_close(gradients(ours, t, **options), gradients(getattr(torchdiffeq, solver), t, **options),
                 3e-4 if "rtol" in options else tolerance)


@pytest.mark.parametrize("options", [{"rtol": 1e-3, "atol": 1e-3}, {"rtol": 1e-3, "atol": 1e-3, "method": "tsit5"}])
@pytest.mark.parametrize("stored", [{}, {"states": 2}, {"memory": 1000}])
def test_the_discrete_adjoint_is_exact_at_any_tolerance(options: dict, stored: dict) -> None:
    ours = gradients(odeint_adjoint, **options, adjoint_method="discrete", adjoint_options=stored)
    direct = gradients(odeint, **options)
    for index in (0, 1, 3):
        torch.testing.assert_close(ours[index], direct[index], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours[2], direct[2], rtol=1e-2, atol=1e-2)  # times: from the field or the interpolant


def test_the_discrete_adjoint_is_exact_on_a_grid() -> None:
    options = {"method": "rk4"}
    assert_close(gradients(odeint_adjoint, **options, adjoint_method="discrete"), gradients(odeint, **options), 1e-12)


@pytest.mark.parametrize("norm", ["seminorm", lambda parts: torch.stack([p.abs().amax() for p in parts[:3]]).amax()])
def test_adjoint_options_are_those_of_torchdiffeq(norm: Any) -> None:
    options = {"rtol": 1e-8, "atol": 1e-8, "adjoint_options": {"norm": norm}, "adjoint_rtol": 1e-9,
               "adjoint_atol": 1e-9, "adjoint_method": "tsit5"}
    theirs = options | {"adjoint_method": "dopri5"}
    assert_close(gradients(odeint_adjoint, **options), gradients(torchdiffeq.odeint_adjoint, **theirs), 3e-4)


@pytest.mark.parametrize("solver", ["odeint", "odeint_adjoint"])
def test_tuples_are_those_of_torchdiffeq(solver: str) -> None:
    def run(call: Callable[..., Any]) -> list[Tensor]:
        func, y0 = Pair(), tuple(part.requires_grad_() for part in pair())
        a, b = call(func, y0, FORWARD, rtol=1e-8, atol=1e-8)
        found = torch.autograd.grad((a * a).sum() + b.exp().sum(), [*y0, func.rate])
        return [a.detach(), b.detach(), *found]

    ours = {"odeint": odeint, "odeint_adjoint": odeint_adjoint}[solver]
    assert_close(run(ours), run(getattr(torchdiffeq, solver)), 1e-5)


def test_tuples_take_tolerances_for_each_tensor() -> None:
    y = odeint(Pair(), pair(), FORWARD, rtol=(1e-8, 1e-8), atol=(1e-9, times(1e-9)[0]))
    assert_close(list(y), list(odeint(Pair(), pair(), FORWARD)), 1e-6)


def test_a_module_that_reads_its_time_passes_gradients_to_it() -> None:
    class Clock(nn.Module):
        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return t**2 + 0 * y

    for solver in (odeint, odeint_adjoint):
        t = times(0.5, 2.0).requires_grad_()
        y = solver(Clock(), torch.zeros(1, dtype=torch.float64), t)[1]
        (found,) = torch.autograd.grad(y.sum(), t)
        torch.testing.assert_close(found, times(-0.25, 4.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("method", "options"), [
    ("dopri5", {"first_step": 0.01}), ("dopri5", {"max_step": 0.05}), ("dopri5", {"min_step": 0.2}),
    ("dopri5", {"safety": 0.7, "ifactor": 3.0, "dfactor": 0.5}), ("dopri5", {"step_t": times(0.21, 0.77)}),
    ("dopri5", {"max_num_steps": 1000, "dtype": torch.float64}), ("dopri5", {"norm": lambda y: y.abs().amax()}),
    ("rk4", {"step_size": 0.13}), ("rk4", {"step_size": 0.13, "interp": "cubic"}), ("rk4", {"perturb": True}),
    ("euler", {"grid_constructor": lambda f, y, t: torch.linspace(t[0], t[-1], 9, dtype=t.dtype)}),
    ("implicit_adams", {"max_order": 4, "step_size": 0.02}), (SCIPY, {"solver": "DOP853"})])
@pytest.mark.parametrize("t", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_every_option_means_what_it_means_in_torchdiffeq(method: str, options: dict, t: Tensor) -> None:
    func, arguments = Field().requires_grad_(False), {"rtol": 1e-6, "atol": 1e-6, "method": method, "options": options}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = odeint(func, state(), t, **arguments)
    if method == SCIPY and t is BACKWARD:
        arguments = {}
    tolerance = 1e-11 if method in ("rk4", "euler") else 5e-5
    torch.testing.assert_close(ours, torchdiffeq.odeint(func, state(), t, **arguments), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("t", [times(0.0, 1.0), times(1.0, 0.0)], ids=["forward", "backward"])
@pytest.mark.parametrize("method", ["dopri5", "tsit5"])
def test_a_jump_is_met_from_both_sides(t: Tensor, method: str) -> None:
    seen: list[float] = []

    def func(t: Tensor, y: Tensor) -> Tensor:
        seen.append(float(t))
        return torch.where(t < 0.5, 1.0, -3.0) + 0 * y

    y = odeint(func, torch.zeros(1, dtype=torch.float64), t, method=method, options={"jump_t": times(0.5)})
    assert float(y[1]) == pytest.approx(-1.0 if t[0] == 0 else 1.0, abs=1e-12)
    assert 0.5 not in seen and len(seen) < 60


def test_step_times_are_stepped_on() -> None:
    seen: list[float] = []
    odeint(lambda t, y: (seen.append(float(t)), -y)[1], torch.ones(1, dtype=torch.float64), times(0.0, 1.0),
           options={"step_t": times(0.3, 0.6)})
    assert {0.3, 0.6} <= set(seen)


def test_callbacks_are_called_for_each_step() -> None:
    class Loud(Field):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[str, float]] = []

        def callback_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
            assert y.shape == (2, 2)
            self.calls.append(("step", float(t)))

        def callback_accept_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
            self.calls.append(("accept", float(t + dt)))

        def callback_reject_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
            self.calls.append(("reject", float(dt)))

    func = Loud()
    odeint(func, state(), FORWARD, rtol=1e-4, atol=1e-4, options={"first_step": 1.0})
    names = [name for name, _ in func.calls]
    assert names[:2] == ["step", "reject"] and names.count("step") == names.count("accept") + names.count("reject")
    assert func.calls[-1] == ("accept", 1.0)
    grid = Loud()
    odeint(grid, state(), FORWARD, method="rk4")
    assert grid.calls == [("step", 0.0), ("step", 0.3)]


def test_samples_may_step_each_for_itself() -> None:
    y0, t = times(1.0, 1.0, 2.0).unsqueeze(1), times(0.0, 0.4, 2.0)
    rates = torch.tensor([[1.0], [300.0], [2.0]], dtype=torch.float64)

    def one(index: int) -> Tensor:
        return odeint(lambda t, y: -rates[index] * (y - torch.cos(t)), y0[index:index + 1], t, rtol=1e-6, atol=1e-8,
                      options={"norm": "per_sample"})

    def func(t: Tensor, y: Tensor) -> Tensor:  # the rate is read off the constant second entry
        return torch.stack([-y[:, 1] * (y[:, 0] - torch.cos(t[:, 0])), 0 * y[:, 1]], 1)

    together = odeint(func, torch.cat([y0, rates], 1), t, rtol=1e-6, atol=1e-8, options={"norm": "per_sample"})
    for index in range(3):
        torch.testing.assert_close(together[:, index, :1], one(index)[:, 0], rtol=1e-5, atol=1e-6)


class Ball(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(9.8, dtype=torch.float64))

    def forward(self, t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return y[1], -self.gravity.expand_as(y[1])


def bounces(event: Callable[..., Any], interface: Callable[..., Any], number: int = 3) -> list[Tensor]:
    """Gradients of the time and height of the last of some bounces, with torchdiffeq's tiny lift after each."""
    func = Ball()
    t, y = times(0.0)[0], (times(2.0).requires_grad_(), times(0.5).requires_grad_())
    start = [*y, func.gravity]
    reached = []
    for _ in range(number):
        t, (height, speed) = event(func, y, t, event_fn=lambda t, y: y[0], odeint_interface=interface, rtol=1e-9,
                                   atol=1e-9)
        reached.append(t)
        y = (height[-1] + 1e-7, -0.8 * speed[-1])
    total = torch.stack(reached).sum() + y[1].sum()
    return [torch.stack(reached).detach(), *(g for g in torch.autograd.grad(total, start))]


@pytest.mark.parametrize("interface", ["odeint", "odeint_adjoint"])
def test_a_bouncing_ball_has_the_times_and_gradients_of_torchdiffeq(interface: str) -> None:
    ours = {"odeint": odeint, "odeint_adjoint": odeint_adjoint}[interface]
    found = bounces(odeint_event, ours)
    assert_close(found, bounces(torchdiffeq.odeint_event, getattr(torchdiffeq, interface)), 1e-5)
    assert_close(found, bounces(odeint_event, getattr(torchdiffeq, interface)), 1e-5)
    assert_close(found, bounces(torchdiffeq.odeint_event, ours), 1e-5)
    first = (0.5 + math.sqrt(0.25 + 2 * 9.8 * 2.0)) / 9.8
    assert float(found[0][0]) == pytest.approx(first, abs=1e-9)


@pytest.mark.parametrize("options", [{}, {"adjoint_method": "discrete"}])
@pytest.mark.parametrize("reverse", [False, True])
def test_events_with_several_values_have_the_gradients_of_torchdiffeq(options: dict, reverse: bool) -> None:
    def run(event: Callable[..., Any], **arguments: Any) -> list[Tensor]:
        func, y0, t0 = Field(), state().requires_grad_(), times(0.3)[0].requires_grad_()
        t, y = event(func, y0, t0, event_fn=lambda t, y: torch.stack([y[0, 0] - 0.2 + 0.1 * t, y[1, 1] + 5.0]),
                     reverse_time=reverse, rtol=1e-8, atol=1e-8, **arguments)
        return [t.detach(), y.detach(), *torch.autograd.grad(t + (y[-1] ** 2).sum(), [y0, t0, func.weight])]

    interface = {"odeint_interface": odeint_adjoint} if options else {}
    assert_close(run(odeint_event, **interface, **options), run(torchdiffeq.odeint_event), 3e-4)


@pytest.mark.parametrize("interp", ["linear", "cubic"])
def test_a_grid_finds_the_event_of_torchdiffeq(interp: str) -> None:
    options = {"method": "rk4", "options": {"step_size": 0.05, "interp": interp}, "atol": 1e-9,
               "event_fn": lambda t, y: y[0, 0] - 0.2}
    func = Field().requires_grad_(False)
    assert_close(list(odeint(func, state(), times(0.0, 1.0), **options)),
                 list(torchdiffeq.odeint(func, state(), times(0.0, 1.0), **options)), 1e-8)


def test_events_of_samples_are_found_each_for_itself() -> None:
    heights = times(1.0, 4.0)
    t, y = odeint(lambda t, y: torch.stack([y[:, 1], -2 + 0 * y[:, 1]], 1), torch.stack([heights, 0 * heights], 1),
                  times(0.0, 1.0), event_fn=lambda t, y: y[:, 0], options={"norm": "per_sample"})
    torch.testing.assert_close(t, heights.sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(y[1, :, 1], -2 * heights.sqrt(), rtol=1e-9, atol=0)


def test_an_event_at_the_start_ends_there() -> None:
    t, y = odeint(Field(), state(), times(0.5, 1.0), event_fn=lambda t, y: t - 0.5)
    assert float(t) == 0.5 and torch.equal(y[1], state())


def test_rows_that_start_at_their_event_are_named() -> None:
    with pytest.raises(ValueError, match=r"rows \[1\]"):
        odeint(lambda t, y: -1 + 0 * y, times(1.0, 0.0), times(0.0, 1.0), event_fn=lambda t, y: y,
               options={"norm": "per_sample"})


def test_an_event_that_never_comes_is_given_up() -> None:
    with pytest.raises((ValueError, SolveError)):
        odeint(lambda t, y: -y, torch.ones(1), times(0.0, 1.0), event_fn=lambda t, y: y + 1,
               options={"max_num_steps": 50})


@pytest.mark.parametrize(("changes", "message"), [
    ({"method": "dopri6"}, "choose one of"), ({"t": [0.0, 1.0]}, "floating-point tensor"),
    ({"t": torch.tensor([0, 1])}, "floating-point tensor"), ({"t": times(0.0, 1.0, 1.0)}, "strictly"),
    ({"t": times(0.0, math.nan)}, "finite times"), ({"y0": [1.0]}, "tensor or a tuple"),
    ({"y0": torch.ones(2, dtype=torch.long)}, "floating-point"), ({"rtol": -1.0}, "rtol"), ({"atol": math.inf}, "atol"),
    ({"rtol": times(1e-3)[0].requires_grad_()}, "requires a gradient"), ({"rtol": (1e-3, 1e-3)}, "rtol has 2 entries"),
    ({"method": "rk4", "options": {"step_size": 0.1, "grid_constructor": lambda f, y, t: t}}, "give one of them"),
    ({"method": "rk4", "options": {"step_size": -0.1}}, "above 0"),
    ({"method": "rk4", "options": {"interp": "x"}}, "interp"),
    ({"method": "rk4", "options": {"grid_constructor": lambda f, y, t: t + 1}}, "grid_constructor"),
    ({"options": {"max_step": 0.0}}, "max_step"), ({"options": {"norm": "max"}}, "norm"),
    ({"options": {"step_t": times(0.5), "jump_t": times(0.5)}}, "both hold"),
    ({"t": FORWARD, "event_fn": lambda t, y: y.sum()}, "one time in the direction"),
    ({"method": "rk4", "event_fn": lambda t, y: y.sum()}, "give a step_size"),
    ({"method": SCIPY, "event_fn": lambda t, y: y.sum()}, SCIPY),
    ({"method": SCIPY, "y0": torch.ones(2, requires_grad=True)}, "requires a gradient"),
    ({"func": lambda t, y: (y, y)}, "return a tensor"), ({"func": lambda t, y: y[:1]}, "same")])
def test_wrong_arguments_are_named(changes: dict, message: str) -> None:
    arguments: dict = {"func": lambda t, y: -y, "y0": torch.ones(2, dtype=torch.float64), "t": times(0.0, 1.0)}
    arguments |= changes
    with pytest.raises(ValueError, match=message):
        odeint(arguments.pop("func"), arguments.pop("y0"), arguments.pop("t"), **arguments)


def test_unknown_options_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="step_size"):
        odeint(Field(), state(), FORWARD, method="dopri5", options={"step_size": 0.1})


def test_scipy_warns_of_the_gradients_that_it_loses() -> None:
    with pytest.warns(UserWarning, match="require a gradient"):
        odeint(Field(), state(), FORWARD, method=SCIPY)


def test_the_adjoint_needs_to_know_the_parameters() -> None:
    with pytest.raises(ValueError, match="adjoint_params"):
        odeint_adjoint(lambda t, y: -y, state(), FORWARD)
    with pytest.raises(ValueError, match="adjoint_options"):
        odeint_adjoint(Field(), state(), FORWARD, options={"first_step": 0.1}, adjoint_method="tsit5")
    rate = times(0.5)[0].requires_grad_()
    y = odeint_adjoint(lambda t, y: -rate * y, state(), times(0.0, 1.0), adjoint_params=(rate,))
    (found,) = torch.autograd.grad(y[1].sum(), rate)
    torch.testing.assert_close(found, -(state() * math.exp(-0.5)).sum(), rtol=1e-6, atol=0)


def test_too_many_steps_are_an_error() -> None:
    with pytest.raises(SolveError, match="limit of 3 steps"):
        odeint(Field(), state(), FORWARD, options={"max_num_steps": 3})


GUIDE = (Path(__file__).parents[3] / "docs" / "from-torchdiffeq.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", THEIRS)
def test_the_guide_speaks_of_every_method_of_torchdiffeq(name: str) -> None:
    assert f"`{name}`" in GUIDE
