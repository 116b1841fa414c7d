"""What a known model leaves out, learned from data: ``dx/dt = f0(x) + m(x)``, its discrete twin, and memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RandomFeatures(nn.Module):
    """A function linear in what is learned: ``m(x) = C tanh(W (x - μ) / s + b)`` with random W and b.

    W is uniform in ``±spread / √inputs``, b in ``±spread``; C starts as zero, so that a model is corrected by nothing.

    Args:
        inputs: size of x.
        outputs: size of m.
        features: rows of W.
        centre: μ, of the data.
        scale: s, of the data.
        spread: of the random numbers: small ones give a nearly linear function, large ones a rough one.
        seed: of the random numbers.
        dtype: of everything.

    Raises:
        ValueError: a size below 1, or a spread that is not positive.

    Source: Rahimi & Recht 2008, Weighted sums of random kitchen sinks; as model error Levine & Stuart 2021,
        arXiv:2107.06658.
    """

    def __init__(
        self, inputs: int, outputs: int, features: int, *, centre: Float[Tensor, " inputs"] | float = 0.0,
        scale: Float[Tensor, " inputs"] | float = 1.0, spread: float = 1.0, seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        if min(inputs, outputs, features) < 1 or not 0 < spread < math.inf:
            raise ValueError(f"inputs={inputs}, outputs={outputs}, features={features}, spread={spread}: give sizes of "
                             "at least 1 and a positive spread")
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        weight, bias = (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1
                        for shape in ((features, inputs), (features,)))
        self.register_buffer("centre", torch.as_tensor(centre, dtype=dtype).expand(inputs).clone())
        self.register_buffer("scale", torch.as_tensor(scale, dtype=dtype).expand(inputs).clone())
        self.register_buffer("weight", (spread / math.sqrt(inputs) * weight).to(dtype))
        self.register_buffer("bias", (spread * bias).to(dtype))
        self.coefficients = nn.Parameter(torch.zeros(outputs, features, dtype=dtype))
        self.centre: Tensor
        self.scale: Tensor
        self.weight: Tensor
        self.bias: Tensor

    def features(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... features"]:
        """``tanh(W (x - μ) / s + b)``."""
        return torch.tanh(nn.functional.linear((x - self.centre) / self.scale, self.weight, self.bias))

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """The value m(x)."""
        return nn.functional.linear(self.features(x), self.coefficients)


class Regression(NamedTuple):
    """What ridge regression needs of the data, whatever the ridge: means of products, which add up over batches.

    ``C = ⟨y φᵀ⟩ (⟨φ φᵀ⟩ + ridge I)⁻¹`` minimises ``⟨|y - C φ|²⟩ + ridge |C|²``.

    Attributes:
        basis: eigenvectors of ⟨φφᵀ⟩.
        values: its eigenvalues.
        cross: ⟨y φᵀ⟩ in that basis.
    """

    basis: Tensor
    values: Tensor
    cross: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls, features: Float[Tensor, "rows features"], targets: Float[Tensor, "rows outputs"],
        weights: Float[Tensor, " rows"] | None = None,
    ) -> Regression:
        """Collect the products of rows of features and targets, weighted if asked for.

        Raises:
            ValueError: rows that do not fit, or values that are not finite.
        """
        if len(features) != len(targets) or not len(features):
            raise ValueError(f"features have {len(features)} rows and targets {len(targets)}: give the same, at least "
                             "one")
        if not (torch.isfinite(features).all() and torch.isfinite(targets).all()):
            raise ValueError("features or targets hold values that are not finite: leave their rows out")
        shares = torch.full_like(features[:, 0], 1.0) if weights is None else weights
        scaled = features * (shares / shares.sum()).unsqueeze(1)
        values, basis = torch.linalg.eigh(scaled.T @ features)
        return cls(basis, values.clamp_min(0.0), targets.T @ scaled @ basis)

    def coefficients(self, ridge: float) -> Float[Tensor, "outputs features"]:
        """The minimiser for one ridge.

        Raises:
            ValueError: a ridge that is not positive.
        """
        if not 0 < ridge < math.inf:
            raise ValueError(f"ridge={ridge}: give a positive number")
        return self.cross / (self.values + ridge) @ self.basis.T


@torch.no_grad()
def fit_ridge(
    model: RandomFeatures, inputs: Float[Tensor, "rows inputs"], targets: Float[Tensor, "rows outputs"], *,
    ridge: float,
) -> RandomFeatures:
    """Set C to the minimiser of ``⟨|y - C φ(x)|²⟩ + ridge |C|²``, in closed form; the model is changed in place.

    Raises:
        ValueError: rows that do not fit, values that are not finite, or a ridge that is not positive.

    Cost: one eigendecomposition of (features, features).
    """
    model.coefficients.copy_(Regression.of(model.features(inputs), targets).coefficients(ridge))
    return model


class Corrected(nn.Module):
    """A known model and its learned error, ``f0(x) + m(x)``: a field, or the map of one step of a discrete model.

    Args:
        known: f0 as ``(y, t, *args) -> value``; None learns everything from data.
        correction: m, on the last axis of the state.
    """

    def __init__(self, known: Callable[..., Tensor] | None, correction: nn.Module) -> None:
        super().__init__()
        self.known = known
        self.correction = correction

    def forward(self, y: Tensor, t: Tensor, *args: Tensor) -> Tensor:
        """The corrected right-hand side, or the next state."""
        error = self.correction(y)
        return error if self.known is None else self.known(y, t, *args) + error


class Local(nn.Module):
    """The same function at every place of a ring: ``m_k(x) = g(x_{k-reach}, …, x_{k+reach})``.

    Args:
        network: g, of 2 reach + 1 numbers, with one value.
        reach: neighbours on each side.

    Raises:
        ValueError: a negative reach.
    """

    def __init__(self, network: nn.Module, *, reach: int = 0) -> None:
        if reach < 0:
            raise ValueError(f"reach={reach}: give 0 or more neighbours on each side")
        super().__init__()
        self.network = network
        self.reach = reach

    def neighbourhoods(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... n inputs"]:
        """What g sees at every place."""
        return torch.stack([x.roll(-k, -1) for k in range(-self.reach, self.reach + 1)], -1)

    def forward(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... n"]:
        """The values m_k(x)."""
        return self.network(self.neighbourhoods(x)).squeeze(-1)


class Remembering(nn.Module):
    """A corrected model whose error depends on the past: ``dx/dt = f0(x) + m(x, r)``, ``dr/dt = f2(x, r)``.

    The state is (x, r) on the last axis.

    Args:
        known: f0 as ``(x, t, *args) -> value``.
        correction: m, of (x, r).
        memory: f2, of (x, r).
        observed: size of x.

    Source: Levine & Stuart 2021, arXiv:2107.06658; the full text was not at hand, this is our reading.
    """

    def __init__(
        self, known: Callable[..., Tensor], correction: nn.Module, memory: nn.Module, *, observed: int
    ) -> None:
        super().__init__()
        self.known = known
        self.correction = correction
        self.memory = memory
        self.observed = observed

    def forward(self, y: Tensor, t: Tensor, *args: Tensor) -> Tensor:
        """The right-hand side of (x, r)."""
        return torch.cat((self.known(y[..., :self.observed], t, *args) + self.correction(y), self.memory(y)), -1)


class Reservoir(nn.Module):
    """A memory that needs no training: ``dr/dt = rate (tanh(A r + B (x - μ) / s + b) - r)`` with random A, B, b.

    With A a contraction, r forgets where it started and becomes a function of the past of x, so that m may be found
    by ridge regression once r has been driven by data.

    Args:
        observed: size of x.
        size: of r.
        rates: one for each unit, the inverse of how long it remembers.
        contraction: largest singular value of A, below 1.
        centre: μ, of the data.
        scale: s, of the data.
        spread: of B and b, uniform.
        seed: of the random numbers.

    Raises:
        ValueError: numbers out of range.

    Source: Jaeger & Haas 2004, doi:10.1126/science.1091277.
    """

    def __init__(
        self, observed: int, size: int, *, rates: tuple[float, float], contraction: float = 0.5,
        centre: Tensor | float = 0.0, scale: Tensor | float = 1.0, spread: float = 1.0, seed: int = 0,
    ) -> None:
        if not (0 < rates[0] <= rates[1] and 0 <= contraction < 1 and size > 0 and observed > 0):
            raise ValueError(f"rates={rates}, contraction={contraction}, size={size}: give rising positive rates, a "
                             "contraction from 0 to below 1, and a size of at least 1")
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        uniform = [2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1
                   for shape in ((size, size), (size, observed), (size,))]
        self.register_buffer("inner", contraction / torch.linalg.matrix_norm(uniform[0], 2) * uniform[0])
        self.register_buffer("outer", spread / math.sqrt(observed) * uniform[1])
        self.register_buffer("bias", spread * uniform[2])
        self.register_buffer("rates", torch.logspace(math.log10(rates[0]), math.log10(rates[1]), size,
                                                     dtype=torch.float64))
        self.register_buffer("centre", torch.as_tensor(centre, dtype=torch.float64))
        self.register_buffer("scale", torch.as_tensor(scale, dtype=torch.float64))
        self.observed = observed
        self.inner: Tensor
        self.outer: Tensor
        self.bias: Tensor
        self.rates: Tensor
        self.centre: Tensor
        self.scale: Tensor

    def forward(self, y: Float[Tensor, "... state"]) -> Float[Tensor, "... size"]:
        """The derivative of r at (x, r)."""
        x, r = y[..., :self.observed], y[..., self.observed:]
        drive = nn.functional.linear((x - self.centre) / self.scale, self.outer, self.bias)
        return self.rates * (torch.tanh(nn.functional.linear(r, self.inner) + drive) - r)


_CENTRAL = (-1 / 60, 3 / 20, -3 / 4, 0.0, 3 / 4, -3 / 20, 1 / 60)


def central_derivatives(
    trajectories: Float[Tensor, "runs times n"], step: float
) -> tuple[Float[Tensor, "rows n"], Float[Tensor, "rows n"]]:
    """States and their derivatives by central differences of order six, where there are three neighbours each side.

    Raises:
        ValueError: fewer than seven times, or a step that is not positive.
    """
    if trajectories.shape[1] < len(_CENTRAL) or not 0 < step < math.inf:
        raise ValueError(f"trajectories have {trajectories.shape[1]} times, step={step}: give at least "
                         f"{len(_CENTRAL)} and a positive step")
    stencil = trajectories.new_tensor(_CENTRAL) / step
    derivatives = trajectories.unfold(1, len(_CENTRAL), 1) @ stencil
    return trajectories[:, 3:-3].flatten(0, 1), derivatives.flatten(0, 1)
