"""Fields with what is known written down and networks for the rest: ``dy/dt = F(y, t, g_1(·), g_2(·), …)``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


class MLP(nn.Module):
    """A fully connected network whose first weights depend on its seed alone.

    ``x ↦ W_k a(… a(W_1 x + b_1) …) + b_k`` with uniform weights in ±1/√inputs.

    Args:
        widths: of the input, the hidden layers and the output.
        activation: a, elementwise.
        seed: of the first weights.
        dtype: of the weights; None for torch's default.

    Raises:
        ValueError: fewer than two widths, or one below 1.
    """

    def __init__(
        self, widths: Sequence[int], *, activation: Callable[[Tensor], Tensor] = torch.tanh, seed: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"widths={tuple(widths)}: give those of the input and the output at least, all positive")
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.activation = activation
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, n, m, dtype=dtype)
                                    for n, m in itertools.pairwise(widths))
        for layer, inputs in zip(self.layers, widths, strict=False):
            for tensor in layer.parameters():
                nn.init.uniform_(tensor, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """The value at x."""
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)


@dataclass(frozen=True, slots=True)
class Reflection:
    """A symmetry ``g(S x) = ± g(x)``, where S changes the sign of some inputs.

    Args:
        inputs: places whose sign changes.
        odd: whether the value changes sign too.

    Raises:
        ValueError: no inputs.
    """

    inputs: tuple[int, ...]
    odd: bool

    def __post_init__(self) -> None:
        if not self.inputs:
            raise ValueError(f"inputs={self.inputs}: name at least one input that changes its sign")


class Symmetric(nn.Module):
    """A network made symmetric by construction, by the mean over the group that its reflections generate.

    ``g(x) = 2^{-k} Σ_{S ⊆ reflections} (±1) N(S x)``, which has every symmetry exactly and leaves alone a network
    that has them already, so no function with the symmetries is lost.

    Args:
        network: N, on the last axis.
        reflections: the symmetries; none of them may follow from the others.
        inputs: how many N has.

    Raises:
        ValueError: inputs that N does not have, or reflections that repeat.

    Cost: one evaluation of N on 2^k times the batch.
    """

    def __init__(self, network: nn.Module, reflections: Sequence[Reflection], *, inputs: int) -> None:
        super().__init__()
        flips = torch.ones(2 ** len(reflections), inputs)
        parities = torch.ones(2 ** len(reflections))
        for row, chosen in enumerate(itertools.product((False, True), repeat=len(reflections))):
            for reflection in itertools.compress(reflections, chosen):
                if not all(0 <= place < inputs for place in reflection.inputs):
                    raise ValueError(f"reflection of inputs {reflection.inputs}: they lie between 0 and {inputs - 1}")
                flips[row, list(reflection.inputs)] *= -1
                parities[row] *= -1 if reflection.odd else 1
        if len(torch.unique(flips, dim=0)) < len(flips):
            raise ValueError(f"reflections={tuple(reflections)}: one of them follows from the others, leave it out")
        self.network = network
        self.register_buffer("flips", flips)
        self.register_buffer("parities", parities)
        self.flips: Tensor
        self.parities: Tensor

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """The symmetric value at x."""
        values = self.network(x.unsqueeze(-2) * self.flips.to(x.dtype))
        return torch.einsum("k,...ko->...o", self.parities.to(x.dtype) / len(self.parities), values)


class Unknown(nn.Module):
    """A term of a field that is learned: a network on chosen inputs.

    Args:
        network: on the last axis.
        inputs: what it sees: places of the state in its last axis, or a function ``(y, t, *args) -> inputs``.
    """

    def __init__(self, network: nn.Module, inputs: Sequence[int] | Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self.inputs = inputs if callable(inputs) else tuple(inputs)

    def forward(self, y: Tensor, t: Tensor, *args: Tensor) -> Tensor:
        """The value of the term."""
        if callable(self.inputs):
            return self.network(self.inputs(y, t, *args))
        return self.network(y[..., self.inputs])


class StructuredField(nn.Module):
    """A field with a known form and learned terms, ``dy/dt = F(y, t, *args, g_1=…, g_2=…, …)``.

    Args:
        known: F; the values of the learned terms come as keywords. Controls are further arguments.
        unknowns: the terms by their names in F.

    Raises:
        ValueError: no terms.

    Cost: one evaluation of each term.

    Source: Djeumou, Neary, Goubault, Putot & Topcu 2022, arXiv:2109.06407; the full text was not at hand, this is
        our reading.
    """

    def __init__(self, known: Callable[..., Tensor], unknowns: Mapping[str, nn.Module]) -> None:
        if not unknowns:
            raise ValueError("unknowns is empty: a field without learned terms is the plain function `known`")
        super().__init__()
        self.known = known
        self.unknowns = nn.ModuleDict(dict(unknowns))

    def terms(self, y: Tensor, t: Tensor, *args: Tensor) -> dict[str, Tensor]:
        """The values of the learned terms: the inner quantities that constraints speak of."""
        return {name: term(y, t, *args) for name, term in self.unknowns.items()}

    def forward(self, y: Tensor, t: Tensor, *args: Tensor) -> Tensor:
        """The right-hand side."""
        return self.known(y, t, *args, **self.terms(y, t, *args))
