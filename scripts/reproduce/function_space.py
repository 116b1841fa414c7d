"""Sample images as functions: `python scripts/reproduce/function_space.py`.

A denoiser that knows no grid is trained for `--seconds` on Fashion-MNIST at 16 x 16 points, with noise that is a random
function, and sampled at 28 x 28 and 56 x 56 as well, by the library's samplers. The samples of one seed
start from the projections of the same noise. Printed are the distances between samples of one seed on
different grids, and Fréchet distances on the embedded classifier's features after resampling to 28 x 28: for
the samples, and for real images that are brought to 16 x 16 points and back. No paper has these figures.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from pathlib import Path

import torch
from claims import Claim, parser, print_claims, write
from torch import Tensor, nn

from eval.data import fashion_mnist
from eval.features import fashion_mnist_features, fashion_mnist_reference
from eval.fid import Statistics, frechet_distance
from eval.images import from_bytes, grid, save_png, to_bytes
from odecore.learn.fit import Callback, Moment, adam, fit
from odecore.torus import resampled
from samplers import sample
from scoremodels.model import ScoreModel
from scoremodels.networks.preconditioning import EDMPreconditioned
from scoremodels.networks.spectral import SpectralDenoiser, function_noise, noise_spectrum
from scoremodels.schedule import EDM

TRAINED = 16
GRIDS = {16: 200, 28: 200, 56: 40}
"""Points along an axis, and how many samples to draw there."""
BATCH = 32


def noise_bank(count: int) -> Tensor:
    """Noise on the training grid, many times as fast as one seed at a time."""
    modes = (TRAINED - 1) // 2
    shape = (count, 1, TRAINED, TRAINED)
    white = torch.fft.rfft2(torch.randn(shape, generator=torch.Generator().manual_seed(0)), norm="ortho")
    spectrum = torch.zeros(TRAINED, TRAINED // 2 + 1)
    kept = noise_spectrum(modes).float()
    spectrum[: modes + 1, : modes + 1], spectrum[-modes:, : modes + 1] = kept[: modes + 1], kept[-modes:]
    return torch.fft.irfft2(white * spectrum, s=(TRAINED, TRAINED), norm="forward")


def edm_loss(module: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """EDM's loss with unit weight on the network's output (Karras et al. 2022), for noise of any covariance."""
    image, noise, sigma = batch
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    error = module(image + sigma[:, None, None, None] * noise, sigma) - image
    return (weight * error.square().mean((1, 2, 3))).mean()


class Average:
    """The exponential moving average of a module's weights, kept by a callback."""

    def __init__(self, module: nn.Module, decay: float = 0.99) -> None:
        self.module, self.decay = copy.deepcopy(module), decay

    def __call__(self, moment: Moment) -> None:
        """Move towards the present weights."""
        decay = min(self.decay, (1 + moment.step) / (10 + moment.step))
        with torch.no_grad():
            for own, new in zip(self.module.parameters(), moment.module.parameters(), strict=True):
                own.lerp_(new, 1 - decay)


def schedule(seconds: float) -> Callback:
    """Let the learning rate fall with the time that has passed, and stop when it is over."""
    began = time.process_time()

    def update(moment: Moment) -> bool:
        left = max(0.0, 1 - (time.process_time() - began) / seconds)
        for group in moment.optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, moment.step / 50, 2 * left)
        return left == 0.0

    return update


def train(arguments: argparse.Namespace, images: Tensor) -> tuple[nn.Module, list[float]]:
    """Train until the processor time is spent; the averaged network and the losses."""
    network = EDMPreconditioned(SpectralDenoiser(width=arguments.width, blocks=arguments.blocks), 0.5)
    bank = noise_bank(8192)

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        drawn = torch.randint(len(bank), (BATCH,), generator=generator)
        noise = bank[drawn] * (2 * torch.randint(2, (BATCH, 1, 1, 1), generator=generator) - 1)
        shifts = torch.randint(TRAINED, (2,), generator=generator).tolist()  # the noise is stationary
        sigma = (1.4 * torch.randn(BATCH, generator=generator) - 0.2).exp()
        return images[rows], noise.roll(shifts, (2, 3)), sigma

    average = Average(network)
    run = fit(network, edm_loss, batch, steps=100_000, optimizer=adam(3e-3), clip=1.0,
              callbacks=[schedule(arguments.seconds), average])
    return average.module.eval(), run.losses


def draw_samples(network: nn.Module, points: int, num: int, nfe: int) -> Tensor:
    """Samples on a grid, seed i for sample i."""
    model = ScoreModel(network, EDM(), "sample", (1, points, points))
    start = EDM().sigma_max * function_noise(range(num), points)
    return sample(model, x_T=start, solver="dpm-solver++-2m", nfe=nfe).samples


def distance(images: Tensor) -> float:
    """Fréchet distance on the embedded classifier's features, after resampling to 28 x 28 points."""
    at_28 = images if images.shape[-1] == 28 else resampled(images, 28, 2)
    features = fashion_mnist_features()(from_bytes(to_bytes(at_28)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that few samples bias the distance upwards is said in the output
        return frechet_distance(Statistics.of(features), fashion_mnist_reference())


def compare(samples: dict[int, Tensor], real: Tensor) -> list[Claim]:
    """What a grid changes, and how good the samples are."""
    coarse = samples[TRAINED]
    made = []
    for points, fine in samples.items():
        if points != TRAINED:
            back, same = resampled(fine, TRAINED, 2), coarse[: len(fine)]
            made.append(Claim(f"difference of {points} x {points} from {TRAINED} x {TRAINED} samples, relative",
                              ((back - same).norm() / same.norm()).item()))
    shuffled = (coarse.roll(1, 0) - coarse).norm() / coarse.norm()
    made.append(Claim("difference between samples of different seeds", shuffled.item()))
    name = fashion_mnist_features().metric
    num = len(coarse)
    made += [Claim(f"{name}, {num} samples at {points} x {points}", distance(found))
             for points, found in samples.items() if len(found) == num]
    made += [Claim(f"{name}, {num} real images", distance(real[:num])),
             Claim(f"{name}, {num} real images brought to {TRAINED} x {TRAINED}",
                   distance(resampled(real[:num], TRAINED, 2)))]
    return made


def picture(samples: dict[int, Tensor], path: Path, columns: int = 10) -> None:
    """One row of samples for each grid, all at the same size."""
    rows = [nn.functional.interpolate(found[:columns], 112, mode="nearest") for found in samples.values()]
    save_png(grid(to_bytes(torch.cat(rows)), columns), path)


def main() -> None:
    """Train, sample, measure, draw."""
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, help="processor time of the training")
    made.add_argument("--width", type=int, default=32)
    made.add_argument("--blocks", type=int, default=4)
    made.add_argument("--nfe", type=int, default=12)
    arguments = made.parse_args()
    arguments.seconds = arguments.seconds or (4 if arguments.quick else 120)
    torch.manual_seed(arguments.seed)
    real = from_bytes(fashion_mnist("train")[0])
    images = torch.cat([resampled(part, TRAINED, 2) for part in real[: 500 if arguments.quick else None].split(4096)])
    network, losses = train(arguments, images)
    print(f"  {len(losses)} steps of {BATCH}, loss {sum(losses[-50:]) / len(losses[-50:]):.3f}, "
          f"{sum(p.numel() for p in network.parameters())} parameters")
    samples = {points: draw_samples(network, points, 4 if arguments.quick else num, arguments.nfe)
               for points, num in GRIDS.items()}
    claims = compare(samples, from_bytes(fashion_mnist("test")[0]))
    print_claims("Images as functions (distances depend on the number of samples: compare at the same)", claims)
    write(arguments, claims, losses=losses)
    if arguments.figure is not None:
        picture(samples, arguments.figure)


if __name__ == "__main__":
    main()
