"""The two networks of the DLMT paper's experiments. Its MNIST network is only said to have five convolutions.

Both end in a mean over the image instead of an adaptive pooling layer, and shrink by strides instead of max pooling,
whose gradients CUDA does not compute deterministically.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ParameterError


class FiveConvNet(nn.Module):
    """Five 3x3 convolutions with batch normalisation and ReLU, then one linear layer; for 28x28 images.

    Args:
        channels: of the images.
        classes: how many.

    Takes float (N, channels, H, W) with H, W >= 4, gives logits (N, classes).
    """

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        widths, strides = (32, 32, 64, 64, 128), (1, 2, 1, 2, 1)
        layers: list[nn.Module] = []
        for width, stride in zip(widths, strides, strict=True):
            layers += [_conv3x3(channels, width, stride), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classify = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classify(self.features(images).mean((2, 3)))
        return logits


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., "Deep residual learning", 2015, fig. 2)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv3x3(channels, width, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            _conv3x3(width, width, 1),
            nn.BatchNorm2d(width),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet18 for 32x32 images: a 3x3 first convolution of stride 1 and no max pooling, else as published.

    Args:
        channels: of the images.
        classes: how many.
        width: channels of the first stage.

    Takes float (N, channels, H, W) with H, W >= 8, gives logits (N, classes).
    """

    def __init__(self, channels: int = 3, classes: int = 10, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv3x3(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
        for stage in range(4):
            out = width << stage
            layers += [_Block(channels, out, 1 if stage == 0 else 2), _Block(out, out, 1)]
            channels = out
        self.features = nn.Sequential(*layers)
        self.classify = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.classify(self.features(images).mean((2, 3)))
        return logits


def make_network(name: str, channels: int, classes: int) -> nn.Module:
    """The network of that name, with weights from torch's generator.

    Raises:
        ParameterError: there is none of that name.
    """
    if name == "fiveconv":
        return FiveConvNet(channels, classes)
    if name == "resnet18":
        return ResNet18(channels, classes)
    raise ParameterError(f"there is no network {name!r}; expected fiveconv or resnet18")


def _conv3x3(channels: int, width: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
