"""Semilinear SPDEs on the unit torus, solved by plans with a weight for each Fourier mode.

``du = (L u + N(u)) dt + Q dW`` with a diagonal L. Noise is a function of its seed, the wave number and the interval
of time alone: a coarser grid sees the projection of the noise that a finer grid sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from odecore.exponential.tableaus import KROGSTAD, ExponentialTableau
from odecore.phi import phi
from odecore.plan import Plan, Row, Weight, execute
from odecore.schemes import exponential_multistep, exponential_runge_kutta, ode
from odecore.stochastic.brownian import philox
from odecore.torus import coefficients, laplacian, mode_shape, values, wave_numbers

_WORD = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class SPDE:
    """``dû_k = (L_k û_k + N(û)_k) dt + q_k dW_k`` for the coefficients of :mod:`odecore.torus`.

    Args:
        name: what it is called.
        dim: dimension of space.
        modes: K: wave numbers up to K along each axis are kept.
        symbol: L, of the shape of the coefficients.
        nonlinear: N.
        amplitude: q, a number or one for each mode.
    """

    name: str
    dim: int
    modes: int
    symbol: Float[Tensor, "..."]
    nonlinear: Callable[[Tensor], Tensor]
    amplitude: float | Tensor = 1.0

    def on_grid(self, solution: Complex[Tensor, "..."], points: int) -> Float[Tensor, "..."]:
        """Sample solutions at n points along each axis."""
        return values(solution, points, self.dim)


def linear(modes: int, *, dim: int = 1, damping: float = 1.0, amplitude: float = 1.0) -> SPDE:
    """``u_t = Δu - damping u + amplitude ξ``, whose modes are independent Ornstein–Uhlenbeck processes."""
    return SPDE("linear", dim, modes, laplacian(modes, dim) - damping, torch.zeros_like, amplitude)


def ginzburg_landau(modes: int, *, growth: float = 3.0, amplitude: float = 0.1) -> SPDE:
    """``u_t = u_xx + growth u - u³ + amplitude ξ``, free of aliases; with growth below 0 the Φ⁴₁ equation.

    Source: Salvi, Lemercier & Gerasimovics 2021, arXiv:2110.10249; the amplitude is that of the authors' data.
    """
    points = 4 * (modes + 1)

    def cube(solution: Tensor) -> Tensor:
        return -coefficients(values(solution, points, 1).pow(3), modes, 1)

    return SPDE("Ginzburg–Landau", 1, modes, laplacian(modes, 1) + growth, cube, amplitude)


def phi4(modes: int, *, mass: float = 1.0, amplitude: float = 1.0) -> SPDE:
    """The dynamic Φ⁴₁ equation ``u_t = u_xx - mass u - u³ + amplitude ξ``."""
    return replace(ginzburg_landau(modes, growth=-mass, amplitude=amplitude), name="Φ⁴₁")


def navier_stokes(modes: int, *, viscosity: float = 1e-4, amplitude: float = 0.05, decay: float = 2.0) -> SPDE:
    """``ω_t + v·∇ω = ν Δω + f + Q ξ`` for the vorticity of a plane periodic flow.

    The velocity v = (ψ_y, -ψ_x) follows from -Δψ = ω; f = (sin 2π(x + y) + cos 2π(x + y))/10 and
    ``q_k = amplitude (1 + |k|²)^{-decay/2}``, none on the mean.

    Source: Li et al. 2020, arXiv:2010.08895, for the steady force; Salvi et al. 2021, arXiv:2110.10249.
    """
    points = 3 * modes + 3
    first, second = (2 * math.pi * k for k in wave_numbers(modes, 2))
    square = first.square() + second.square()
    inverse = torch.where(square > 0, 1 / square.clamp(min=1.0), 0.0)
    phase = torch.arange(points).double().unsqueeze(1) + torch.arange(points).double()
    phase = 2 * math.pi / points * phase
    force = coefficients(0.1 * (torch.sin(phase) + torch.cos(phase)), modes, 2)
    to_fields = torch.stack((1j * second * inverse, -1j * first * inverse, 1j * first, 1j * second))

    def advected(vorticity: Tensor) -> Tensor:
        v_x, v_y, w_x, w_y = values(to_fields.to(vorticity.dtype) * vorticity.unsqueeze(-3), points, 2).unbind(-3)
        return force.to(vorticity.dtype) - coefficients(v_x * w_x + v_y * w_y, modes, 2)

    q = amplitude * (1 + square / (4 * math.pi**2)).pow(-decay / 2)
    return SPDE("Navier–Stokes", 2, modes, -viscosity * square, advected, torch.where(square > 0, q, 0.0))


def white_noise(
    seeds: Sequence[int], modes: int, *, dim: int = 1, intervals: int = 50, duration: float = 1.0, stream: int = 0
) -> Complex[Tensor, "samples intervals ..."]:
    """Space-time white noise, averaged over intervals of time: ``ξ̂_k = (W_k(t_{j+1}) - W_k(t_j))/Δt``.

    A coefficient depends on its seed, wave number, interval and stream alone.

    Args:
        seeds: one for each sample, 0 to 2^32 - 1.
        modes: K.
        dim: dimension of space, 1 to 2.
        intervals: how many.
        duration: of all intervals together.
        stream: tells apart several noises of the same seeds, 0 to 2^32 - 1.

    Returns:
        complex128; ``E|ξ̂_k|² = 1/Δt`` and ξ̂_{-k} the conjugate of ξ̂_k.

    Raises:
        ValueError: a number out of range.
    """
    if dim not in (1, 2):
        raise ValueError(f"dim={dim}: give 1 or 2")
    if intervals < 1 or not duration > 0:
        raise ValueError(f"intervals={intervals}, duration={duration}: give at least one interval of positive length")
    normal = _complex_normals(seeds, modes, dim, intervals, stream)
    return normal * math.sqrt(intervals / duration)


def smooth_functions(
    seeds: Sequence[int], modes: int, *, dim: int = 1, decay: float = 2.0, stream: int = 1
) -> Complex[Tensor, "samples ..."]:
    """Gaussian random functions with ``E|c_k|² = (1 + |k|²)^{-decay}``, for initial states; independent of the grid."""
    square = sum((k.square() for k in wave_numbers(modes, dim)), start=torch.zeros(()).double())
    return _complex_normals(seeds, modes, dim, 1, stream)[:, 0] * (1 + square).pow(-decay / 2)


def step_plan(symbol: Tensor, length: float, tableau: ExponentialTableau = KROGSTAD, substeps: int = 1) -> Plan:
    """The plan of one interval of time in which the force is constant; exponential integrators solve that exactly.

    Args:
        symbol: L of each mode, broadcasting over the state.
        length: of the interval.
        tableau: the exponential Runge–Kutta method.
        substeps: steps within the interval.
    """
    times = [length * i / substeps for i in range(substeps + 1)]
    rows = exponential_runge_kutta(ode(symbol), times, [tableau] * substeps)
    return Plan(rows, 0.0, about={"scheme": tableau.source, "substeps": substeps})


def driven(
    plan: Plan, field: Callable[[Tensor, Tensor], Tensor], start: Tensor, forces: Sequence[Tensor]
) -> list[Tensor]:
    """States at the ends of intervals in each of which one force acts, the first being the start.

    Args:
        plan: of one interval.
        field: ``(state, force) -> N``.
        start: first state.
        forces: one for each interval.

    Cost: ``plan.nfe`` evaluations an interval.
    """
    states = [start]
    for force in forces:
        states.append(execute(plan, partial(_forced, field, force), states[-1]))
    return states


def _forced(field: Callable[[Tensor, Tensor], Tensor], force: Tensor, state: Tensor, t: Weight) -> Tensor:
    return field(state, force)


def solve_forced(
    spde: SPDE, start: Complex[Tensor, "samples ..."], noise: Complex[Tensor, "samples intervals ..."], duration: float,
    *, tableau: ExponentialTableau = KROGSTAD, substeps: int = 1
) -> Complex[Tensor, "samples times ..."]:
    """Solve an SPDE for noise that is constant on each interval, its average there (Wong and Zakai's solution).

    Args:
        spde: the equation.
        start: coefficients at time 0.
        noise: as :func:`white_noise` returns it, with the modes of the equation.
        duration: of all intervals.
        tableau: the exponential Runge–Kutta method.
        substeps: steps in each interval.

    Returns:
        Coefficients at the ends of the intervals, the first at time 0.

    Raises:
        ValueError: shapes that do not fit.

    Cost: ``stages · substeps`` evaluations of N an interval.
    """
    wanted = mode_shape(spde.modes, spde.dim)
    for name, given, leading in (("start", start, 1), ("noise", noise, 2)):
        if tuple(given.shape[leading:]) != wanted or given.ndim != leading + spde.dim:
            raise ValueError(f"{name} has shape {tuple(given.shape)}: after {leading} axes give those of the modes, "
                             f"{wanted}")
    plan = step_plan(spde.symbol, duration / noise.shape[1], tableau, substeps)
    forces = (spde.amplitude * noise).to(start.dtype).unbind(1)
    return torch.stack(driven(plan, lambda state, force: spde.nonlinear(state) + force, start, forces), 1)


def stochastic_plan(spde: SPDE, times: Sequence[float]) -> Plan:
    """Exponential Euler steps with the exact law of the noise in each: exact for linear equations at any step.

    With ``ε`` complex standard normal, ``û' = e^{Lh} û + h φ_1(Lh) N(û) + q sqrt(h φ_1(2Lh)) ε``; draw ε by
    :func:`complex_noise`.

    Args:
        spde: the equation.
        times: the grid.

    Cost: one evaluation of N a step.

    Source: Jentzen & Kloeden 2009, doi:10.1098/rspa.2008.0325.
    """
    rows = exponential_multistep(ode(spde.symbol), times, [1] * (len(times) - 1))
    return Plan(tuple(replace(row, noise=_spread(spde, row)) for row in rows), times[0])


def complex_noise(seeds: Sequence[int], spde: SPDE, steps: int) -> Callable[[], Complex[Tensor, "samples ..."]]:
    """Draw the noise of a run of :func:`stochastic_plan`, one step at each call."""
    drawn = iter(_complex_normals(seeds, spde.modes, spde.dim, steps, 2).unbind(1))
    return lambda: next(drawn)


def _spread(spde: SPDE, row: Row) -> Tensor:
    h = float(row.t_next) - float(row.t)
    return spde.amplitude * (h * phi(1, 2 * h * spde.symbol)).sqrt()


def _complex_normals(seeds: Sequence[int], modes: int, dim: int, intervals: int, stream: int) -> Tensor:
    """Complex standard normal numbers, ``E|c|² = 1``, of real functions: c_{-k} is the conjugate of c_k."""
    if not seeds or not all(0 <= seed <= _WORD for seed in seeds):
        raise ValueError(f"seeds={list(seeds)[:5]}…: give one or more, each from 0 to 2^32 - 1")
    if not 0 <= stream <= _WORD:
        raise ValueError(f"stream={stream}: give 0 to 2^32 - 1")
    numbers = [k.long() for k in wave_numbers(modes, dim)]
    first = numbers[0] if dim == 2 else torch.zeros_like(numbers[0])
    last = numbers[-1]
    mirrored = (last == 0) & (first < 0)
    first = torch.where(mirrored, -first, first)
    shape = (len(seeds), intervals, *[1] * dim)
    index = torch.arange(intervals).reshape(1, intervals, *[1] * dim)
    key = torch.tensor(list(seeds), dtype=torch.int64).reshape(-1, 1, *[1] * dim)
    counter = (last.expand(*shape[:2], *last.shape), first & _WORD, index, torch.tensor(stream))
    words = philox(counter, (key, torch.zeros_like(key)))
    uniform = [(word.double() + 0.5) / (_WORD + 1.0) for word in words[:2]]
    normal = torch.polar((-uniform[0].log()).sqrt(), 2 * math.pi * uniform[1])
    normal = torch.where(mirrored, normal.conj(), normal)
    # The mean is real, and its variance is 1 all the same.
    return torch.where((last == 0) & (first == 0), (math.sqrt(2) * normal.real).to(normal.dtype), normal)
