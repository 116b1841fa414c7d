"""The command `fewstep likelihood`: bits per dimension of real images."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

from eval.arguments import load_model
from eval.console import complaints, evaluation_bar, progress_bars
from eval.data import fashion_mnist
from samplers.likelihood import Hutchinson, bits_per_dim
from scoremodels.model import ScoreModel


def likelihood_command(
    model: Annotated[str, typer.Option("--model", "-m", help="Name or folder of a model; see `fewstep info`.")],
    num: Annotated[int, typer.Option(help="Test images of Fashion-MNIST, from the first.")] = 32,
    probes: Annotated[int, typer.Option(help="Probes of the trace for each image.")] = 1,
    tolerance: Annotated[float, typer.Option(help="Relative and absolute tolerance of the solve.")] = 1e-4,
    labels: Annotated[bool, typer.Option(help="Whether a conditional model is told the labels.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of the first image's noise; image i has seed + i.")] = 0,
    batch: Annotated[int, typer.Option(help="Images to compute at once; they do not depend on it.")] = 32,
    device: Annotated[str, typer.Option(help="Where the network runs, such as cpu or cuda.")] = "auto",
) -> None:
    """Evaluate the bits per dimension of test images under a model, by its probability-flow ODE."""
    console = Console()
    with complaints(), progress_bars(console) as bars:
        network = load_model(model, None, device)
        images, condition = held_out(network, num, labels)
        with evaluation_bar(bars, "images", num) as advance:
            found = bits_per_dim(network, images, condition=condition, trace=Hutchinson(probes=probes, seed=seed),
                                 seed=seed, batch=batch, rtol=tolerance, atol=tolerance, progress=advance)
    told = ", told their labels" if condition is not None else ""
    console.print(f"{found.mean:.3f} ± {found.standard_error:.3f} bits/dim: {num} test images of Fashion-MNIST{told}, "
                  f"uniform dequantisation, {found.nfe} NFE", soft_wrap=True, highlight=False)


def held_out(model: ScoreModel, num: int, labelled: bool) -> tuple[Tensor, Tensor | None]:
    """The first test images, and their labels for a model that knows labels.

    Raises:
        ValueError: images that the model does not make, or more than there are.
    """
    if tuple(model.shape) != (1, 28, 28):
        raise ValueError(f"the model makes images of shape {tuple(model.shape)}, the test images have (1, 28, 28): use "
                         "samplers.likelihood.bits_per_dim with images of its own")
    images, labels = fashion_mnist("test")
    if not 1 <= num <= len(images):
        raise ValueError(f"num={num}: give a number from 1 to {len(images)}")
    if model.num_classes and not labelled and not model.label_dropout:
        raise ValueError("no-labels: the model knows no 'no label'")
    return images[:num], labels[:num].to(torch.int64) if model.num_classes and labelled else None
