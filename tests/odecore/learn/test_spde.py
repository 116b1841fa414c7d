from __future__ import annotations

import pytest
import torch
from torch import Tensor

from odecore.exponential import tableaus
from odecore.implicit.anderson import Anderson
from odecore.implicit.newton import NewtonKrylov
from odecore.learn.fit import adam, fit
from odecore.learn.mild import FourierKernel, Kernel, Semigroup
from odecore.learn.spde import Exponential, FixedPoint, NeuralSPDE, Picard, relative_l2
from odecore.spde import linear, smooth_functions, solve_forced, white_noise
from odecore.torus import resampled, values

INTERVALS = 8
TIGHT = FixedPoint(Anderson(tolerance=1e-12))


def model(kernel: type[Kernel], dim: int = 1, *, modes: int = 3, fields: int = 1, noises: int = 1) -> NeuralSPDE:
    """A float64 model with random weights everywhere, weak enough for fixed points to exist."""
    generator = torch.Generator().manual_seed(0)
    built = Semigroup(4, modes, dim=dim) if kernel is Semigroup else FourierKernel(4, modes, 5, dim=dim)
    network = NeuralSPDE(built, 4, fields=fields, noises=noises).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return network


def batch(dim: int = 1, points: int = 24, *, fields: int = 1, noises: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(2, fields, *[points] * dim, generator=generator, dtype=torch.float64),
            torch.randn(2, noises, INTERVALS, *[points] * dim, generator=generator, dtype=torch.float64))


def solved(network: NeuralSPDE, solver: object, data: tuple[Tensor, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of its mean square."""
    network.solver = solver  # type: ignore[assignment]
    network.zero_grad()
    output = network(*data)
    output.square().mean().backward()
    return output.detach(), [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("solver", [Picard(INTERVALS), TIGHT], ids=["picard", "fixed point"])
def test_all_solvers_of_a_semigroup_give_the_same_solution_and_gradient(solver: object, dim: int) -> None:
    network, data = model(Semigroup, dim), batch(dim)
    output, gradients = solved(network, Exponential(), data)
    other, others = solved(network, solver, data)
    assert torch.allclose(output, other, atol=1e-11)
    for one, two in zip(gradients, others, strict=True):
        assert torch.allclose(one, two, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("finder", [Anderson(tolerance=1e-12), NewtonKrylov(tolerance=1e-11)],
                         ids=lambda f: type(f).__name__)
def test_the_implicit_gradient_is_that_of_converged_picard_iterations(finder: object) -> None:
    network, data = model(FourierKernel), batch()
    output, gradients = solved(network, Picard(40), data)
    other, others = solved(network, FixedPoint(finder), data)  # type: ignore[arg-type]
    assert torch.allclose(output, other, atol=1e-10)
    for one, two in zip(gradients, others, strict=True):
        assert torch.allclose(one, two, rtol=1e-6, atol=1e-9)


def test_picard_iterations_are_exact_once_there_are_as_many_as_intervals() -> None:
    network, data = model(FourierKernel), batch()
    errors = []
    exact = solved(network, Picard(INTERVALS), data)[0]
    for iterations in (1, 2, 4):
        errors.append((solved(network, Picard(iterations), data)[0] - exact).abs().max().item())
    assert torch.allclose(solved(network, Picard(INTERVALS + 1), data)[0], exact, atol=1e-13)
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 0


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("kernel", [Semigroup, FourierKernel])
def test_the_solution_is_the_same_function_on_every_grid(kernel: type[Kernel], dim: int) -> None:
    network, (u0, noise) = model(kernel, dim), batch(dim, 15)
    with torch.no_grad():
        coarse = network(u0, noise)
        fine = network(resampled(u0, 60, dim), resampled(noise, 60, dim))
        mixed = network(resampled(u0, 31, dim), resampled(noise, 40, dim), points=15)
    index = (..., *[slice(None, None, 4)] * dim)
    assert torch.allclose(fine[index], coarse, atol=1e-12)
    assert torch.allclose(mixed, coarse, atol=1e-12)


@pytest.mark.parametrize("kernel", [Semigroup, FourierKernel])
def test_the_solution_does_not_see_noise_of_later_times(kernel: type[Kernel]) -> None:
    network, (u0, noise) = model(kernel), batch()
    with torch.no_grad():
        later = noise.clone()
        later[:, :, 5:] += 1.0
        one, other = network(u0, noise), network(u0, later)
    assert torch.allclose(one[:, :, :6], other[:, :, :6], atol=1e-12)
    assert (one[:, :, 6:] - other[:, :, 6:]).abs().max() > 1e-3


def test_several_fields_and_noises_go_through() -> None:
    network = model(Semigroup, 2, fields=2, noises=3)
    assert network(*batch(2, 14, fields=2, noises=3), points=9).shape == (2, 2, INTERVALS + 1, 9, 9)


def linear_model(damping: float, amplitude: float) -> NeuralSPDE:
    """The linear equation itself, written as a neural SPDE."""
    network = NeuralSPDE(Semigroup(1, 5), 1).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.kernel.mix[..., 0] = 1.0
        network.kernel.log_decay.copy_((-linear(5, damping=damping).symbol).log())
        network.lift.weight.fill_(1.0)
        network.readout.skip.weight.fill_(1.0)
        network.interaction.layer.bias[1] = torch.atanh(torch.tensor(amplitude, dtype=torch.float64))
    return network


@pytest.mark.parametrize("solver", [Picard(1), TIGHT, Exponential(), Exponential(tableaus.KROGSTAD, 2)])
def test_the_linear_equation_is_one_of_the_models_and_solved_exactly(solver: object) -> None:
    equation = linear(5, damping=1.5, amplitude=0.4)
    start, noise = smooth_functions(range(2), 5), white_noise(range(2), 5, intervals=INTERVALS)
    network = linear_model(1.5, 0.4)
    network.solver = solver  # type: ignore[assignment]
    exact = values(solve_forced(equation, start, noise, 1.0, tableau=tableaus.ETD_RK1), 32, 1)
    with torch.no_grad():
        found = network(values(start, 32, 1).unsqueeze(1), values(noise, 32, 1).unsqueeze(1))
    assert torch.allclose(found[:, 0], exact, atol=1e-12)


def test_a_semigroup_learns_the_symbol_of_the_linear_equation() -> None:
    equation = linear(2, amplitude=0.5)
    start, noise = smooth_functions(range(8), 2), white_noise(range(8), 2, intervals=INTERVALS)
    wanted = values(solve_forced(equation, start, noise, 1.0), 12, 1).unsqueeze(1)
    data = values(start, 12, 1).unsqueeze(1), values(noise, 12, 1).unsqueeze(1)
    network = linear_model(1.0, 0.5)
    with torch.no_grad():
        network.kernel.log_decay.add_(0.2)
    for parameter in network.parameters():
        parameter.requires_grad_(parameter is network.kernel.log_decay)
    fit(network, lambda net, rows: relative_l2(net(*rows), wanted), lambda step: data, steps=50, optimizer=adam(0.03))
    assert torch.allclose(network.kernel.symbol.real[0, :2], equation.symbol[:2], rtol=0.02)


def test_the_relative_error_is_a_mean_over_samples() -> None:
    wanted = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert relative_l2(wanted + torch.tensor([[0.0, 5.0], [0.0, 1.0]]), wanted).item() == pytest.approx(0.75)


def test_an_exponential_integrator_refuses_a_kernel_without_symbol() -> None:
    network = model(FourierKernel)
    network.solver = Exponential()
    with pytest.raises(ValueError, match="FourierKernel: an exponential integrator needs a Semigroup"):
        network(*batch())


@pytest.mark.parametrize(("call", "name"), [
    (lambda: Semigroup(0, 3), "channels"), (lambda: Semigroup(2, 3, diffusivity=(0.0, 1.0)), "diffusivity"),
    (lambda: FourierKernel(2, 3, 0), "modes_time"), (lambda: Picard(0), "iterations"),
    (lambda: NeuralSPDE(Semigroup(2, 3), 2, width=0), "width"),
    (lambda: model(Semigroup)(torch.zeros(2, 2, 8).double(), batch()[1]), "u0"),
    (lambda: model(Semigroup)(batch()[0], torch.zeros(2, 1, 8).double()), "noise")])
def test_a_wrong_argument_is_named(call: object, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call()  # type: ignore[operator]
