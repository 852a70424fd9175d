"""The fallen around tiny networks, fitted on a few random images: what tests of them share."""

import importlib
from functools import partial

import torch
from robustkit_defenses.fallen import fitted
from torch import nn

from robustkit import plugins
from robustkit.datasets import Pair
from robustkit.models.ensembles import Ensemble
from tests import toys

FITS = {
    "mean-sparse": lambda module, net, data, settings: module.fit(net, data, 40),
    "odds": lambda module, net, data, settings: module.fit(net, data, settings, 40),
    "quilting": lambda module, net, data, settings: module.fit(data, 60, images=40),
    "mixup-inference": lambda module, net, data, settings: module.fit(data, 4, 40),
    "dknn": lambda module, net, data, settings: module.fit(net, data, 40),
    "lid": lambda module, net, data, settings: module.fit(net, data, settings, 40),
    "decoder-projection": lambda module, net, data, settings: module.fit(data, images=40, epochs=1),
    "magnet": lambda module, net, data, settings: module.fit(net, data, settings, images=40, epochs=1),
    "diffusion": lambda module, net, data, settings: module.fit(data, images=40, epochs=1),
}
OF_MEMBERS = {"ecoc": 4, "empir": 3, "random-mixture": 2}
NAMES = [name for name, entry in plugins.table("defenses").items() if ".fallen." in entry.entry.path]
RANDOMISED = {
    "sap", "hedge", "odds", "tv-minimisation", "quilting", "me-net", "mixup-inference", "magnet", "diffusion",
    "random-mixture",
}  # fmt: skip


def stack(channels=1, height=10, width=12, seed=1):
    """A plain stack for four classes."""
    net = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * height * width, 8), nn.ReLU(),
        nn.Linear(8, 4),
    )  # fmt: skip
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=toys.seeded(seed * 100 + p.numel())) * 2 / p[0].numel() ** 0.5
    return net.eval().requires_grad_(False)


def network(name, channels=1):
    """What a defense of this name goes around."""
    if name in OF_MEMBERS:
        return Ensemble([stack(channels, seed=seed) for seed in range(OF_MEMBERS[name])]).eval()
    return stack(16 * channels if name == "thermometer" else channels)


def made(name, folder, channels=1, **more):
    """The settings of a defense, with a file of what it fits if it fits anything."""
    kind, few = (
        plugins.load("defenses", name),
        {"ecoc": {"classes": 4}, "odds": {"draws": 3, "threshold": -9.0}, "random-mixture": {"weights": (0.5, 0.5)}},
    )
    make = partial(kind, **few.get(name, {}) | more)
    if name not in FITS:
        return make()
    file = folder / f"{name}-{channels}.safetensors"
    if not file.exists():
        x = torch.rand(40, channels, 10, 12, generator=toys.seeded(5))
        data, module = Pair(x, torch.arange(40) % 4, classes=4), importlib.import_module(kind.__module__)
        fitted.save(file, name, FITS[name](module, network(name, channels), data, make()))
    return make(fitted=str(file))
