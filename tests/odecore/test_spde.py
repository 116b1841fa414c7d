from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from odecore.exponential import tableaus
from odecore.plan import execute
from odecore.spde import (
    complex_noise,
    ginzburg_landau,
    linear,
    navier_stokes,
    phi4,
    smooth_functions,
    solve_forced,
    step_plan,
    stochastic_plan,
    white_noise,
)
from odecore.torus import values


def test_the_linear_equation_is_solved_exactly() -> None:
    equation, noise = linear(6, damping=2.0, amplitude=0.5), white_noise(range(3), 6, intervals=5, duration=0.3)
    start = smooth_functions(range(3), 6)
    found = solve_forced(equation, start, noise, 0.3, tableau=tableaus.ETD_RK1)
    rate, h, state = equation.symbol, 0.06, start
    for j in range(5):  # variation of constants
        state = torch.exp(h * rate) * state + torch.expm1(h * rate) / rate * 0.5 * noise[:, j]
        assert torch.allclose(found[:, j + 1], state, rtol=1e-12, atol=1e-15)


def test_ginzburg_landau_agrees_with_finite_differences_under_the_same_noise() -> None:
    modes, points, duration = 12, 256, 0.02
    noise = white_noise([7], modes, intervals=4, duration=duration)
    start = smooth_functions([7], modes)
    found = values(solve_forced(ginzburg_landau(modes), start, noise, duration, substeps=4)[0], points, 1)
    forces = values(0.1 * noise[0], points, 1).numpy()
    u = values(start[0], points, 1).numpy()
    for j, force in enumerate(forces):
        def slope(t: float, u: np.ndarray, force: np.ndarray = force) -> np.ndarray:
            second = (np.roll(u, 1) - 2 * u + np.roll(u, -1)) * points**2
            return second + 3 * u - u**3 + force
        u = solve_ivp(slope, (0, duration / 4), u, method="LSODA", rtol=1e-8, atol=1e-10).y[:, -1]
        error = np.abs(found[j + 1].numpy() - u).max() / np.abs(u).max()
        assert error < 2e-3  # (2π k / points)² / 12 of the highest mode


def test_navier_stokes_agrees_with_pseudo_spectral_runge_kutta_on_a_full_fourier_grid() -> None:
    modes, n, duration = 5, 24, 0.2
    equation = navier_stokes(modes, viscosity=1e-2)
    noise = white_noise([3], modes, dim=2, intervals=2, duration=duration)
    start = smooth_functions([3], modes, dim=2, decay=3.0)
    found = values(solve_forced(equation, start, noise, duration, substeps=10)[0], n, 2)
    w, forces = values(start[0], n, 2).numpy(), values(equation.amplitude * noise[0], n, 2).numpy()
    k = np.fft.fftfreq(n, 1 / n)
    k1, k2 = 2 * np.pi * k[:, None] * np.ones((1, n)), 2 * np.pi * k[None] * np.ones((n, 1))
    kept = (np.abs(k)[:, None] <= modes) & (np.abs(k)[None] <= modes)
    square = k1**2 + k2**2
    x = np.arange(n) / n
    steady = 0.1 * (np.sin(2 * np.pi * (x[:, None] + x)) + np.cos(2 * np.pi * (x[:, None] + x)))

    def real(spectrum: np.ndarray) -> np.ndarray:
        return np.fft.ifft2(spectrum).real

    def slope(t: float, flat: np.ndarray, force: np.ndarray) -> np.ndarray:
        spectrum = np.fft.fft2(flat.reshape(n, n))
        psi = spectrum / np.where(square > 0, square, 1)
        transport = real(1j * k2 * psi) * real(1j * k1 * spectrum) - real(1j * k1 * psi) * real(1j * k2 * spectrum)
        return (real(np.where(kept, -np.fft.fft2(transport), 0) - 1e-2 * square * spectrum) + steady + force).ravel()

    for j, force in enumerate(forces):
        w = solve_ivp(slope, (0, duration / 2), w.ravel(), args=(force,), rtol=1e-10, atol=1e-12).y[:, -1].reshape(n, n)
        assert np.abs(found[j + 1].numpy() - w).max() < 1e-6 * np.abs(w).max()


@pytest.mark.parametrize("dim", [1, 2])
def test_a_coarser_grid_sees_the_projection_of_the_same_noise(dim: int) -> None:
    coarse, fine = (white_noise([5, 9], modes, dim=dim, intervals=3) for modes in (4, 9))
    projected = fine[..., :5] if dim == 1 else torch.cat((fine[..., :5, :5], fine[..., -4:, :5]), -2)
    assert torch.allclose(coarse, projected, rtol=1e-14, atol=0)
    assert torch.allclose(white_noise([9], 4, dim=dim, intervals=7, duration=7 / 3)[:, :3], coarse[1:], atol=1e-13)
    assert not torch.isclose(white_noise([9], 4, dim=dim, intervals=3, stream=1), coarse[1:]).any()


def test_noise_in_the_plane_is_that_of_a_real_function() -> None:
    noise = white_noise([1], 5, dim=2, intervals=1)[0, 0]
    assert torch.equal(noise[6:, 0], noise[1:6, 0].flip(0).conj())
    assert noise[0, 0].imag == 0


def test_white_noise_has_the_variance_of_its_grid() -> None:
    noise = white_noise(range(400), 15, intervals=10, duration=0.5)
    on_grid = values(noise, 32, 1)
    expected = (2 * 15 + 1) * 10 / 0.5  # modes on the grid over the length of an interval
    assert on_grid.var().item() == pytest.approx(expected, rel=0.02)
    neighbours = (noise[:, 1:] * noise[:, :-1].conj()).mean().abs()
    assert neighbours < 0.1 * noise.abs().square().mean()


def test_the_stationary_variance_of_the_linear_equation_is_that_of_ornstein_uhlenbeck() -> None:
    equation, samples = linear(3, damping=5.0, amplitude=0.7), 4000
    plan = stochastic_plan(equation, [0.02 * i for i in range(41)])  # no bias of the step in a linear equation
    draw = complex_noise(range(samples), equation, 40)
    end = execute(plan, lambda z, t: equation.nonlinear(z), torch.zeros(samples, 4, dtype=torch.complex128), noise=draw)
    expected = 0.49 / (-2 * equation.symbol) * -torch.expm1(2 * 0.8 * equation.symbol)
    assert torch.allclose(end.abs().square().mean(0), expected, rtol=5 * math.sqrt(2 / samples))


def test_noise_that_is_averaged_over_intervals_loses_the_variance_that_the_formula_says() -> None:
    equation, samples, h = linear(3, damping=5.0), 3000, 0.02
    noise = white_noise(range(samples), 3, intervals=40, duration=0.8)
    start = torch.zeros(samples, 4, dtype=torch.complex128)
    end = solve_forced(equation, start, noise, 0.8, tableau=tableaus.ETD_RK1)[:, -1]
    z = -h * equation.symbol
    expected = -1 / (2 * equation.symbol) * (2 / z) * torch.tanh(z / 2) * -torch.expm1(-80 * z)
    assert torch.allclose(end.abs().square().mean(0), expected, rtol=5 * math.sqrt(2 / samples))


@pytest.mark.parametrize("equation", [ginzburg_landau(2), phi4(2)], ids=lambda e: e.name)
def test_solutions_converge_with_the_order_of_the_scheme(equation: object) -> None:
    start, noise = 3 * smooth_functions([2], 2), white_noise([2], 2, intervals=1, duration=0.2)

    def run(substeps: int) -> torch.Tensor:
        return solve_forced(equation, start, noise, 0.2, tableau=tableaus.HOCHBRUCK_OSTERMANN,  # type: ignore[arg-type]
                            substeps=substeps)[:, -1]
    reference = run(512)
    counts = [32, 48, 64, 96]
    errors = [(run(n) - reference).abs().max().item() for n in counts]
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope == pytest.approx(4, abs=0.15)


def test_a_plan_of_an_interval_spends_the_stages_of_its_scheme() -> None:
    assert step_plan(linear(4).symbol, 0.1, substeps=3).nfe == 12


@pytest.mark.parametrize(("call", "name"), [
    (lambda: white_noise([], 4), "seeds"), (lambda: white_noise([0], 4, dim=3), "dim"),
    (lambda: white_noise([0], 4, intervals=0), "intervals"), (lambda: white_noise([0], 4, stream=-1), "stream"),
    (lambda: solve_forced(linear(4), smooth_functions([0], 3), white_noise([0], 4), 1.0), "start"),
    (lambda: solve_forced(linear(4), smooth_functions([0], 4), white_noise([0], 3), 1.0), "noise")])
def test_a_wrong_argument_is_named(call: object, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call()  # type: ignore[operator]
