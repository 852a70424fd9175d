"""The small networks of the zoo, untrained. Inputs are [0,1] images; whatever normalisation there is stands inside."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.api import Images, Logits
from robustkit.models.sources.normalized import Normalise

Shortcut = Literal["A", "B"]


def digits_cnn(classes: int = 10) -> nn.Module:
    """Two convolutions and two linear layers for 1×8×8 images; 38,282 weights for ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def scenes_cnn(classes: int = 10, channels: int = 3, width: int = 16) -> nn.Module:
    """Four convolutions and two linear layers for 32×32 images; 99,082 weights for ten classes of colour images.

    `width` channels in the first; 8 makes 25,098 weights.
    """
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * width, 4 * width),
        nn.ReLU(),
        nn.Linear(4 * width, classes),
    )


def pooled_cnn(classes: int = 10, channels: int = 3) -> nn.Module:
    """Four convolutions with BatchNorm, average pooling and a linear layer, for images of about 32×32."""
    layers: list[nn.Module] = [Normalise((0.5,), (0.25,))]
    for stride, (before, after) in zip((1, 2, 2, 2), pairwise((channels, 16, 32, 48, 64)), strict=True):
        conv = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def cifar_resnet8(classes: int = 10, channels: int = 3, shortcut: Shortcut = "A") -> nn.Module:
    """He et al.'s CIFAR ResNet of depth 8, one block a stage; 75,290 weights for ten classes."""
    return CifarResNet(1, classes, channels, shortcut)


def cifar_resnet20(classes: int = 10, channels: int = 3, shortcut: Shortcut = "A") -> nn.Module:
    """He et al.'s CIFAR ResNet of depth 20, three blocks a stage; 269,722 weights for ten classes."""
    return CifarResNet(3, classes, channels, shortcut)


class CifarResNet(nn.Module):
    """A residual network of depth 6n+2 for images of about 32×32: three stages of n blocks with 16, 32, 64 channels.

    Pixels become (x − 0.5) / 0.25 inside. Layers by name, for recipes that train on features: `bn1`; of block i
    `blocks.i.bn1` (before its ReLU) and `blocks.i.sum` (after the addition, before the ReLU); `fc`.

    Source: He, Zhang, Ren, Sun 2016, arXiv:1512.03385, section 4.2 (shortcut A: strided identity and zero channels; B:
    1×1 convolution with BatchNorm).
    """

    def __init__(self, n: int, classes: int, channels: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stages = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        self.blocks = nn.Sequential(
            *(
                _Block(inner if i == 0 else outer, outer, stride if i == 0 else 1, shortcut)
                for inner, outer, stride in stages
                for i in range(n)
            )
        )
        self.fc = nn.Linear(64, classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight)

    def forward(self, x: Images) -> Logits:
        """The logits."""
        features = self.blocks(F.relu(self.bn1(self.conv1((x - 0.5) / 0.25))))
        logits: Logits = self.fc(features.mean((2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.sum = nn.Identity()  # so that the sum has a name
        self.shortcut: nn.Module
        if stride == 1 and inner == outer:
            self.shortcut = nn.Identity()
        elif shortcut == "A":
            self.shortcut = _Padded(outer - inner, stride)
        else:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Tensor) -> Tensor:
        inside = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(self.sum(inside + self.shortcut(x)))


class _Padded(nn.Module):
    """Every `stride`-th pixel, with zero channels on both sides."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.more // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.more - before))


ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = {
    "digits-cnn": digits_cnn,
    "scenes-cnn": scenes_cnn,
    "pooled-cnn": pooled_cnn,
    "cifar-resnet8": cifar_resnet8,
    "cifar-resnet20": cifar_resnet20,
}
