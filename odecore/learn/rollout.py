"""Train a field on trajectories: windows of data, and how far its own solution is from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odecore.driver.integrate import integrate
from odecore.learn.fit import Loss
from odecore.stepper import Stepper


def windows(trajectories: Float[Tensor, "runs times ..."], length: int) -> Float[Tensor, "windows nodes ..."]:
    """Cut trajectories into all stretches of so many steps, overlapping ones among them.

    Raises:
        ValueError: a length that the trajectories do not have.
    """
    if not 1 <= length < trajectories.shape[1]:
        raise ValueError(f"length={length} is outside 1..{trajectories.shape[1] - 1}, the steps of a trajectory")
    return trajectories.unfold(1, length + 1, 1).movedim(-1, 2).flatten(0, 1)


def rollout_loss(
    stepper: Stepper, times: Sequence[float], *, weight: float = 1.0,
    field: Callable[[nn.Module], Callable[..., Tensor]] = lambda module: module,
) -> Loss:
    """Mean square of the distance between a window and the solution from its first state, as a loss for `fit`.

    Args:
        stepper: one step of it between each two times.
        times: of the nodes of a window.
        weight: of the mean square; 1 / step² measures the field's error in units of the field.
        field: takes the field from the module.

    Returns:
        A loss of a batch ``(windows,)`` or ``(windows, *args)``, the args with one row a window.
    """
    def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        nodes, *args = batch
        reached = integrate(stepper, field(module), nodes[:, 0], times, args=tuple(args), trajectory=True).ys
        assert reached is not None
        return weight * (reached - nodes)[:, 1:].square().mean()

    return loss


@torch.no_grad()
def trajectories(
    stepper: Stepper, field: Callable[..., Tensor], starts: Float[Tensor, "runs ..."], times: Sequence[float], *,
    args: tuple[Tensor, ...] = (),
) -> Float[Tensor, "runs times ..."]:
    """Solve from each start without gradients; a run that leaves the finite numbers is nan from there."""
    states = integrate(stepper, field, starts, times, args=args, trajectory=True, partial=True).ys
    assert states is not None
    return states
