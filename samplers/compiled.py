"""Compile a model's network, or record it as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from scoremodels.model import ScoreModel

MODES = ("default", "reduce-overhead", "max-autotune", "cuda-graph")
"""Ways to compile: torch.compile's own modes, and a recorded graph without any compiler."""


def compiled(model: ScoreModel, mode: str = "default") -> ScoreModel:
    """Give the same model with its network compiled; guidance and other wrappers go around it.

    Args:
        model: a model without wrappers.
        mode: a mode of ``torch.compile`` (with ``fullgraph=True``, so that a graph break is an error), or
            "cuda-graph" to record the network as it is, once for each shape, and replay it.

    Raises:
        ValueError: an unknown mode, a wrapped model, a network that is no module, or a CUDA graph without a GPU.

    Cost: the first evaluation of each shape compiles (seconds to minutes) or records (three evaluations). A
        recorded graph holds the network's memory until the model is dropped.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown: choose one of {', '.join(MODES)}")
    if type(model) is not ScoreModel:
        raise ValueError(f"model is a {type(model).__name__}: compile the plain model and put wrappers around that")
    if not isinstance(model.network, nn.Module):
        raise ValueError("model has a plain function for a network: compile takes a torch.nn.Module")
    if mode == "cuda-graph":
        if model.device.type != "cuda":
            raise ValueError(f"mode='cuda-graph', but the model is on {model.device}: move it to a GPU first, or "
                             "choose mode='default'")
        network: nn.Module = GraphedNetwork(model.network)
    else:
        made = torch.compile(model.network, fullgraph=True, mode=None if mode == "default" else mode)
        network = cast(nn.Module, made)  # of a module it makes a module
    return ScoreModel(network, model.schedule, model.prediction, model.shape, num_classes=model.num_classes,
                      label_dropout=model.label_dropout, name=model.name, value_range=model.value_range)


class GraphedNetwork(nn.Module):
    """Replay a network that was recorded as a CUDA graph, one for each shape and dtype of its arguments.

    Launching hundreds of small kernels costs more than running them; a replay launches all at once. Outputs are
    copied, so that they stay valid. Where gradients are on, the network itself is called.

    Args:
        network: a network on a GPU, whose work depends on shapes alone and never waits for the GPU.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.any_dtype = getattr(network, "any_dtype", False)
        self._replays: dict[tuple[object, ...], Callable[[Tensor, Tensor, Tensor | None], Tensor]] = {}

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The network's output at ``x``, t and the labels, all of shape (B, …)."""
        if torch.is_grad_enabled():
            return self.network(x, t, condition)
        key = (x.shape, x.dtype, t.dtype, x.device, None if condition is None else condition.dtype,
               torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type))
        if key not in self._replays:
            self._replays[key] = _record(self.network, x, t, condition)
        return self._replays[key](x, t, condition)


def _record(
    network: nn.Module, x: Tensor, t: Tensor, condition: Tensor | None
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    inputs = [None if argument is None else argument.clone() for argument in (x, t, condition)]
    side = torch.cuda.Stream(x.device)
    side.wait_stream(torch.cuda.current_stream(x.device))
    with torch.cuda.stream(side):  # libraries allocate and choose their algorithms before anything is recorded
        for _ in range(2):
            network(*inputs)
    torch.cuda.current_stream(x.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Casts that autocast caches would lie in the graph's memory, and be read after it is gone.
    with torch.autocast(x.device.type, torch.get_autocast_dtype(x.device.type),
                        enabled=torch.is_autocast_enabled(x.device.type), cache_enabled=False), torch.cuda.graph(graph):
        output = network(*inputs)

    def replay(*arguments: Tensor | None) -> Tensor:
        for kept, argument in zip(inputs, arguments, strict=True):
            if kept is not None and argument is not None:
                kept.copy_(argument)
        graph.replay()
        return output.clone()

    return replay
