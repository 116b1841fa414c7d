"""Train the Fashion-MNIST classifier whose features measure samples: `python scripts/train/classifier.py`.

Batch-normalised convolutions, AdamW, the learning rate warmed up and brought linearly to zero, images
mirrored and shifted by up to one pixel. Writes the folded weights, the configuration, the reference
statistics of the 60,000 training images and the model card.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from eval.classifier import FashionClassifier
from eval.data import fashion_mnist
from eval.features import FeatureExtractor, fashion_mnist_features, statistics_of
from eval.fid import Moments, frechet_distance
from eval.images import from_bytes


def augment(images: Tensor, generator: torch.Generator, shift: int = 1) -> Tensor:
    """Mirror half of the images and move each by up to ``shift`` pixels, filling with background."""
    batch, _, rows, columns = images.shape
    padded = F.pad(images, (shift,) * 4, value=-1.0)
    offset = torch.randint(2 * shift + 1, (2, batch, 1), generator=generator)
    i = torch.arange(rows) + offset[0]
    j = torch.arange(columns) + offset[1]
    mirrored = torch.rand(batch, 1, generator=generator) < 0.5
    j = torch.where(mirrored, j.flip(1), j)
    return padded[torch.arange(batch)[:, None, None], 0, i[:, :, None], j[:, None, :]][:, None]


def train(images: Tensor, labels: Tensor, *, epochs: int, batch: int, lr: float, seed: int) -> FashionClassifier:
    """Minimise the cross-entropy; return the network with normalisation folded."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = FashionClassifier(normalise=True).to(memory_format=torch.channels_last).train()
    decay = [p for p in net.parameters() if p.ndim > 1]
    other = [p for p in net.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([dict(params=decay, weight_decay=0.05), dict(params=other, weight_decay=0.0)],
                                  lr=lr, betas=(0.9, 0.99), fused=True)
    steps_per_epoch = len(images) // batch
    steps, step, started = epochs * steps_per_epoch, 0, time.perf_counter()
    for epoch in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        total = 0.0
        for index in range(steps_per_epoch):
            chosen = order[index * batch:(index + 1) * batch]
            for group in optimizer.param_groups:
                group["lr"] = lr * min((step + 1) / 200, (steps - step) / (0.8 * steps), 1.0)
            x = augment(images[chosen], generator).to(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(x), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            step, total = step + 1, total + loss.item()
        print(f"epoch {epoch + 1}/{epochs} loss {total / steps_per_epoch:.4f} {time.perf_counter() - started:.0f} s",
              flush=True)
    return net.folded()


@torch.inference_mode()
def accuracy(net: FashionClassifier, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of images classified rightly."""
    right = [net(x).argmax(1) == y for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return torch.cat(right).double().mean().item()


def real_distances(extractor: FeatureExtractor, reference: Moments, images: Tensor) -> dict[str, float]:
    """Mean distance of n unseen real images from the reference, by n: what perfect samples would get."""
    distances = {}
    for count in (500, 1000, 2000, 5000, 10_000):
        parts = [frechet_distance(statistics_of(extractor, part), reference)
                 for part in images.split(count) if len(part) == count]
        distances[str(count)] = sum(parts) / len(parts)
    return distances


CARD = """---
license: apache-2.0
---

# fashion-mnist-classifier

A small convolutional classifier of Fashion-MNIST. Its 128 penultimate features, weighted spatial means of the last
feature maps, are what `fewstep sweep` compares samples with real images by. A Fréchet distance on them is called
*Fréchet distance (fashion-mnist-classifier)*; it is not FID and compares with no published FID.

| | |
|---|---|
| Input | 1 × 28 × 28 in [-1, 1] |
| Network | four 3 × 3 convolutions with ReLU (widths {widths}), weighted mean over positions, linear layer; \
batch normalisation folded |
| Parameters | {parameters:,} ({size:.2f} MB) |
| Data | Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747, MIT licence), 60,000 training images, \
mirrored and shifted by up to one pixel |
| Training | {epochs} epochs, batch {batch}, AdamW, learning rate {lr}, seed {seed}, \
{seconds} s on {hardware}, PyTorch {torch}; `scripts/train/classifier.py` |
| Test accuracy | {accuracy:.2f} % of the 10,000 test images |
| Licence of the weights | Apache-2.0 |

`reference.npz` holds mean (`mu`), covariance (`sigma`) and count of the features of the 60,000 training images.

Distance of real, unseen images (the test set, mean over disjoint parts) from that reference, which is what perfect
samples would get; it falls as one over their number because the estimate of a covariance from few samples is biased:

| images | {counts} |
|---|{rules}|
| distance | {distances} |
"""


def write_folder(folder: Path, facts: dict[str, object], train_images: Tensor, test_images: Tensor) -> None:
    """Write reference statistics, configuration and card beside the weights."""
    extractor = fashion_mnist_features(folder)
    reference = statistics_of(extractor, train_images).moments()
    reference.save(folder / "reference.npz")
    real = real_distances(extractor, reference, test_images)
    config = json.loads((folder / "config.json").read_text())
    config |= dict(training=facts, real_distances=real)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "README.md").write_text(CARD.format(
        **facts, widths=", ".join(map(str, config["widths"])), accuracy=100 * float(facts["test_accuracy"]),  # type: ignore[arg-type]
        size=(folder / "model.safetensors").stat().st_size / 1e6, counts=" | ".join(f"{int(k):,}" for k in real),
        rules="---|" * (len(real) - 1) + "---", distances=" | ".join(f"{v:.3f}" for v in real.values())))


def main() -> None:
    """Train, test, and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("eval/pretrained/fashion-mnist-classifier"))
    parser.add_argument("--epochs", type=int, default=13)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keep", action="store_true", help="keep the weights; redo statistics and card")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train_images, train_labels = fashion_mnist("train")
    test_images, test_labels = fashion_mnist("test")
    if arguments.keep:
        facts = json.loads((arguments.out / "config.json").read_text())["training"]
    else:
        started = time.perf_counter()
        net = train(from_bytes(train_images), train_labels, epochs=arguments.epochs, batch=arguments.batch,
                    lr=arguments.lr, seed=arguments.seed)
        seconds = time.perf_counter() - started
        facts = dict(test_accuracy=accuracy(net, from_bytes(test_images), test_labels), epochs=arguments.epochs,
                     batch=arguments.batch, lr=arguments.lr, seed=arguments.seed, seconds=round(seconds),
                     parameters=sum(p.numel() for p in net.parameters()), torch=torch.__version__,
                     hardware=f"{platform.machine()} CPU, {arguments.threads} thread(s)")
        arguments.out.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, arguments.out / "model.safetensors")
        (arguments.out / "config.json").write_text(json.dumps(net.config, indent=1) + "\n")
    write_folder(arguments.out, facts, train_images, test_images)
    print((arguments.out / "README.md").read_text(), flush=True)


if __name__ == "__main__":
    main()
