"""Neural differential operators: derivatives of sampled trajectories by a network that is trained beforehand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from odecore.learn.fields import MLP, Reflection, Symmetric
from odecore.learn.fit import Loss

PRETRAINED = Path(__file__).parent / "pretrained"
DEGREE = 2


class DerivativeOperator(nn.Module):
    """Derivatives of samples, from windows along each coordinate: a local parabola, and a network for what it misses.

    In a window of W times t with values v, in units of the mean interval δ, let p be the parabola of least squares,
    ``r = v - p``, ``s = √(⟨r²⟩)``. Then ``v' = (p' + s N(r/s, Δt/δ)) / δ`` at all W times, with N odd in r. So

    * parabolas are differentiated exactly, and adding one to a trajectory adds its derivative;
    * scale, sign, shift and units of time pass through.

    At each time the window is used in which it stands nearest to the middle.

    Args:
        window: W.
        hidden: widths of the layers of N: a convolution of width W, then ones of width 1.
        seed: of the first weights.

    Raises:
        ValueError: a window too short for a parabola and a remainder.

    Source: Gong et al. 2021, Incorporating NODE with pre-trained neural differential operator, arXiv:2106.04166; the
        form of the network is ours.
    """

    def __init__(self, window: int = 25, hidden: Sequence[int] = (128, 128, 128), *, seed: int = 0) -> None:
        if window < DEGREE + 2:
            raise ValueError(f"window={window}: give at least {DEGREE + 2}")
        super().__init__()
        self.window, self.hidden = window, tuple(hidden)
        network = MLP((2 * window - 1, *hidden, window), activation=nn.functional.silu, seed=seed)
        odd = Reflection(tuple(range(window)), odd=True)
        self.network = Symmetric(network, [odd], inputs=2 * window - 1)

    def parts(
        self, values: Float[Tensor, "... window"], times: Float[Tensor, "... window"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Derivatives of the parabola in units of the mean interval, r/s, s, and intervals in units of their mean."""
        gaps = times.diff(dim=-1)
        mean_gap = gaps.mean(-1, keepdim=True)
        u = (times - times.mean(-1, keepdim=True)) / mean_gap
        basis, slopes = _orthonormal(u)
        coefficients = (basis * values.unsqueeze(-2)).sum(-1, keepdim=True)
        r = values - (coefficients * basis).sum(-2)
        s = r.square().mean(-1, keepdim=True).sqrt()
        tiny = values.abs().amax(-1, keepdim=True) * 100 * torch.finfo(values.dtype).eps
        unit = torch.where(s > tiny, r / s.clamp(min=torch.finfo(values.dtype).tiny), 0.0)
        return (coefficients * slopes).sum(-2), unit, torch.where(s > tiny, s, 0.0), gaps / mean_gap

    def correction(self, unit: Float[Tensor, "... window"], gaps: Float[Tensor, "... intervals"]) -> Tensor:
        """N, in its own dtype."""
        dtype = next(self.parameters()).dtype
        return self.network(torch.cat((unit, gaps.expand(*unit.shape[:-1], -1)), -1).to(dtype))

    def in_window(
        self, values: Float[Tensor, "... window"], times: Float[Tensor, "... window"]
    ) -> Float[Tensor, "... window"]:
        """Derivatives at all times of windows."""
        slope, unit, s, gaps = self.parts(values, times)
        mean_gap = times.diff(dim=-1).mean(-1, keepdim=True)
        return (slope + s * self.correction(unit, gaps).to(s)) / mean_gap

    def forward(
        self, values: Float[Tensor, "runs times n"], times: Float[Tensor, " times"]
    ) -> Float[Tensor, "runs times n"]:
        """Derivatives of trajectories at all their times.

        Args:
            values: samples, floating-point; parabola and remainder are found in their dtype.
            times: increasing, for all runs.

        Raises:
            ValueError: fewer times than the window, or times that do not increase.

        Cost: one evaluation of N at each time of each coordinate of each run.
        """
        count, w = len(times), self.window
        if values.ndim != 3 or values.shape[1] != count or count < w:
            raise ValueError(f"values have shape {tuple(values.shape)} at {count} times: give (runs, times, n) with at "
                             f"least window={w} times")
        if not bool((times.diff() > 0).all()):
            raise ValueError(f"times={times.tolist()}: they must increase")
        clock = times.to(values).unfold(0, w, 1)
        found = self.in_window(values.movedim(1, 2).unfold(2, w, 1), clock)  # (runs, n, windows, window)
        start = (torch.arange(count, device=values.device) - w // 2).clamp(0, count - w)
        return found[:, :, start, torch.arange(count, device=values.device) - start].movedim(1, 2)

    def save(self, folder: Path) -> None:
        """Write configuration and weights."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"window": self.window, "hidden": self.hidden}) + "\n")
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()},
                  folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path = PRETRAINED / "ndo") -> DerivativeOperator:
        """Read an operator, in evaluation mode; the one that comes with the library unless a folder is given.

        Raises:
            ValueError: the folder holds none.
        """
        if not (folder / "config.json").exists():
            raise ValueError(f"folder={str(folder)!r} holds no operator: make one with `save`")
        operator = cls(**json.loads((folder / "config.json").read_text()))
        operator.load_state_dict(load_file(folder / "model.safetensors"))
        return operator.eval().requires_grad_(False)


def slope_loss(module: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Train an operator on windows, a loss for `fit` of batches (values, times, derivatives).

    The mean of Huber's function of the error in units of the remainder, so that noisy and smooth windows, whose
    errors are many decades apart, count alike.
    """
    assert isinstance(module, DerivativeOperator)
    values, times, slopes = batch
    base, unit, s, gaps = module.parts(values, times)
    wanted = (slopes * times.diff(dim=-1).mean(-1, keepdim=True) - base) / s.clamp(min=torch.finfo(s.dtype).tiny)
    found = module.correction(unit, gaps)
    usable = s[..., 0] > 0
    return nn.functional.huber_loss(found[usable], wanted[usable].to(found), delta=0.3)


def with_derivatives(
    loss: Loss, states: Float[Tensor, "rows ..."], times: Float[Tensor, " rows"],
    derivatives: Float[Tensor, "rows ..."], *, weight: float,
    field: Callable[[nn.Module], Callable[..., Tensor]] = lambda module: module,
) -> Loss:
    """Add ``weight · ⟨|f(x_i, t_i) - x'_i|²⟩`` to a loss of trajectories, with derivatives from an operator.

    Args:
        loss: of module and batch, one number.
        states: x_i.
        times: t_i.
        derivatives: x'_i.
        weight: of the mean square.
        field: takes f from the module.

    Returns:
        A loss for `fit` with the terms "trajectory" and "derivative".
    """
    def total(module: nn.Module, batch: object) -> dict[str, Tensor]:
        fitted = loss(module, batch)
        assert isinstance(fitted, Tensor)
        wrong = field(module)(states, times) - derivatives
        return {"trajectory": fitted, "derivative": weight * wrong.square().mean()}

    return total


def _orthonormal(u: Tensor) -> tuple[Tensor, Tensor]:
    """Polynomials to DEGREE that are orthonormal on the points u, and their derivatives: (…, degree + 1, points)."""
    values: list[Tensor] = []
    slopes: list[Tensor] = []
    value, slope = torch.ones_like(u), torch.zeros_like(u)
    for _ in range(DEGREE + 1):
        for v, s in zip(values, slopes, strict=True):
            along = (value * v).sum(-1, keepdim=True)
            value, slope = value - along * v, slope - along * s
        length = value.norm(dim=-1, keepdim=True)
        value, slope = value / length, slope / length
        values.append(value)
        slopes.append(slope)
        value, slope = u * value, value + u * slope
    return torch.stack(values, -2), torch.stack(slopes, -2)
