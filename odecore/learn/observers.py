"""State observers: the hidden state of a plant from what is measured, by a stable linear filter and a learned map."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odecore.driver.integrate import integrate
from odecore.explicit.pairs import without_error
from odecore.explicit.tableaus import RK4
from odecore.learn.fields import MLP
from odecore.learn.filters import Filter, Pairs, Plant
from odecore.learn.fit import Loss

_FOUR_STAGES = without_error(RK4)


class Whitening(nn.Module):
    """A change of coordinates in which given data have mean 0 and covariance 1, but for their weakest directions.

    Args:
        data: rows.
        floor: least standard deviation, relative to the largest, that is brought to 1; weaker directions are
            treated as that strong, since what is off the data there would be blown up: T(x) lies on a surface.

    Raises:
        ValueError: fewer than two rows, or data that do not vary.
    """

    def __init__(self, data: Float[Tensor, "rows size"], floor: float = 1e-2) -> None:
        super().__init__()
        if len(data) < 2 or not float(data.std()) > 0:
            raise ValueError(f"data of shape {tuple(data.shape)} do not vary: give at least two different rows")
        mean = data.double().mean(0)
        _, values, basis = torch.linalg.svd(data.double() - mean, full_matrices=False)
        deviations = values.clamp(min=floor * float(values.max())) / math.sqrt(len(data) - 1)
        self.register_buffer("mean", mean)
        self.register_buffer("whiten", basis / deviations[:, None])
        self.register_buffer("colour", basis.T * deviations)
        self.mean: Tensor
        self.whiten: Tensor
        self.colour: Tensor

    def differences(self, v: Tensor) -> Tensor:
        """Whitened differences."""
        return v @ self.whiten.to(v).T

    def forward(self, v: Tensor) -> Tensor:
        """Whitened values."""
        return self.differences(v - self.mean.to(v))

    def inverse(self, v: Tensor) -> Tensor:
        """Values from whitened ones."""
        return self.mean.to(v) + v @ self.colour.to(v).T


class KKL(nn.Module):
    """A Kazantzis–Kravaris–Luenberger observer: ``dz/dt = D z + F y``, ``x̂ = T*(z)``.

    T solves ``∂T/∂x f = D T + F h``, so that z tends to T(x) whatever it starts from, and T* inverts it. Both are
    networks between whitened coordinates.

    Args:
        filter: D and F.
        pairs: samples of (x, T(x)), for the coordinates; training takes the same or others.
        hidden: widths of the layers of each network.
        seed: of the first weights.
        floor: of the whitening of z; a small one resolves more, a large one is steadier under noise.
        dtype: of the weights; states keep their own.

    Source: Miao & Gatsis 2023, arXiv:2212.00866 (its abstract); Andrieu & Praly 2006, doi:10.1137/040617066.
    """

    def __init__(
        self, filter: Filter, pairs: Pairs, *, hidden: Sequence[int] = (50, 50, 50), seed: int = 0,
        floor: float = 1e-2, dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.filter = filter
        self.of_x, self.of_z = Whitening(pairs.x), Whitening(pairs.z, floor)
        n, m = pairs.x.shape[1], pairs.z.shape[1]
        self.to_z = MLP((n, *hidden, m), activation=nn.functional.silu, seed=seed, dtype=dtype)
        self.to_x = MLP((m, *hidden, n), activation=nn.functional.silu, seed=seed + 1, dtype=dtype)

    def encode(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... m"]:
        """T(x)."""
        return self.of_z.inverse(_through(self.to_z, self.of_x(x)))

    def decode(self, z: Float[Tensor, "... m"]) -> Float[Tensor, "... n"]:
        """T*(z)."""
        return self.of_x.inverse(_through(self.to_x, self.of_z(z)))

    @torch.no_grad()
    def estimate(
        self, outputs: Float[Tensor, "runs times q"], step: float, *, start: Float[Tensor, "runs n"] | None = None
    ) -> Float[Tensor, "runs times n"]:
        """x̂ along measured outputs, from z = 0, or from T of a guess of the state.

        Cost: one matrix–vector product and one evaluation of T* a measurement.
        """
        z = self.filter.states(outputs, step, start=None if start is None else self.encode(start))
        return self.decode(z)

    def residual(self, plant: Plant, x: Float[Tensor, "samples n"]) -> Float[Tensor, "samples m"]:
        """``T - D⁻¹ (∂T/∂x f - F h)``, whitened: zero for the map that z tends to, in units of z."""
        f = plant.field(x, torch.zeros(len(x), dtype=torch.float64, device=x.device))
        z, dz = torch.func.jvp(self.encode, (x,), (f,))[:2]
        driven = dz - plant.output(x) @ self.filter.F.to(z).T
        return self.of_z.differences(z - driven @ torch.linalg.inv(self.filter.D).to(z).T)

    def noise(self, z: Float[Tensor, "samples m"], step: float) -> float:
        """Predict the root mean square of x̂'s error by white noise of deviation 1, to first order: ``√⟨tr J P Jᵀ⟩``."""
        j = torch.func.vmap(torch.func.jacrev(self.decode))(z).detach()
        return float((j @ self.filter.noise(step).to(j) @ j.mT).diagonal(dim1=1, dim2=2).sum(1).mean().sqrt())


def regression(module: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Learn T and T* from pairs, a loss for `fit` of batches (x, z); mean squares in whitened coordinates."""
    assert isinstance(module, KKL)
    x, z = module.of_x(batch[0]), module.of_z(batch[1])
    return {"encoder": (_through(module.to_z, x) - z).square().mean(),
            "decoder": (_through(module.to_x, z) - x).square().mean()}


def autoencoder(plant: Plant, *, weight: float = 1.0) -> Loss:
    """Learn T from its equation and T* as its inverse, a loss for `fit` of batches (x,); no z is needed.

    ``⟨|T*(T(x)) - x|²⟩ + weight ⟨|T - D⁻¹ (∂T/∂x f - F h)|²⟩`` in whitened coordinates.

    Cost: a derivative of T along f more than `regression`.
    """
    def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        assert isinstance(module, KKL)
        x = batch[0]
        again = module.of_x(module.decode(module.encode(x))) - module.of_x(x)
        return {"reconstruction": again.square().mean(),
                "equation": weight * module.residual(plant, x).square().mean()}

    return loss


class Luenberger(nn.Module):
    """An observer of a partly known plant: ``dx̂/dt = f0(x̂, t) + g(x̂) + L (y(t) - h(x̂))``, with g and L learned.

    Args:
        known: f0.
        unknown: g, a network on the last axis; None where f0 is all.
        output: h.
        gain: L of shape (n, q), where training starts.

    Raises:
        ValueError: a gain that is no matrix.

    Source: Miao & Gatsis 2023, arXiv:2212.00866 (its abstract).
    """

    def __init__(
        self, known: Callable[[Tensor, Tensor], Tensor], unknown: nn.Module | None, output: Callable[[Tensor], Tensor],
        gain: Float[Tensor, "n q"],
    ) -> None:
        if gain.ndim != 2:
            raise ValueError(f"gain has shape {tuple(gain.shape)}: give (states, outputs)")
        super().__init__()
        self.known, self.unknown, self.output = known, unknown, output
        self.gain = nn.Parameter(gain.clone())

    def model(self, x: Tensor, t: Tensor) -> Tensor:
        """``f0 + g``, the plant as the observer knows it."""
        value = self.known(x, t)
        return value if self.unknown is None else value + _through(self.unknown, x)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The right-hand side with the measurement y at t."""
        return self.model(x, t) + (y - self.output(x)) @ self.gain.to(x).T

    def estimate(
        self, outputs: Float[Tensor, "runs times q"], step: float, *, start: Float[Tensor, "runs n"],
    ) -> Float[Tensor, "runs times n"]:
        """x̂ along measured outputs, linear between their times, from a guess of the state; differentiable.

        Cost: four evaluations of the model a measurement.
        """
        times = [step * k for k in range(outputs.shape[1])]

        def field(x: Tensor, t: Tensor, values: Tensor) -> Tensor:
            return self(x, t, between(values, t / step))

        found = integrate(_FOUR_STAGES, field, start, times, args=(outputs,), trajectory=True).ys
        assert found is not None
        return found


def following(module: nn.Module, batch: tuple[Tensor, Tensor, Tensor], *, step: float) -> Tensor:
    """Mean square of ``x̂ - x`` along runs, a loss for `fit` of batches (x, y, guesses of the first state)."""
    assert isinstance(module, Luenberger)
    x, y, guesses = batch
    return (module.estimate(y, step, start=guesses) - x).square().mean()


def between(values: Float[Tensor, "samples times q"], at: Float[Tensor, " samples"]) -> Float[Tensor, "samples q"]:
    """Values at real places between two times of their own, linearly; the ends go on beyond."""
    place = at.to(values.device).floor().clamp(0, values.shape[1] - 2).long()
    rows = torch.arange(len(values), device=values.device)
    left, right = values[rows, place], values[rows, place + 1]
    return torch.lerp(left, right, (at.to(values) - place.to(values)).unsqueeze(1))


def _through(network: nn.Module, v: Tensor) -> Tensor:
    """A network in the dtype of its weights, its value in that of v."""
    weight = next(network.parameters())
    return network(v.to(weight.dtype)).to(v.dtype)
