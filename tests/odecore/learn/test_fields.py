"""Fields with known form: symmetries by construction, chosen inputs, controls."""

from __future__ import annotations

import pytest
import torch

from odecore.driver.integrate import integrate
from odecore.explicit.embedded import TSITOURAS
from odecore.learn.fields import MLP, Reflection, StructuredField, Symmetric, Unknown

X = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PENDULUM = (Reflection((0, 1), odd=True), Reflection((2,), odd=False))


def network(seed: int = 0, inputs: int = 3) -> MLP:
    return MLP((inputs, 16, 2), seed=seed, dtype=torch.float64)


def test_first_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    one, state = network(3), torch.random.get_rng_state()
    same, other = network(3), network(4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(one(X), same(X)) and not torch.equal(one(X), other(X))


def test_declared_symmetries_hold_to_rounding_before_any_training() -> None:
    g = Symmetric(network(), PENDULUM, inputs=3)
    for signs, parity in (((-1, -1, 1), -1), ((1, 1, -1), 1), ((-1, -1, -1), -1)):
        torch.testing.assert_close(g(X * X.new_tensor(signs)), parity * g(X), rtol=1e-13, atol=1e-15)


def test_a_function_that_has_the_symmetries_is_left_alone() -> None:
    class Exact(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.sin(x[..., 0] - 2 * x[..., 1]) * x[..., 2].square()).unsqueeze(-1)

    torch.testing.assert_close(Symmetric(Exact(), PENDULUM, inputs=3)(X), Exact()(X), rtol=1e-13, atol=1e-15)


def test_a_term_sees_its_inputs_only() -> None:
    term, changed = Unknown(network(inputs=1), (1,)), X.clone()
    changed[:, (0, 2)] += 1
    assert torch.equal(term(X, torch.zeros(50)), term(changed, torch.zeros(50)))


def test_a_structured_field_with_controls_runs_in_the_drivers_and_is_differentiable() -> None:
    gain = Unknown(MLP((1, 8, 1), seed=1, dtype=torch.float64), lambda y, t, u: u)
    field = StructuredField(lambda y, t, u, g: torch.stack((y[:, 1], g[:, 0] - y[:, 0]), 1), {"g": gain})
    u = torch.linspace(0, 1, 4, dtype=torch.float64).unsqueeze(1)
    end = integrate(TSITOURAS, field, torch.ones(4, 2, dtype=torch.float64), [0.0, 0.5, 1.0], args=(u,))
    end.y.sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in field.parameters())
    torch.testing.assert_close(field.terms(torch.ones(4, 2), torch.zeros(4), u)["g"], gain.network(u))


def test_constant_terms_give_the_known_solution() -> None:
    class Constant(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full_like(x[..., :1], 2.0)

    field = StructuredField(lambda y, t, g: -g * y, {"g": Unknown(Constant(), (0,))})
    end = integrate(TSITOURAS, field, torch.ones(1, 1, dtype=torch.float64), torch.linspace(0, 1, 101).tolist()).y
    torch.testing.assert_close(end, torch.exp(torch.tensor([[-2.0]], dtype=torch.float64)), rtol=1e-11, atol=0)


@pytest.mark.parametrize("make", [
    lambda: MLP((3,)), lambda: MLP((3, 0, 1)), lambda: Reflection((), odd=True), lambda: StructuredField(torch.sin, {}),
    lambda: Symmetric(network(), (Reflection((3,), odd=True),), inputs=3),
    lambda: Symmetric(network(), (Reflection((0,), odd=True), Reflection((0,), odd=True)), inputs=3),
])
def test_wrong_input_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match="give|name|lie|leave|without"):
        make()  # type: ignore[operator]
