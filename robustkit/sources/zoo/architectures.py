"""The small networks of the zoo, untrained. Inputs are [0,1] images; whatever normalisation there is stands inside."""

from collections.abc import Callable, Mapping

from torch import nn


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


ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = {"digits-cnn": digits_cnn}
