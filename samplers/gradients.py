"""Differentiate a sample with respect to what it was made from, in a chosen number of stored states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from odecore.gradients.checkpointed import execute_checkpointed
from odecore.plan import Plan, Weight
from samplers.compile import compile_plan
from samplers.grids import Grid
from samplers.solver import Solver
from scoremodels.model import ScoreModel


def differentiable_sample(
    model: ScoreModel,
    x_T: Float[Tensor, "samples ..."],  # noqa: N803 (the field's name for the start noise)
    *,
    solver: str | Solver = "dpm-solver++-2m",
    nfe: int = 10,
    grid: str | Grid | Sequence[float] | NDArray[np.float64] | None = None,
    end: str | float | None = None,
    plan: Plan | None = None,
    condition: Int[Tensor, " samples"] | Int[Tensor, "samples labels"] | None = None,
    guidance: float | Tensor | None = None,
    states: int | None = None,
    memory: int | None = None,
    parameters: Iterable[Tensor] = (),
) -> Float[Tensor, "samples ..."]:
    """Draw samples that know how they change with their noise, their guidance and the network.

    The solver's steps are replayed by the discrete adjoint, so that the gradient is that of the samples as they
    were computed, to rounding, while so many states are stored as are asked for. With labels c_k and guidance
    weights w_k the prediction is ``u + Σ_k w_k (c_k - u)``, u being that without a label: with one label a sample,
    classifier-free guidance; with several, the gradient of the weights is the one with respect to the condition.

    Args:
        model: the pretrained model.
        x_T: start states, as ``x_T`` of :func:`~samplers.sample.sample`; they get a gradient if they require one.
        solver: a name out of ``SOLVERS`` with fixed steps and without noise of its own.
        nfe: network evaluations a sample.
        grid: as for :func:`~samplers.compile.compile_plan`.
        end: as for :func:`~samplers.compile.compile_plan`.
        plan: a compiled plan in place of ``solver``, ``nfe``, ``grid`` and ``end``; tensors among its numbers get
            their gradients.
        condition: class labels, one a sample, or several in a row for each.
        guidance: weight of each label: a number, or a tensor that broadcasts over the labels' shape; None takes
            the prediction with the label (and a single label a sample).
        states: most solver states stored at one time, that at the start included; None stores all.
        memory: the same as a budget in bytes.
        parameters: parameters of the model that are to get gradients; all others are constants.

    Returns:
        Samples, equal to those of ``sample`` with this noise; differentiable once.

    Raises:
        ValueError: a solver that adds noise or chooses its steps, several labels without guidance, guidance that the
            model cannot have or of a wrong shape, or wrong ``states``; before any evaluation.

    Cost: ``nfe`` evaluations; backward, ``nfe`` evaluations with their vector–Jacobian products and
        :func:`~odecore.gradients.checkpoint.optimal_advances` - (nfe - 1) further evaluations. Memory: ``states``
        states of 2 + ``plan.depth`` tensors like x_T, and the graph of one evaluation. Guidance evaluates a batch
        that is larger by one for each label.

    Source: Zhang & Zhao 2022, PNODE, arXiv:2206.01298; Ho & Salimans 2022, arXiv:2207.12598; Liu et al. 2022,
        arXiv:2206.01714, for several labels.
    """
    if tuple(x_T.shape[1:]) != model.shape or not len(x_T) or not x_T.is_floating_point():
        raise ValueError(f"x_T has shape {tuple(x_T.shape)} and dtype {x_T.dtype}: give floating-point states of shape "
                         f"(samples, {', '.join(map(str, model.shape))})")
    if plan is None:
        plan = compile_plan(solver, model.schedule, nfe=nfe, grid=grid, prediction=model.prediction, end=end)
    if any(row.noisy for row in plan.rows):
        raise ValueError(f"solver={plan.about.get('solver')!r} adds noise of its own: choose one that does not")
    trained = tuple(parameters)
    network = constant_network(model, trained)
    weights: tuple[Tensor, ...] = ()
    if guidance is None:
        if condition is not None and condition.ndim != 1:
            raise ValueError(f"condition has shape {tuple(condition.shape)} without guidance: give one label a sample")
        predict: Callable[[Tensor, Weight], Tensor] = lambda x, t: network(x, t, condition)  # noqa: E731
    else:
        labels, weight = _guidance(model, x_T, condition, guidance)
        predict = lambda x, t: _guided(network, model.num_classes, labels, weight, x, t)  # noqa: E731
        weights = (weight,)
    return execute_checkpointed(plan, predict, x_T, states=states, memory=memory, parameters=(*trained, *weights))


def constant_network(
    model: ScoreModel, trained: Iterable[Tensor] = ()
) -> Callable[[Tensor, Weight, Tensor | None], Tensor]:
    """The model as a function of state, time and label, with all parameters but the given ones as constants."""
    kept = {id(parameter) for parameter in trained}
    constants = {name: p.detach() for name, p in model.named_parameters() if id(p) not in kept}
    return lambda x, t, condition: functional_call(model, constants, (x, t, condition))


def _guidance(
    model: ScoreModel, x: Tensor, condition: Tensor | None, guidance: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Labels and weights, both of shape (samples, labels)."""
    if condition is None or not model.num_classes or not model.label_dropout:
        raise ValueError("guidance needs labels in condition, and a class-conditional model that was also trained "
                         "without labels")
    labels = condition.unsqueeze(1) if condition.ndim == 1 else condition
    if labels.ndim != 2 or len(labels) != len(x) or not labels.shape[1]:
        raise ValueError(f"condition has shape {tuple(condition.shape)}: give ({len(x)},) or ({len(x)}, labels)")
    weight = torch.as_tensor(guidance, dtype=x.dtype, device=x.device)
    if condition.ndim == 1 and weight.ndim == 1:
        weight = weight.unsqueeze(1)
    try:
        return labels.to(x.device), weight.expand(labels.shape)
    except RuntimeError:
        raise ValueError(f"guidance has shape {tuple(weight.shape)}: give a number, or weights that broadcast over "
                         f"{tuple(condition.shape)}") from None


def _guided(
    network: Callable[[Tensor, Weight, Tensor | None], Tensor], no_label: int, labels: Tensor, weight: Tensor,
    x: Tensor, t: Weight,
) -> Tensor:
    """``u + Σ_k w_k (c_k - u)`` by one evaluation of as many batches as there are labels, and one."""
    count = labels.shape[1] + 1
    every = torch.cat([labels.T.flatten(), labels.new_full((len(x),), no_label)])
    times = t.repeat(count) if isinstance(t, Tensor) and t.ndim else t
    *conditional, free = network(x.repeat(count, *[1] * (x.ndim - 1)), times, every).chunk(count)
    total = free
    for k, prediction in enumerate(conditional):
        total = total + weight[:, k].reshape(-1, *[1] * (x.ndim - 1)) * (prediction - free)
    return total
