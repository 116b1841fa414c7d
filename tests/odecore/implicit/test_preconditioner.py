"""Preconditioned Newton–Krylov iterations: fewer products, the same solutions and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from odecore.driver.integrate import integrate
from odecore.driver.solve import solve
from odecore.implicit.additive import KENCARP4, AdditiveRungeKutta
from odecore.implicit.newton import Newton, NewtonKrylov
from odecore.implicit.root import root
from odecore.implicit.runge_kutta import KVAERNO3, KVAERNO5, RADAU3, ImplicitRungeKutta
from odecore.problem import Split
from odecore.stepper import Stepper

N = 64
SPEED = 0.02 * (2 * math.pi * torch.fft.rfftfreq(N, 1 / N, dtype=torch.float64)) ** 2
"""Of the diffusion of each mode on a ring of length 1."""
X = torch.arange(N, dtype=torch.float64) / N
Y0 = torch.stack([torch.sin(2 * math.pi * X), torch.exp(torch.cos(2 * math.pi * X)) - 1.5])


def of_modes(factor: Tensor, u: Tensor) -> Tensor:
    return torch.fft.irfft(factor * torch.fft.rfft(u), N)


def diffusion(u: Tensor) -> Tensor:
    return of_modes(-SPEED, u) - 3 * torch.cat((u[:, 1:], u[:, :1]), 1)  # not symmetric


def reaction(u: Tensor, k: Tensor) -> Tensor:
    return k * (u - u**3)


def resolvent(v: Tensor, reach: Tensor) -> Tensor:
    shift = torch.exp(2j * math.pi * torch.arange(N // 2 + 1) / N)
    return of_modes(1 / (1 + reach * (SPEED + 3 * shift)), v)


K = torch.tensor(4.0, dtype=torch.float64)
METHODS = {"Kværnø 3": KVAERNO3, "Kværnø 5": KVAERNO5, "KenCarp 4": KENCARP4}
every_method = pytest.mark.parametrize("name", METHODS)


def solver(*, preconditioned: bool) -> NewtonKrylov:
    return NewtonKrylov(preconditioner=resolvent if preconditioned else None)


def stepper(name: str, finder: Newton | NewtonKrylov) -> Stepper:
    kind = AdditiveRungeKutta if METHODS[name] is KENCARP4 else ImplicitRungeKutta
    return kind(METHODS[name].tableau, finder)


def problem(name: str, k: Tensor) -> Split:
    if METHODS[name] is KENCARP4:
        return Split(lambda u, t: 0.1 * torch.cos(t).unsqueeze(1) * u, lambda u, t: diffusion(u) + reaction(u, k))
    return lambda u, t: diffusion(u) + reaction(u, k)


@torch.no_grad()
@every_method
def test_it_halves_the_products_of_a_stiff_reaction_and_diffusion(name: str) -> None:
    plain, near = (solve(stepper(name, solver(preconditioned=p)), problem(name, K), Y0, 0.0, 0.1, rtol=1e-3, atol=1e-4)
                   for p in (False, True))
    torch.testing.assert_close(near.y, plain.y, rtol=0, atol=1e-3)
    assert near.krylov <= 0.55 * plain.krylov and near.nfe < plain.nfe


@every_method
def test_gradients_are_those_of_factorised_jacobians(name: str) -> None:
    gradients = []
    for finder in (solver(preconditioned=True), Newton()):
        y0, k = Y0.clone().requires_grad_(), K.clone().requires_grad_()
        found = integrate(stepper(name, finder), problem(name, k), y0, [0.0, 0.02, 0.06])
        gradients.append(torch.autograd.grad(found.y.square().sum(), (y0, k)))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@torch.no_grad()
def test_states_of_any_shape_are_preconditioned_as_vectors() -> None:
    def field(u: Tensor, t: Tensor) -> Tensor:
        return diffusion(u.reshape(len(u), N)).reshape(u.shape)

    method = stepper("Kværnø 3", solver(preconditioned=True))
    flat = integrate(method, field, Y0, [0.0, 0.1])
    shaped = integrate(method, field, Y0.reshape(2, 8, 8), [0.0, 0.1])
    assert torch.equal(shaped.y.reshape(2, N), flat.y) and shaped.krylov == flat.krylov


def test_it_is_refused_where_there_is_no_reach() -> None:
    with pytest.raises(ValueError, match="diagonally implicit"):
        root(solver(preconditioned=True), lambda z: z - 1, Y0)
    with pytest.raises(ValueError, match="diagonally implicit"):
        integrate(ImplicitRungeKutta(RADAU3.tableau, solver(preconditioned=True)), problem("Kværnø 3", K), Y0, [0, 1])
