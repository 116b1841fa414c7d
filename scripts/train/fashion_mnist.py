"""Train the embedded Fashion-MNIST models: `python scripts/train/fashion_mnist.py MODEL --out FOLDER`.

MODEL is edm, flow or ddpm. The flow starts from the finished `edm` run (`--init`); `ddpm-refine` goes on
from the `ddpm` run with a loss that heeds high noise, and `ddpm-stable` from there with targets of less
variance.

The learning rate is warmed up, held, and brought linearly to zero over the last three tenths of
the images; an exponential moving average of the weights is what ships. Training resumes from the
last checkpoint in the output folder, so a run may be cut at any time; `--images` may change
between runs. `scripts/train/export.py` turns a finished run into a model folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from eval.data import fashion_mnist
from scoremodels.networks.patch_unet import PatchUNet

Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]

SIGMA_DATA = 0.5
LABEL_DROPOUT = 0.15


def edm_loss(net: nn.Module, x0: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
    """EDM (Karras et al. 2022): the preconditioned network's target has unit variance at every σ."""
    sigma = (torch.randn(len(x0), generator=generator) * 1.3 - 0.9).exp()[:, None, None, None]
    scale = (sigma**2 + SIGMA_DATA**2).sqrt()
    x = x0 + sigma * torch.randn(x0.shape, generator=generator)
    target = (x0 - x * (SIGMA_DATA / scale) ** 2) * scale / (sigma * SIGMA_DATA)
    label = torch.where(torch.rand(len(x0), generator=generator) < LABEL_DROPOUT, 10, label)
    return (net(x / scale, sigma.flatten().log() / 4, label) - target).square().mean()


def flow_loss(net: nn.Module, x0: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
    """Rectified flow (Liu et al. 2022): x_t = (1-t) x0 + t ε, target ε - x0, log t/(1-t) ~ N(0, 1.3²)."""
    logit = torch.randn(len(x0), generator=generator) * 1.3
    t = logit.sigmoid()[:, None, None, None]
    noise = torch.randn(x0.shape, generator=generator)
    return (net((1 - t) * x0 + t * noise, logit / 4) - (noise - x0)).square().mean()


def ddpm_loss(
    net: nn.Module, x0: Tensor, label: Tensor, generator: torch.Generator, *, largest_weight: float = 1.0
) -> Tensor:
    """DDPM (Ho et al. 2020): predict ε at a uniform timestep of the linear schedule.

    A small error of ε is a large one of x0 where the signal is faint: there x0 = (x - σ ε)/α. With
    ``largest_weight`` above 1 the loss is weighted by ``min(1 + 4 ρ², largest_weight)``, ρ = σ/α.
    """
    alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float()
    t = torch.randint(1000, (len(x0),), generator=generator)
    alpha_bar = alphas_cumprod[t][:, None, None, None]
    noise = torch.randn(x0.shape, generator=generator)
    weight = (4 / alpha_bar - 3).clamp(max=largest_weight)
    prediction = net(alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise, t).sample
    return (weight * (prediction - noise).square()).mean()


class StableTargetLoss:
    """Predict the mean of ε over all training images that may have led to x_t, where that mean is not one image's.

    ``E[ε | x_t] = (x_t - α Σ_i w_i y_i)/σ``, ``w = softmax(-‖x_t - α y_i‖²/(2σ²))``: the minimiser of the
    plain loss over the training set, without the variance of its target. Below ρ = σ/α = ``least_ratio``
    the target is the plain ε. ρ is log-normal and the weight 1 + 4ρ², at most ``largest_weight``, as in EDM.

    Source: Xu et al. 2023, arXiv:2302.00670; Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    def __init__(self, images: Tensor, *, least_ratio: float = 0.7, largest_weight: float = 100.0) -> None:
        self.images = images.flatten(1)
        self.squares = self.images.square().sum(1)
        self.least_ratio, self.largest_weight = least_ratio, largest_weight
        alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
        self.alpha, self.sigma = alphas_cumprod.sqrt().float(), (1 - alphas_cumprod).sqrt().float()
        self.log_ratio = (self.sigma / self.alpha).log()

    def __call__(self, net: nn.Module, x0: Tensor, label: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of a batch of images."""
        drawn = torch.randn(len(x0), generator=generator) * 1.4 - 0.6
        t = torch.searchsorted(self.log_ratio, drawn).clamp(max=999)
        alpha, sigma = (factor[t][:, None, None, None] for factor in (self.alpha, self.sigma))
        noise = torch.randn(x0.shape, generator=generator)
        x = alpha * x0 + sigma * noise
        wide = (sigma / alpha).flatten() > self.least_ratio
        if wide.any():
            a, s = alpha[wide].flatten(1), sigma[wide].flatten(1)
            logits = (x[wide].flatten(1) @ self.images.T - a / 2 * self.squares) * (a / s**2)
            mean = (logits.softmax(1) @ self.images).reshape(x0[wide].shape)
            noise[wide] = (x[wide] - alpha[wide] * mean) / sigma[wide]
        weight = (1 + 4 * (sigma / alpha) ** 2).clamp(max=self.largest_weight)
        return (weight * (net(x, t).sample - noise).square()).mean()


def ddpm_network() -> nn.Module:
    """The network of the discrete-time model, as diffusers builds it."""
    return UNet2DModel(
        sample_size=28, in_channels=1, out_channels=1, block_out_channels=(16, 32, 96), layers_per_block=1,
        norm_num_groups=8, attention_head_dim=32,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Loss]]] = {
    "edm": (lambda: PatchUNet(width=48, width_inner=96, blocks=4, classes=10), lambda images: edm_loss),
    "flow": (lambda: PatchUNet(width=48, width_inner=96, blocks=4), lambda images: flow_loss),
    "ddpm": (ddpm_network, lambda images: ddpm_loss),
    "ddpm-refine": (ddpm_network, lambda images: partial(ddpm_loss, largest_weight=100.0)),
    "ddpm-stable": (ddpm_network, StableTargetLoss),
}
"""Each model's network, and its loss given all images."""


def learning_rate(step: int, steps: int, peak: float, warmup: int = 300) -> float:
    """Warm up, hold, and fall linearly over the last three tenths."""
    return peak * min(1.0, (step + 1) / warmup, (steps - step) / (0.3 * steps))


def main() -> None:
    """Train one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--images", type=int, default=1_000_000, help="training images in all")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--init", type=Path, help="checkpoint of a run whose averaged weights start this one")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    generator = torch.Generator().manual_seed(arguments.seed)

    images, labels = fashion_mnist("train")
    images = images.float() / 127.5 - 1
    make, make_loss = MODELS[arguments.model]
    loss_function = make_loss(images)
    net, ema = make().to(memory_format=torch.channels_last), make()
    if arguments.init is not None:
        source = torch.load(arguments.init, weights_only=True)["ema"]
        own = net.state_dict()
        net.load_state_dict({k: source[k] if k in source and source[k].shape == v.shape else v for k, v in own.items()})
    ema.load_state_dict(net.state_dict())
    optimizer = torch.optim.AdamW(net.parameters(), lr=arguments.lr, betas=(0.9, 0.99), weight_decay=0.01)
    step, seconds = 0, 0.0
    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint = arguments.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        ema.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
        generator.manual_seed(arguments.seed + step)
        print(f"resumed at step {step}", flush=True)

    steps = arguments.images // arguments.batch
    started, running, counted = time.perf_counter(), 0.0, 0
    while step < steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, arguments.lr)
        batch = torch.randint(len(images), (arguments.batch,), generator=generator)
        loss = loss_function(net, images[batch].to(memory_format=torch.channels_last), labels[batch], generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        step += 1
        decay = min(arguments.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - decay)
        running, counted = running + loss.item(), counted + 1
        if step % 100 == 0 or step == steps:
            elapsed = seconds + time.perf_counter() - started
            print(f"step {step}/{steps} loss {running / counted:.4f} {elapsed:.0f} s", flush=True)
            running, counted = 0.0, 0
        if step % 250 == 0 or step == steps:
            elapsed = seconds + time.perf_counter() - started
            torch.save(dict(net=net.state_dict(), ema=ema.state_dict(), optimizer=optimizer.state_dict(),
                            step=step, seconds=elapsed), checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            (arguments.out / "run.json").write_text(json.dumps(dict(
                model=arguments.model, steps=step, batch=arguments.batch, images=step * arguments.batch,
                lr=arguments.lr, ema=arguments.ema, seed=arguments.seed, seconds=round(elapsed),
                init=arguments.init.parent.name if arguments.init else None,
                parameters=sum(p.numel() for p in net.parameters()), torch=torch.__version__,
                hardware=f"{platform.machine()} CPU, {arguments.threads} thread(s)"), indent=1))


if __name__ == "__main__":
    main()
