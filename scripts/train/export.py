"""Turn a finished training run into a model folder: `python scripts/train/export.py edm|flow|ddpm --run FOLDER`.

Without `--run` the weights stay, and only what solvers make of them is drawn and measured again.
The folder holds the averaged weights as safetensors, the configuration, a 10×10 grid of samples and
the model card. `ddpm` becomes a diffusers pipeline folder. The card's distance to the real images
is computed, or taken from a file that an earlier export of the same run wrote.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler
from fashion_mnist import LABEL_DROPOUT, MODELS, SIGMA_DATA
from rich.progress import track
from torch import nn

from eval.features import CLASSIFIER_FOLDER, fashion_mnist_features, fashion_mnist_reference, statistics_of
from eval.fid import frechet_distance
from eval.images import grid, save_png, to_bytes
from samplers import sample
from scoremodels.loaders import load, save
from scoremodels.model import ScoreModel
from scoremodels.networks.preconditioning import EDMPreconditioned, FlowTime
from scoremodels.schedule import EDM, RectifiedFlow

LARGEST = 6_000_000
"""Bytes that embedded weights may take."""

SOLVER = "dpm-solver++-3m"


@dataclass(frozen=True, slots=True)
class Description:
    """What a card says of a kind of model."""

    title: str
    process: str
    network: str
    loss: str
    use: str


_PATCH_UNET = "`PatchUNet`: a two-level U-Net on 2×2 pixel patches with one attention layer"
_OURS = """import torch
from samplers import sample
from scoremodels.loaders import load

model = load("{name}")
images = sample(model, num=100, solver="dpm-solver++-3m", nfe=10{labels}).samples  # in [-1, 1]"""

DESCRIPTIONS = {
    "edm": Description(
        "A class-conditional diffusion model of Fashion-MNIST in continuous noise levels, after EDM.",
        "x = x0 + σ ε, σ from 0.002 to 80 (EDM; Karras et al. 2022, arXiv:2206.00364); the model predicts x0",
        f"{_PATCH_UNET}, with EDM preconditioning (σ_data = {SIGMA_DATA}) and ten labels",
        f"EDM's, log σ ~ N(-0.9, 1.3²); labels left out {LABEL_DROPOUT:.0%} of the time, so that classifier-free "
        "guidance can be used (label 10 means no label)",
        _OURS.format(name="fashion-mnist-edm", labels=", condition=torch.arange(100) % 10")),
    "flow": Description(
        "An unconditional rectified flow of Fashion-MNIST.",
        "x = (1 - t) x0 + t ε, t from 0 to 1 (rectified flow; Liu et al. 2022, arXiv:2209.03003); the model predicts "
        "the velocity ε - x0",
        f"{_PATCH_UNET}, told log(t/(1-t))/4",
        "mean squared error of the velocity, log t/(1-t) ~ N(0, 1.3²)",
        _OURS.format(name="fashion-mnist-flow", labels="").removeprefix("import torch\n")),
    "ddpm": Description(
        "An unconditional diffusion model of Fashion-MNIST in discrete time, as a diffusers pipeline folder.",
        "DDPM (Ho et al. 2020, arXiv:2006.11239): 1000 steps, β linear from 0.0001 to 0.02; the model predicts ε",
        "diffusers' `UNet2DModel`: widths 16, 32, 96, one layer a block, attention at the lowest resolution",
        "mean squared error of ε, weighted by min(1 + 4 σ²/α², 100), towards the mean of ε over the training images "
        "where that is not one image's (Xu et al. 2023, arXiv:2302.00670), log σ/α ~ N(-0.6, 1.4²). Three runs went "
        "before: `ddpm`, 4,687 steps of 64 images with learning rate 0.001 and timesteps uniform, and 1,200 and "
        "2,750 steps of `ddpm-refine`, so weighted, towards ε itself",
        """from diffusers import DDPMPipeline
from samplers.diffusers import FewStepScheduler
from scoremodels.loaders import model_folder

pipe = DDPMPipeline.from_pretrained(model_folder("fashion-mnist-ddpm"))
pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="dpm-solver++-2m")
images = pipe(batch_size=100, num_inference_steps=10).images"""),
}

CARD = """---
license: apache-2.0
{library}tags: [unconditional-image-generation]
---

# {name}

{title}

![A 10×10 grid of samples](samples.png)

*Samples from seeds 0 to 99 with `{solver}` in {nfe} network evaluations{rows}; not selected.*

| | |
|---|---|
| Samples | 1 × 28 × 28 in [-1, 1] |
| Process | {process} |
| Network | {network} |
| Parameters | {parameters:,} ({megabytes:.1f} MB of float32, averaged with decay {ema}) |
| Data | Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747), 60,000 training images, MIT licence |
| Loss | {loss} |
| Training | {steps:,} steps of {batch} images ({images:,} in all), AdamW, learning rate {lr}, \
seed {seed}{init}; `scripts/train/fashion_mnist.py {model}` |
| Hardware | {hardware}, {minutes:,} minutes, PyTorch {torch} |
| Quality | {quality} |
| Licence of the weights | Apache-2.0 |

```python
{use}
```
"""


QUALITY_LINE = re.compile(r"^\| Quality \| .* \|$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Quality:
    """How far samples are from the real images."""

    metric: str
    distance: float
    num: int
    solver: str
    nfe: int
    steps: int


def read_run(kind: str, folder: Path) -> tuple[dict[str, Any], nn.Module]:
    """Read what a run was, and its averaged network.

    Raises:
        ValueError: the folder holds no run, or one of another model.
    """
    try:
        facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        state = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"--run {folder} holds no run ({error}): give the --out of fashion_mnist.py") from error
    if facts["model"].partition("-")[0] != kind:
        raise ValueError(f"--run {folder} is a run of {facts['model']!r}, not of {kind!r}")
    network = MODELS[kind][0]()
    network.load_state_dict(state["ema"])
    return facts | {"steps": state["step"], "images": state["step"] * facts["batch"]}, network


def write_model(kind: str, network: nn.Module, folder: Path) -> None:
    """Write weights and configuration, a pipeline in diffusers' own format for ``ddpm``."""
    if kind == "ddpm":
        DDPMPipeline(network, DDPMScheduler(num_train_timesteps=1000)).save_pretrained(folder)
    elif kind == "edm":
        save(ScoreModel(EDMPreconditioned(network, SIGMA_DATA), EDM(sigma_data=SIGMA_DATA), "sample", (1, 28, 28),
                        num_classes=10), folder)
    else:
        save(ScoreModel(FlowTime(network), RectifiedFlow(), "flow", (1, 28, 28)), folder)


def measure(model: ScoreModel, num: int, nfe: int, steps: int) -> Quality:
    """Compare samples with the training images on the embedded classifier's features."""
    extractor = fashion_mnist_features()
    labels = torch.arange(num) % model.num_classes if model.num_classes else None
    samples = sample(model, num=num, solver=SOLVER, nfe=nfe, condition=labels,
                     progress=lambda starts: track(list(starts), f"{num:,} samples")).samples
    distance = frechet_distance(statistics_of(extractor, to_bytes(samples)), fashion_mnist_reference())
    return Quality(extractor.metric, distance, num, SOLVER, nfe, steps)


def describe_quality(quality: Quality | None) -> str:
    """Word the card's line, with what real images get."""
    if quality is None:
        return "not measured"
    real = json.loads((CLASSIFIER_FOLDER / "config.json").read_text(encoding="utf-8"))["real_distances"]
    beside = real.get(str(quality.num))
    comparison = f"; as many unseen real images get {beside:.3f}" if beside else ""
    return (f"{quality.metric} {quality.distance:.2f} over {quality.num:,} samples with `{quality.solver}` in "
            f"{quality.nfe} network evaluations{comparison}")


def draw(model: ScoreModel, out: Path, nfe: int) -> None:
    """Draw the grid of samples that the card shows."""
    labels = torch.arange(100) % 10 if model.num_classes else None
    shown = sample(model, num=100, solver=SOLVER, nfe=nfe, condition=labels)
    save_png(grid(to_bytes(shown.samples), 10), out / "samples.png", zoom=2)
    print(f"drew {out / 'samples.png'}", flush=True)


def renew(out: Path, *, nfe: int, num: int) -> None:
    """Draw and measure an exported model again, as after a change of the solvers.

    Raises:
        ValueError: the folder has no card, or one without a line for quality.
    """
    card = out / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    if len(QUALITY_LINE.findall(text)) != 1:
        raise ValueError(f"--out {out} has no card with a line for quality: export a run with --run")
    model = load(out)
    draw(model, out, nfe)
    measured = measure(model, num, nfe, 0) if num else None
    card.write_text(QUALITY_LINE.sub(lambda _: f"| Quality | {describe_quality(measured)} |", text), encoding="utf-8")
    print(f"renewed {card}: {describe_quality(measured)}", flush=True)


def export(kind: str, run: Path, out: Path, *, nfe: int, num: int, quality: Path | None) -> None:
    """Write the whole folder.

    Raises:
        ValueError: the run or the quality file does not fit, or the weights are too large.
    """
    facts, network = read_run(kind, run)
    known = Quality(**json.loads(quality.read_text(encoding="utf-8"))) if quality is not None else None
    if known is not None and known.steps != facts["steps"]:
        raise ValueError(f"--quality {quality} is of step {known.steps}, the run is at {facts['steps']}: measure again")
    write_model(kind, network, out)
    (weights,) = out.rglob("*.safetensors")
    size = weights.stat().st_size
    if size > LARGEST:
        raise ValueError(f"{weights} takes {size:,} bytes: embedded weights may take {LARGEST:,}")
    print(f"wrote {weights} ({size / 1e6:.2f} MB)", flush=True)
    model = load(out)
    draw(model, out, nfe)
    if known is None and num:
        known = measure(model, num, nfe, facts["steps"])
        (run / "quality.json").write_text(json.dumps(asdict(known), indent=1) + "\n", encoding="utf-8")
        print(f"measured {known}; kept in {run / 'quality.json'}", flush=True)
    text = DESCRIPTIONS[kind]
    (out / "README.md").write_text(CARD.format(
        library="library_name: diffusers\n" if kind == "ddpm" else "", name=f"fashion-mnist-{kind}", solver=SOLVER,
        nfe=nfe, rows=", one class a column" if model.num_classes else "", title=text.title, process=text.process,
        network=text.network, loss=text.loss, use=text.use, megabytes=size / 1e6,
        minutes=round(facts["seconds"] / 60), quality=describe_quality(known),
        **facts | {"init": f", started from the averaged weights of the {facts['init']} run" if facts["init"] else ""},
    ), encoding="utf-8")
    print(f"wrote {out / 'README.md'}", flush=True)


def main() -> None:
    """Export one model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=DESCRIPTIONS)
    parser.add_argument("--run", type=Path, help="folder that fashion_mnist.py wrote")
    parser.add_argument("--out", type=Path, help="default: scoremodels/pretrained/fashion-mnist-MODEL")
    parser.add_argument("--nfe", type=int, default=50, help="network evaluations of the samples")
    parser.add_argument("--num", type=int, default=10_000, help="samples to measure; 0 for none")
    parser.add_argument("--quality", type=Path, help="quality.json of an earlier export, in place of measuring")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out = arguments.out or Path(__file__).parents[2] / "scoremodels" / "pretrained" / f"fashion-mnist-{arguments.model}"
    try:
        if arguments.run is None:
            renew(out, nfe=arguments.nfe, num=arguments.num)
        else:
            export(arguments.model, arguments.run, out, nfe=arguments.nfe, num=arguments.num, quality=arguments.quality)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
