"""The continuous adjoint: converges to the direct gradient, with jumps at observations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from odecore.driver.solve import solve
from odecore.explicit.embedded import BOGACKI_SHAMPINE, DORMAND_PRINCE
from odecore.gradients.backsolve import backsolve


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network() -> torch.nn.Module:
    body = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    for index, parameter in enumerate(body.parameters()):
        parameter.data = 0.5 * random(*parameter.shape, seed=index)
    return body


def with_time(body: torch.nn.Module, y: Tensor, t: Tensor) -> Tensor:
    return body(torch.cat([y, t.to(y.dtype).expand(len(y))[:, None]], dim=1))


def observed(states: Tensor) -> Tensor:
    """A loss that reads every observation."""
    weights = torch.linspace(1, 2, len(states), dtype=torch.float64)
    return (weights * states.abs().square().flatten(1).sum(1)).sum()


def direct(field, y0: Tensor, times: Tensor, args: tuple[Tensor, ...] = ()) -> Tensor:  # noqa: ANN001
    """Autograd through the driver at a tight tolerance, as reference."""
    states = [y0]
    for begin, end in zip(times[:-1], times[1:], strict=True):
        states.append(solve(DORMAND_PRINCE, field, states[-1], begin, end, rtol=1e-11, atol=1e-12, args=args).y)
    return torch.stack(states)


def difference(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    return max(((a - e).abs().max() / e.abs().max()).item() for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("seminorm", [True, False])
def test_gradients_converge_to_the_direct_ones_with_the_tolerance(seminorm: bool) -> None:
    body, y0, times = network(), random(4, 2).requires_grad_(), torch.tensor([0.0, 0.7, 1.0, 2.0])
    field = lambda y, t: with_time(body, y, t)  # noqa: E731
    inputs = (y0, *body.parameters())
    expected = torch.autograd.grad(observed(direct(field, y0, times)), inputs)
    errors = []
    for tolerance in (1e-3, 1e-6, 1e-9):
        states = backsolve(DORMAND_PRINCE, field, y0, times, rtol=tolerance, atol=tolerance, seminorm=seminorm,
                           parameters=body.parameters())
        errors.append(difference(torch.autograd.grad(observed(states), inputs), expected))
        assert errors[-1] <= 10 * tolerance
    assert errors[0] > errors[1] > errors[2]


def test_the_gradient_of_a_linear_problem_has_its_closed_form() -> None:
    y0, rate = random(3, 1).requires_grad_(), torch.tensor(-0.8, dtype=torch.float64).requires_grad_()
    states = backsolve(DORMAND_PRINCE, lambda y, t: rate * y, y0, [0.0, 2.0], rtol=1e-10, atol=1e-10,
                       parameters=(rate,))
    to_y0, to_rate = torch.autograd.grad(states[-1].sum(), (y0, rate))
    torch.testing.assert_close(to_y0, torch.full_like(y0, math.exp(-1.6)), rtol=1e-8, atol=0)
    assert to_rate.item() == pytest.approx(2 * math.exp(-1.6) * y0.sum().item(), rel=1e-8)


def test_times_and_arguments_get_their_gradients() -> None:
    y0, k = random(3, 2), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).requires_grad_()
    times = torch.tensor([0.2, 0.5, 1.5], dtype=torch.float64).requires_grad_()
    field = lambda y, t, k: -k[:, None] * torch.sin(y) + torch.cos(3 * t).reshape(-1, 1)  # noqa: E731

    def loss(shift: Tensor) -> Tensor:
        return observed(direct(field, y0, times.detach() + shift, (k,)))

    states = backsolve(DORMAND_PRINCE, field, y0, times, rtol=1e-10, atol=1e-11, args=(k,))
    to_times, to_k = torch.autograd.grad(observed(states), (times, k))
    (expected,) = torch.autograd.grad(loss(torch.zeros(3)), k)
    assert difference((to_k,), (expected,)) <= 1e-7
    with torch.no_grad():
        for index in range(3):
            step = torch.zeros(3, dtype=torch.float64)
            step[index] = 1e-4
            central = (loss(step) - loss(-step)).item() / 2e-4
            assert to_times[index].item() == pytest.approx(central, rel=1e-6, abs=1e-6)


def test_samples_may_have_intervals_of_their_own_in_either_direction() -> None:
    y0, scale = random(3, 2).requires_grad_(), torch.tensor(1.3, dtype=torch.float64).requires_grad_()
    times = torch.tensor([[0.0, 2.0, 1.0], [1.0, 1.5, 1.0], [3.0, 1.0, 1.2]], dtype=torch.float64)
    field = lambda y, t: scale * torch.sin(y + t.reshape(-1, 1))  # noqa: E731
    states = backsolve(DORMAND_PRINCE, field, y0, times, rtol=1e-10, atol=1e-11, parameters=(scale,))
    expected = torch.autograd.grad(observed(direct(field, y0, times)), (y0, scale))
    assert difference(torch.autograd.grad(observed(states), (y0, scale)), expected) <= 1e-7


def test_complex_states_follow_autograds_convention() -> None:
    y0 = torch.complex(random(2, 2), random(2, 2, seed=2)).requires_grad_()
    rate = torch.tensor(-0.4 + 1.5j, dtype=torch.complex128).requires_grad_()
    field = lambda y, t: rate * y - 0.1 * y * y.abs().square()  # noqa: E731
    times = torch.tensor([0.0, 1.0, 1.5])
    states = backsolve(DORMAND_PRINCE, field, y0, times, rtol=1e-10, atol=1e-11, parameters=(rate,))
    expected = torch.autograd.grad(observed(direct(field, y0, times)), (y0, rate))
    assert difference(torch.autograd.grad(observed(states), (y0, rate)), expected) <= 1e-7


def test_gradients_agree_with_those_of_torchdiffeq() -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq")
    body, y0, times = network(), random(4, 2).requires_grad_(), torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)

    class Dynamics(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return with_time(self.body, y, t)

    inputs = (y0, *body.parameters())
    theirs = torchdiffeq.odeint_adjoint(Dynamics(), y0, times, rtol=1e-9, atol=1e-10, method="dopri5")
    ours = backsolve(DORMAND_PRINCE, lambda y, t: with_time(body, y, t), y0, times, rtol=1e-9, atol=1e-10,
                     parameters=body.parameters())
    torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)
    expected = torch.autograd.grad(observed(theirs), inputs)
    assert difference(torch.autograd.grad(observed(ours), inputs), expected) <= 1e-7


def test_the_seminorm_saves_evaluations_where_parameters_are_hard_to_integrate() -> None:
    y0, amplitude = random(2, 1).requires_grad_(), torch.tensor(0.0, dtype=torch.float64).requires_grad_()
    calls = {True: 0, False: 0}
    for seminorm in calls:
        # The gradient of the amplitude oscillates, while the state, whose amplitude is zero, does not.
        def field(y: Tensor, t: Tensor, key: bool = seminorm) -> Tensor:
            calls[key] += 1
            return -y + amplitude * torch.sin(60 * t).reshape(-1, 1)

        observed(backsolve(DORMAND_PRINCE, field, y0, [0.0, 3.0], rtol=1e-6, atol=1e-6, parameters=(amplitude,),
                           seminorm=seminorm)).backward()
    assert calls[True] < 0.5 * calls[False]


@pytest.mark.parametrize("stepper", [BOGACKI_SHAMPINE, DORMAND_PRINCE], ids=["bogacki-shampine", "dormand-prince"])
def test_nothing_between_observations_is_kept(stepper: object) -> None:
    y0 = random(2, 2).requires_grad_()
    states = backsolve(stepper, lambda y, t: -50 * y, y0, [0.0, 3.0], rtol=1e-6, atol=1e-6)
    saved = [t for t in states.grad_fn.saved_tensors if t is not None]
    assert sum(t.numel() for t in saved) == states.numel() + 2 * 2  # the observations, and the times


def test_a_field_that_reads_no_state_has_a_gradient_of_one() -> None:
    y0 = random(2, 2).requires_grad_()
    states = backsolve(DORMAND_PRINCE, lambda y, t: torch.ones_like(y), y0, [0.0, 1.0], rtol=1e-6, atol=1e-6)
    assert torch.equal(torch.autograd.grad(states[-1].sum(), y0)[0], torch.ones_like(y0))


def test_wrong_arguments_raise() -> None:
    y0 = random(2, 2)
    run = lambda y0, times, **options: backsolve(  # noqa: E731
        DORMAND_PRINCE, lambda y, t: y, y0, times, rtol=1e-3, atol=1e-3, **options)
    with pytest.raises(ValueError, match="times has shape"):
        run(y0, [0.0])
    with pytest.raises(ValueError, match="y0 has dtype"):
        run(y0.half(), [0.0, 1.0])
    with pytest.raises(ValueError, match="partial=True"):
        run(y0, [0.0, 1.0], partial=True)
