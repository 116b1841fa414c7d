"""Stiff initial value problems of the literature, with reference solutions by two of SciPy's methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from torch import Tensor

from odecore.exponential.linear import Fourier
from odecore.problem import ODE, Problem, Semilinear, Split

Array = NDArray[np.float64]
Components = tuple[Any, ...]
"""Numbers or tensors, one for each component: the same formula serves SciPy and odecore."""


@dataclass(frozen=True, slots=True, eq=False)
class StiffProblem:
    """An initial value problem from time 0, in float64.

    Args:
        name: what it is called.
        start: y(0), of shape (1, n).
        end: last time.
        forms: the right-hand side as problems, by their kind; all are one function.
        slope: ``(t, y) -> f`` for SciPy.
        jacobian: ``(t, y) -> ∂f/∂y`` for SciPy, of shape (n, n).
        relative_atol: absolute tolerance that suits the problem, in multiples of the relative one.
        scale: ``y -> sizes`` that errors are compared with.
        references: SciPy's methods with the relative tolerances that they get: the one that counts, and an
            independent one that checks it.
        source: where it comes from.
    """

    name: str
    start: Tensor
    end: float
    forms: Mapping[type, Problem]
    slope: Callable[[float, Array], Array]
    jacobian: Callable[[float, Array], Array]
    relative_atol: float
    scale: Callable[[Array], Array]
    references: tuple[tuple[str, float], tuple[str, float]]
    source: str


class Reference(NamedTuple):
    """The solution at the end, and how well it is known.

    Attributes:
        y: of shape (n,).
        gap: the error that the second method has if the first is exact.
    """

    y: Array
    gap: float


@cache
def reference(problem: StiffProblem) -> Reference:
    """Solve a problem by both of its reference methods, once in the life of a process.

    Raises:
        RuntimeError: SciPy gave up.

    Cost: seconds.
    """
    ends = []
    for method, rtol in problem.references:
        more = {} if method == "DOP853" else {"jac": problem.jacobian}
        found = solve_ivp(problem.slope, (0.0, problem.end), problem.start[0].numpy(), method=method, rtol=rtol,
                          atol=rtol * problem.relative_atol, t_eval=[problem.end], **more)
        if not found.success:
            raise RuntimeError(f"{method} found no reference solution of {problem.name}: {found.message}")
        ends.append(found.y[:, -1])
    return Reference(ends[0], deviation(problem, ends[1], ends[0]))


def error(problem: StiffProblem, y: Array) -> float:
    """Measure a solution at the end: ``RMS((y - y*) / scale(y*))`` over the components."""
    return deviation(problem, y, reference(problem).y)


def deviation(problem: StiffProblem, y: Array, exact: Array) -> float:
    """``RMS((y - exact) / scale(exact))``."""
    return float(np.sqrt(np.mean(((y - exact) / problem.scale(exact)) ** 2)))


def of_components(
    name: str, start: Components, end: float, slopes: Callable[..., Components], rows: Callable[..., Components],
    forms: Mapping[type, Problem], **more: Any,
) -> StiffProblem:
    """A problem whose components have formulas of their own; errors are relative to each.

    Args:
        name: what it is called.
        start: the components at time 0.
        end: last time.
        slopes: from the components to their slopes.
        rows: from the components to the rows of the Jacobian.
        forms: problems besides the plain one.
        **more: what else a :class:`StiffProblem` takes.
    """
    return StiffProblem(
        name, torch.tensor([start], dtype=torch.float64), end, {ODE: ODE(stacked(slopes)), **forms},
        lambda t, y: np.array(slopes(*y.tolist())), lambda t, y: np.array(rows(*y.tolist())), scale=np.abs, **more)


def stacked(slopes: Callable[..., Components]) -> Callable[[Tensor, Tensor], Tensor]:
    """The right-hand side of states of shape (samples, n) from a formula for their components."""
    return lambda y, t: torch.stack(slopes(*y.unbind(1)), 1)


def robertson(end: float = 1e11) -> StiffProblem:
    """Robertson's kinetics of three species, whose sum the right-hand side conserves; time over 16 decades.

    ``a' = -.04 a + 1e4 b c``, ``c' = 3e7 b²``, ``b' = -a' - c'``. There is no split: without the slow reaction the
    others have a whole line of equilibria, so that in steps of 1e10 it is as stiff as they are.
    """
    def slopes(a: Any, b: Any, c: Any) -> Components:
        first, third = 1e4 * b * c - 0.04 * a, 3e7 * b * b
        return first, -first - third, third

    def rows(a: Any, b: Any, c: Any) -> Components:
        return ((-0.04, 1e4 * c, 1e4 * b), (0.04, -1e4 * c - 6e7 * b, -1e4 * b), (0.0, 6e7 * b, 0.0))

    return of_components(
        "Robertson", (1.0, 0.0, 0.0), end, slopes, rows, {}, relative_atol=1e-6,
        references=(("Radau", 1e-12), ("LSODA", 1e-13)),
        source="Robertson 1966; Hairer & Wanner 1996, Solving ordinary differential equations II, IV.10 (ROBER)")


def hires(end: float = 321.8122) -> StiffProblem:
    """The high irradiance response of a plant: eight species, one fast non-linear reaction."""
    def slopes(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Components:
        fast = 280 * f * h
        return (-1.71 * a + 0.43 * b + 8.32 * c + 0.0007, 1.71 * a - 8.75 * b, -10.03 * c + 0.43 * d + 0.035 * e,
                8.32 * b + 1.71 * c - 1.12 * d, -1.745 * e + 0.43 * f + 0.43 * g,
                -fast + 0.69 * d + 1.71 * e - 0.43 * f + 0.69 * g, fast - 1.81 * g, 1.81 * g - fast)

    def rows(a: Any, b: Any, c: Any, d: Any, e: Any, f: Any, g: Any, h: Any) -> Components:
        df, dh = 280 * h, 280 * f
        return ((-1.71, 0.43, 8.32, 0, 0, 0, 0, 0), (1.71, -8.75, 0, 0, 0, 0, 0, 0),
                (0, 0, -10.03, 0.43, 0.035, 0, 0, 0), (0, 8.32, 1.71, -1.12, 0, 0, 0, 0),
                (0, 0, 0, 0, -1.745, 0.43, 0.43, 0), (0, 0, 0, 0.69, 1.71, -df - 0.43, 0.69, -dh),
                (0, 0, 0, 0, 0, df, -1.81, dh), (0, 0, 0, 0, 0, -df, 1.81, -dh))

    return of_components(
        "HIRES", (1.0, *[0.0] * 6, 0.0057), end, slopes, rows, {}, relative_atol=1e-4,
        references=(("DOP853", 1e-13), ("Radau", 1e-12)),
        source="Schäfer 1975; Hairer & Wanner 1996, Solving ordinary differential equations II, IV.10 (HIRES)")


def van_der_pol(end: float = 2000.0, damping: float = 1e3) -> StiffProblem:
    """Van der Pol's oscillator ``x'' = μ (1 - x²) x' - x``: slow drifts, and jumps of time 1/μ between them.

    Split by components: the slope of x is mild, that of x' stiff.

    Args:
        end: last time; a period lasts some 1.6 μ.
        damping: μ.
    """
    def slopes(x: Any, v: Any) -> Components:
        return v, damping * (1 - x * x) * v - x

    def rows(x: Any, v: Any) -> Components:
        return (0.0, 1.0), (-2 * damping * x * v - 1, damping * (1 - x * x))

    def mild(x: Any, v: Any) -> Components:
        return v, 0 * v

    def stiff(x: Any, v: Any) -> Components:
        return 0 * v, slopes(x, v)[1]

    return of_components(
        "Van der Pol", (2.0, 0.0), end, slopes, rows, {Split: Split(stacked(mild), stacked(stiff))}, relative_atol=1.0,
        references=(("Radau", 1e-12), ("LSODA", 1e-13)),
        source="Van der Pol 1926; Mazzia & Magherini 2008, Test set for initial value problem solvers (VDPOL)")


def kuramoto_sivashinsky(end: float = 30.0, n: int = 128) -> StiffProblem:
    """``u_t = -u_xx - u_xxxx - u u_x`` on [0, 32π] in values on a periodic grid, derivatives by Fourier's series.

    The highest mode has no first derivative, so that the others stay conjugate in pairs. A small
    disturbance grows e-fold in some ten units of time: at t = 30 errors are still those of the method, at
    Kassam and Trefethen's last t = 150 a million times what it made.

    Args:
        end: last time.
        n: grid points, an even number.
    """
    modes = np.arange(n // 2 + 1)
    k = modes / 16
    derivative = np.where(modes < n // 2, 1j * k, 0.0)
    symbol, on_host = k**2 - k**4, torch.from_numpy(derivative)
    linear = Fourier(torch.from_numpy((square := np.fft.fftfreq(n, 16 / n) ** 2) - square**2))
    x = 32 * math.pi * np.arange(n) / n

    def nonlinear(u: Tensor, t: Tensor) -> Tensor:
        return torch.fft.irfft(-0.5 * on_host * torch.fft.rfft(u * u), n)

    def slope(t: float, u: Array) -> Array:
        return np.fft.irfft(symbol * np.fft.rfft(u) - 0.5 * derivative * np.fft.rfft(u * u), n)

    def jacobian(t: float, u: Array) -> Array:
        columns = symbol * np.fft.rfft(np.eye(n)) - derivative * np.fft.rfft(np.diag(u))
        return np.fft.irfft(columns, n).T

    def stiff(u: Tensor, t: Tensor) -> Tensor:
        return linear.apply(u)

    semilinear = Semilinear(linear, nonlinear)
    return StiffProblem(
        "Kuramoto–Sivashinsky", torch.from_numpy(np.cos(x / 16) * (1 + np.sin(x / 16))).unsqueeze(0), end,
        {ODE: ODE(semilinear), Split: Split(nonlinear, stiff), Semilinear: semilinear}, slope, jacobian, 1.0,
        _whole, (("DOP853", 1e-13), ("LSODA", 1e-12)),
        "Kassam & Trefethen 2005, doi:10.1137/S1064827502410633")


def _whole(y: Array) -> Array:
    """One size for all components, that of the whole."""
    return np.sqrt(np.mean(y**2))


PROBLEMS: Mapping[str, Callable[[], StiffProblem]] = {
    "robertson": robertson, "hires": hires, "van-der-pol": van_der_pol, "kuramoto-sivashinsky": kuramoto_sivashinsky}
"""By name."""
