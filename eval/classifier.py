"""A small classifier of Fashion-MNIST, whose penultimate layer gives the features of a Fréchet distance."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class FashionClassifier(nn.Module):
    """Four convolutions with ReLU, a weighted mean over positions (own weights for each channel), one linear layer.

    Batch normalisation, where training uses it, is folded into the convolutions by :meth:`folded`, so
    that what ships is plain convolutions with a bias: fast, and the same in training and evaluation mode.

    Args:
        widths: channels of the four convolutions; the last is the number of features.
        normalise: whether batch normalisation follows each convolution.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (16, 48, 96, 128), normalise: bool = False) -> None:
        super().__init__()
        self.config = dict(widths=list(widths))
        inputs = (1, *widths[:-1])
        strides = (1, 2, 2, 2)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=s, padding=1, bias=not normalise)
            for a, b, s in zip(inputs, widths, strides, strict=True))
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) if normalise else nn.Identity() for w in widths)
        self.pool = nn.Parameter(torch.full((widths[-1], 4, 4), 1 / 16))
        self.head = nn.Linear(widths[-1], len(CLASSES))

    def features(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch features"]:
        """Map images in [-1, 1] to weighted means of the last feature maps."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)), inplace=True)
        return (x * self.pool).sum((2, 3))

    def forward(self, x: Float[Tensor, "batch 1 28 28"]) -> Float[Tensor, "batch classes"]:
        """Map images in [-1, 1] to the logits of the ten classes."""
        return self.head(self.features(x))

    def folded(self) -> FashionClassifier:
        """Return the same function (in evaluation mode) without batch normalisation."""
        plain = FashionClassifier(tuple(self.config["widths"]))  # type: ignore[arg-type]
        for source, norm, target in zip(self.convolutions, self.norms, plain.convolutions, strict=True):
            assert isinstance(source, nn.Conv2d)
            fused = fuse_conv_bn_eval(source.eval(), norm.eval()) if isinstance(norm, nn.BatchNorm2d) else source
            target.load_state_dict(fused.state_dict())
        plain.pool.data.copy_(self.pool.data)
        plain.head.load_state_dict(self.head.state_dict())
        return plain.eval()
