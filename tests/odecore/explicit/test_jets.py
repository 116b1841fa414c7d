"""Taylor arithmetic: coefficients of every rule against nested dual numbers, and what has no rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from odecore.explicit.jets import Jet, NoJet, Tape
from odecore.explicit.taylor import nested_derivatives, total_derivatives

GENERATOR = torch.Generator().manual_seed(0)
MATRIX = torch.randn(4, 4, generator=GENERATOR, dtype=torch.float64) / 2
Y = torch.rand(3, 4, generator=GENERATOR, dtype=torch.float64) + 0.2
T = torch.tensor([0.3, 0.7, 1.1], dtype=torch.float64)

FIELDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sums": lambda y, t: (1 - y) + (y - 2) - 0.5 * y + t[:, None] + torch.add(y, y, alpha=0.3)
    - y.sum(1)[:, None],
    "products": lambda y, t: y * y * t[:, None] + y @ MATRIX * y + 0.1 * y.square() + y**3 - 2 * y**0.5,
    "quotients": lambda y, t: y / (1 + y) + 1 / y - y / 3 + torch.div(y, 2.0) + y.reciprocal() + MATRIX[0] / y,
    "powers": lambda y, t: y**1.5 + y**-1 + y**-0.5 + 2.0**y + y**0 + torch.pow(y, 2),
    "exponentials": lambda y, t: torch.exp(-y) + torch.expm1(y / 3) + torch.log(y) + torch.log1p(y) + torch.logit(
        y / 4),
    "circular": lambda y, t: torch.sin(3 * y) * torch.cos(y) + torch.atan(y) + torch.cos(t)[:, None],
    "activations": lambda y, t: torch.tanh(y) + torch.sigmoid(2 * y) + torch.relu(y - 0.6) + F.softplus(y, beta=2),
    "smooth activations": lambda y, t: torch.erf(y) + F.gelu(y) + F.gelu(y, approximate="tanh"),
    "roots": lambda y, t: torch.sqrt(y) + torch.rsqrt(y) - y.sqrt() * torch.rsqrt(y + 1),
    "shapes": lambda y, t: torch.cat([y.flip(1)[:, :2], y.reshape(3, 2, 2).mT.flatten(1)[..., 2:]], 1) + torch.stack(
        y.unbind(1), -1) * y.unsqueeze(0).transpose(1, 2).squeeze(0).T.expand(3, 4) + torch.cat(y.chunk(2, 1)[::-1], 1),
    "sums and means": lambda y, t: y - y.mean(1, keepdim=True) + y.cumsum(1) * y.sum() + y.max() * 0,
    "mixed with constants": lambda y, t: torch.stack([y[:, 0], MATRIX[0, :3], y[:, 1], torch.sin(y[:, 2])], 1),
    "choices": lambda y, t: torch.where(y > 0.6, y * y, 0.3) + torch.where(y > 0.5, MATRIX[:3], y.sin()),
    "layers": lambda y, t: F.linear(torch.tanh(F.linear(y, MATRIX, MATRIX[0])), MATRIX.T) + torch.addmm(
        MATRIX[0], y, MATRIX) + torch.einsum("bi,bj->bj", y, torch.sin(y)) + y @ (y.T @ y) / 9,
    "a network of its state": lambda y, t: F.linear(y, torch.outer(y[0], y[1]), y[2]),
    "normalisation": lambda y, t: torch.softmax(y, 1) + F.group_norm(y, 2, MATRIX[1]),
    "blends": lambda y, t: torch.addcmul(y, y, torch.sin(y), value=0.5) + torch.lerp(y, y * y, t[:, None]),
    "conversions": lambda y, t: y.to(torch.float64).clone().contiguous() * t.double()[:, None] + y.detach() * y,
    "without a rule": lambda y, t: torch.sinh(y) * torch.asinh(y) + torch.logsumexp(y, 1, keepdim=True) + torch.atan2(
        y, 1 + y * y),
}


@pytest.mark.parametrize("name", FIELDS)
def test_derivatives_agree_with_nested_dual_numbers(name: str) -> None:
    field = FIELDS[name]
    tape = Tape()
    assert isinstance(field(Jet(Y, None, tape), Jet(T, None, tape)), Jet)  # none of them leaves Taylor arithmetic
    for ours, nested in zip(total_derivatives(field, Y, T, 5), nested_derivatives(field, Y, T, 5), strict=True):
        torch.testing.assert_close(ours, nested, rtol=1e-10, atol=1e-10)


def test_convolutions_agree_with_nested_dual_numbers() -> None:
    y = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kernel = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) / 6
    norm, time = nn.GroupNorm(2, 4).double(), torch.zeros(2, dtype=torch.float64)

    def field(y: Tensor, t: Tensor) -> Tensor:
        h = torch.tanh(F.conv2d(norm(y), kernel, kernel[0, :, 0, 0], padding=1)) + t.reshape(-1, 1, 1, 1)
        h = F.conv2d(F.pixel_shuffle(h, 2).repeat(1, 4, 1, 1), kernel, stride=2, padding=1)
        return F.avg_pool2d(F.pad(h, (1, 1, 1, 1)), 3, 1)

    for ours, nested in zip(total_derivatives(field, y, time, 4), nested_derivatives(field, y, time, 4), strict=True):
        torch.testing.assert_close(ours, nested, rtol=1e-10, atol=1e-10)


def test_swish_attention_and_layer_norm_have_the_derivatives_of_their_formulas() -> None:
    """Torch itself cannot differentiate the first two forward twice, and does it wrongly for the third."""
    def field(y: Tensor, t: Tensor) -> Tensor:
        q = y.reshape(3, 2, 2)
        attended = F.scaled_dot_product_attention(q, q, 2 * q, is_causal=True).flatten(1)
        return F.silu(y) + attended + F.layer_norm(y, (4,), MATRIX[0], MATRIX[1])

    def formulas(y: Tensor, t: Tensor) -> Tensor:
        q = y.reshape(3, 2, 2)
        scores = (q @ q.mT / 2**0.5).masked_fill(torch.tensor([[False, True], [False, False]]), -torch.inf)
        centred = y - y.mean(1, keepdim=True)
        normal = centred / torch.sqrt((centred * centred).mean(1, keepdim=True) + 1e-5) * MATRIX[0] + MATRIX[1]
        return y * torch.sigmoid(y) + normal + (torch.softmax(scores, -1) @ (2 * q)).flatten(1)

    for ours, nested in zip(total_derivatives(field, Y, T, 4), nested_derivatives(formulas, Y, T, 4), strict=True):
        torch.testing.assert_close(ours, nested, rtol=1e-10, atol=1e-10)


def in_place(y: Tensor, t: Tensor) -> Tensor:
    y = y.clone()
    y += torch.sin(y)
    return y


def by_functional_derivatives(y: Tensor, t: Tensor) -> Tensor:
    return torch.func.vjp(torch.sin, y)[1](y)[0]


def into_a_buffer(y: Tensor, t: Tensor) -> Tensor:
    value = torch.zeros_like(y)
    value[:, 1] = y[:, 0] ** 2
    return value


@pytest.mark.parametrize("field", [in_place, by_functional_derivatives, into_a_buffer])
def test_a_field_that_series_cannot_follow_is_differentiated_all_the_same(
    field: Callable[[Tensor, Tensor], Tensor]
) -> None:
    with pytest.raises((NoJet, RuntimeError, TypeError)):
        tape = Tape()
        field(Jet(Y, None, tape), Jet(T, None, tape))
    for ours, nested in zip(total_derivatives(field, Y, T, 3), nested_derivatives(field, Y, T, 3), strict=True):
        torch.testing.assert_close(ours, nested, rtol=1e-12, atol=1e-12)


def test_linear_layers_run_once_for_each_derivative() -> None:
    layer = nn.Linear(4, 4, dtype=torch.float64)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile, torch.no_grad():
        total_derivatives(lambda y, t: torch.tanh(layer(y)), Y, T, 5)
    calls = [event.count for event in profile.key_averages() if event.key == "aten::linear"]
    assert calls == [5]


def test_parameters_get_the_gradients_of_finite_differences() -> None:
    def derivatives(matrix: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        return tuple(total_derivatives(lambda y, t: torch.tanh(y @ matrix) * torch.cos(t)[:, None], y, T, 3))

    assert torch.autograd.gradcheck(derivatives, (MATRIX.clone().requires_grad_(), Y.clone().requires_grad_()))
