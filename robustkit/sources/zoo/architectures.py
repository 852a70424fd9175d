"""The small networks of the zoo, untrained. Inputs are [0,1] images; whatever normalisation there is stands inside."""

from collections.abc import Callable, Mapping
from itertools import pairwise

from torch import nn

from robustkit.sources.normalized import Normalise


def digits_cnn() -> nn.Module:
    """Two convolutions and two linear layers for 1×8×8 images in ten classes; 38,282 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def scenes_cnn() -> nn.Module:
    """Four convolutions with BatchNorm, average pooling and a linear layer for 3×32×32 images in ten classes."""
    layers: list[nn.Module] = [Normalise((0.5,), (0.25,))]
    for stride, (before, after) in zip((1, 2, 2, 2), pairwise((3, 16, 32, 48, 64)), strict=True):
        conv = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {"digits-cnn": digits_cnn, "scenes-cnn": scenes_cnn}
