"""Methods for stochastic equations: strong orders with their Monte-Carlo error, senses, gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import pytest
import torch
from torch import Tensor

from odecore.gradients.adjoint import discrete
from odecore.stochastic.brownian import BrownianIncrement, BrownianMotion
from odecore.stochastic.sde import (
    SDE,
    Method,
    converted,
    euler_maruyama,
    exponential_euler,
    heun,
    integrate_sde,
    milstein,
    sde_steps,
    srk_additive,
)

PATHS, FINE = 1000, 256
STEPS = (8, 16, 32, 64)
MU, SIGMA, THETA = 0.3, 0.8, 3.0


@cache
def increments(steps: int) -> BrownianIncrement:
    """The same paths on [0, 1] at any number of steps: each time is a sample with the same seed."""
    grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return BrownianMotion([5] * steps, (PATHS,), levels=8).increment(grid[:-1], grid[1:])


def noise(steps: int, shape: tuple[int, ...]) -> Callable[[float, float], BrownianIncrement]:
    w, levy = increments(steps)
    return lambda s, t: BrownianIncrement(w[round(s * steps)].reshape(shape), levy[round(s * steps)].reshape(shape))


def strong_order(method: Method, sde: SDE, y0: Tensor, exact: Tensor, shape: tuple[int, ...]) -> tuple[float, float]:
    """Slope of the mean absolute error at the end, and its standard error over 20 groups of paths."""
    errors = []
    for steps in STEPS:
        grid = [i / steps for i in range(steps + 1)]
        y = integrate_sde(method, sde, y0, grid, noise(steps, shape))[-1]
        errors.append((y - exact).abs().reshape(PATHS, -1).sum(1))
    groups = torch.stack(errors).reshape(len(STEPS), 20, -1).mean(2).numpy()
    slopes = -np.polyfit(np.log(STEPS), np.log(groups), 1)[0]
    overall = -np.polyfit(np.log(STEPS), np.log(groups.mean(1)), 1)[0]
    return overall, slopes.std(ddof=1) / math.sqrt(20)


def end() -> Tensor:
    return increments(1).w.reshape(PATHS, 1)


def geometric(interpretation: str = "ito", noise: str = "diagonal") -> tuple[SDE, Tensor, Tensor]:
    """Geometric Brownian motion: y = exp((μ - σ²/2) t + σ W), without σ²/2 in Stratonovich's sense."""
    sde = SDE(lambda y, t: MU * y, lambda y, t: SIGMA * y, noise, interpretation)
    rate = MU - SIGMA**2 / 2 if interpretation == "ito" else MU
    return sde, torch.ones(PATHS, 1, dtype=torch.float64), torch.exp(rate + SIGMA * end())


def ornstein_uhlenbeck(linear: float = 0.0) -> tuple[SDE, Tensor, Tensor]:
    """dy = -θ y dt + σ (1 + t) dW; its integral is taken on fine intervals, from increments and areas.

    ``linear`` is the part of the drift that the method is told apart from the rest.
    """
    sde = SDE(lambda y, t: (-THETA - linear) * y, lambda y, t: SIGMA * (1 + t).reshape(-1, 1), "additive")
    w, levy = increments(FINE)
    middle = ((torch.arange(FINE, dtype=torch.float64) + 0.5) / FINE).reshape(-1, 1)
    kernel = SIGMA * (1 + middle) * torch.exp(-THETA * (1 - middle))
    slope = kernel * (THETA + 1 / (1 + middle))
    integral = (kernel * w - slope * levy / FINE).sum(0).reshape(PATHS, 1)  # ∫ (s - middle) dW = -h H
    return sde, torch.ones(PATHS, 1, dtype=torch.float64), math.exp(-THETA) + integral


def squared() -> tuple[SDE, Tensor, Tensor]:
    """dx = dW, dz = x² dt: non-linear with additive noise; z = ∫ W² dt by fine intervals."""
    sde = SDE(lambda y, t: torch.stack([torch.zeros_like(y[:, 0]), y[:, 0] ** 2], dim=1),
              lambda y, t: torch.tensor([[1.0, 0.0]], dtype=torch.float64), "additive")
    w, levy = increments(FINE)
    left = torch.cat([torch.zeros(1, PATHS, dtype=torch.float64), w.cumsum(0)[:-1]])
    # Mean over an interval of the square of the path's mean, plus the variance that is left.
    parabola = left**2 + 2 * left * (w / 2 + levy) + w**2 / 3 + w * levy + 6 / 5 * levy**2
    z = (parabola + 1 / (15 * FINE)).mean(0)
    return sde, torch.zeros(PATHS, 2, dtype=torch.float64), torch.stack([end().flatten(), z], dim=1)


def geometric_converted(source: str, target: str) -> tuple[SDE, Tensor, Tensor]:
    sde, y0, exact = geometric(source)
    return converted(sde, target), y0, exact


def geometric_without_drift() -> tuple[SDE, Tensor, Tensor]:
    """The drift μ y being the method's linear part."""
    sde, y0, exact = geometric()
    return SDE(lambda y, t: torch.zeros_like(y), sde.diffusion), y0, exact


@pytest.mark.parametrize(("method", "problem", "order"), [
    (euler_maruyama, geometric, 0.5),
    (euler_maruyama, partial(geometric, noise="scalar"), 0.5),
    (euler_maruyama, partial(geometric_converted, "stratonovich", "ito"), 0.5),
    (euler_maruyama, ornstein_uhlenbeck, 1.0),
    (milstein, geometric, 1.0),
    (milstein, partial(geometric, "stratonovich"), 1.0),
    (milstein, partial(geometric, noise="scalar"), 1.0),
    (heun, partial(geometric, "stratonovich"), 1.0),
    (heun, partial(geometric_converted, "ito", "stratonovich"), 1.0),
    (srk_additive, squared, 1.5),
    (srk_additive, ornstein_uhlenbeck, 2.0),
    (exponential_euler(MU), geometric_without_drift, 0.5),
    (exponential_euler(-5.0), partial(ornstein_uhlenbeck, -5.0), 1.0),
], ids=["euler", "euler-scalar", "euler-converted", "euler-additive", "milstein", "milstein-stratonovich",
        "milstein-scalar", "heun", "heun-converted", "srk", "srk-linear", "exponential", "exponential-additive"])
def test_methods_have_their_strong_order(
    method: Method, problem: Callable[[], tuple[SDE, Tensor, Tensor]], order: float
) -> None:
    slope, error = strong_order(method, *problem(), (PATHS, 1))
    assert error <= 0.05
    assert abs(slope - order) <= 0.2


def test_the_exponential_method_integrates_the_linear_equation_at_any_stiffness() -> None:
    sde = SDE(lambda y, t: torch.zeros_like(y), lambda y, t: torch.ones_like(y), "additive")
    rates = torch.tensor([-1e4, -1.0, 0.0], dtype=torch.float64)
    motion = BrownianMotion([1, 2], (3,))
    y = integrate_sde(exponential_euler(rates), sde, torch.ones(2, 3, dtype=torch.float64), [0.0, 0.5, 1.0],
                      motion.increment)[-1]
    assert y[:, 0].abs().max() < 0.1
    torch.testing.assert_close(y[:, 2], 1 + motion(1.0)[:, 2], rtol=0, atol=1e-14)


def test_general_noise_with_a_diagonal_matrix_is_diagonal_noise() -> None:
    motion, y0 = BrownianMotion([1, 2], (3,)), torch.ones(2, 3, dtype=torch.float64)
    grid = [i / 10 for i in range(11)]
    for method, sense in ((euler_maruyama, "ito"), (heun, "stratonovich")):
        drift, diffusion = (lambda y, t: -y), (lambda y, t: torch.sin(y))
        diagonal = SDE(drift, diffusion, "diagonal", sense)
        general = SDE(drift, lambda y, t, g=diffusion: torch.diag_embed(g(y, t)), "general", sense)
        torch.testing.assert_close(integrate_sde(method, general, y0, grid, motion.increment),
                                   integrate_sde(method, diagonal, y0, grid, motion.increment), rtol=1e-14, atol=0)


@pytest.mark.parametrize("method", [euler_maruyama, milstein, heun, srk_additive, exponential_euler(-0.5)],
                         ids=["euler", "milstein", "heun", "srk", "exponential"])
def test_without_noise_the_methods_solve_the_ordinary_equation(method: Method) -> None:
    whole = method in (euler_maruyama, milstein, heun, srk_additive)  # the exponential method knows its linear part
    sde = SDE(lambda y, t: -0.5 * y if whole else 0 * y, lambda y, t: torch.zeros_like(y), "additive")
    grid = [i / 200 for i in range(201)]
    zero = BrownianIncrement(torch.zeros(1, 2), torch.zeros(1, 2))
    y = integrate_sde(method, sde, torch.ones(1, 2, dtype=torch.float64), grid, lambda s, t: zero)
    torch.testing.assert_close(y[-1], torch.full((1, 2), math.exp(-0.5), dtype=torch.float64), rtol=2e-3, atol=0)


@pytest.mark.parametrize("method", [milstein, heun], ids=["milstein", "heun"])
def test_pathwise_gradients_replay_from_few_states(method: Method) -> None:
    rate = torch.tensor(0.7, dtype=torch.float64).requires_grad_()
    sde = SDE(lambda y, t: -rate * y, lambda y, t: torch.sin(rate * y), "diagonal", "stratonovich")
    y0 = torch.ones(2, 3, dtype=torch.float64).requires_grad_()
    motion, grid = BrownianMotion([1, 2], (3,), levels=10), [i / 12 for i in range(13)]
    direct = integrate_sde(method, sde, y0, grid, motion.increment)[-1]
    (replayed,) = discrete(sde_steps(method, sde, grid, motion.increment), (y0,), states=3, parameters=(rate,))
    assert torch.equal(direct, replayed)
    expected = torch.autograd.grad(direct.square().sum(), (y0, rate))
    for actual, wanted in zip(torch.autograd.grad(replayed.square().sum(), (y0, rate)), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=0)


def test_a_path_integrated_backwards_returns_to_its_start() -> None:
    sde = geometric("stratonovich")[0]
    motion, y0 = BrownianMotion([1, 2], (1,), levels=8), torch.ones(2, 1, dtype=torch.float64)
    grid = [i / 256 for i in range(257)]
    forth = integrate_sde(heun, sde, y0, grid, motion.increment)[-1]
    back = integrate_sde(heun, sde, forth, grid[::-1], motion.increment)[-1]
    torch.testing.assert_close(back, y0, rtol=1e-2, atol=0)


def test_equations_that_a_method_cannot_solve_raise() -> None:
    motion, y0 = BrownianMotion([1], (1,)), torch.ones(1, 1, dtype=torch.float64)

    def run(method: Method, noise: str, interpretation: str) -> None:
        integrate_sde(method, SDE(lambda y, t: y, lambda y, t: y, noise, interpretation), y0, [0.0, 1.0],
                      motion.increment)

    with pytest.raises(ValueError, match="converted"):
        run(euler_maruyama, "diagonal", "stratonovich")
    with pytest.raises(ValueError, match="converted"):
        run(heun, "scalar", "ito")
    with pytest.raises(ValueError, match="converted"):
        run(exponential_euler(-1.0), "diagonal", "stratonovich")
    with pytest.raises(ValueError, match="noise='general'"):
        run(milstein, "general", "ito")
    with pytest.raises(ValueError, match="additive noise"):
        run(srk_additive, "diagonal", "ito")
    with pytest.raises(ValueError, match="converted"):
        converted(SDE(lambda y, t: y, lambda y, t: y, "general"), "stratonovich")


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match="noise='white'"):
        SDE(lambda y, t: y, lambda y, t: y, "white")
    with pytest.raises(ValueError, match="interpretation='levy'"):
        SDE(lambda y, t: y, lambda y, t: y, interpretation="levy")
    with pytest.raises(ValueError, match="times has 1"):
        sde_steps(heun, geometric()[0], [0.0], BrownianMotion([1], (1,)).increment)
