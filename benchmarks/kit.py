"""The kit's networks and images: real weights from elsewhere, read from ROBUSTKIT_KIT (default ../shared/kit).

`python/benchmarks.kit.model:name=cifar10_cnn_a_adv` is a model spec, from the repository's root.
"""

import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent / os.environ.get("ROBUSTKIT_KIT", "../shared/kit")


class Normalised(nn.Module):
    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.mean) / self.std)


class Sequential(nn.Module):
    """Exactly the listed layers, by their names."""

    def __init__(self, layers: Sequence[Sequence[Any]]) -> None:
        super().__init__()
        self.plain = {"relu": F.relu, "sigmoid": torch.sigmoid, "flatten": lambda x: x.flatten(1),
                      "maxpool2": lambda x: F.max_pool2d(x, 2)}  # fmt: skip
        self.order = [name for name, *_ in layers]
        for name, *sizes in layers:
            if name.startswith("conv"):
                self.add_module(name, nn.Conv2d(*sizes))
            elif name.startswith("fc"):
                self.add_module(name, nn.Linear(*sizes))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order:
            x = self.plain[name](x) if name in self.plain else getattr(self, name)(x)
        return x


class BlockA(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.stride, self.pad = stride, outer // 4

    def forward(self, x: Tensor) -> Tensor:
        same = x if self.stride == 1 else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + same)


class ResNetA(nn.Module):
    """He et al.'s CIFAR network of depth 6n+2 with option-A shortcuts."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[BlockA(16, 16, 1) for _ in range(n)])
        self.layer2 = nn.Sequential(*[BlockA(32 if i else 16, 32, 1 if i else 2) for i in range(n)])
        self.layer3 = nn.Sequential(*[BlockA(64 if i else 32, 64, 1 if i else 2) for i in range(n)])
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


class BlockS(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1)
        same = stride == 1 and inner == outer
        self.shortcut = nn.Identity() if same else nn.Conv2d(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class ResNetS(nn.Module):
    """A small residual network without BatchNorm."""

    def __init__(self, stem: int, stem_stride: int, stages: Sequence[tuple[int, int]], flat: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, stem_stride, 1)
        widths = [stem, *(channels for channels, _ in stages)]
        self.blocks = nn.Sequential(*[BlockS(widths[i], *stage) for i, stage in enumerate(stages)])
        self.fc1 = nn.Linear(flat, 100)
        self.fc2 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.blocks(F.relu(self.conv1(x))).flatten(1))))


class LayerV(nn.Module):
    def __init__(self, dim: int, heads: int, mlp: int) -> None:
        super().__init__()
        self.heads = heads
        self.bn1, self.bn2 = nn.BatchNorm1d(dim), nn.BatchNorm1d(dim)
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(dim, mlp), nn.Linear(mlp, dim)

    def forward(self, t: Tensor) -> Tensor:
        u = over_channels(self.bn1, t)
        q, k, v = (f(u).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
        t = t + self.o((weights @ v).transpose(1, 2).flatten(2))
        return t + self.fc2(F.relu(self.fc1(over_channels(self.bn2, t))))


class VitBn(nn.Module):
    """A vision transformer with BatchNorm over the channel axis of all tokens."""

    def __init__(self, depth: int, heads: int, patch: int, dim: int, mlp: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, patch, patch)
        self.cls = nn.Parameter(torch.zeros(dim))
        self.pos = nn.Parameter(torch.zeros((32 // patch) ** 2 + 1, dim))
        self.layers = nn.Sequential(*[LayerV(dim, heads, mlp) for _ in range(depth)])
        self.bn = nn.BatchNorm1d(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        t = self.patch(x).flatten(2).transpose(1, 2)
        t = torch.cat([self.cls.expand(t.shape[0], 1, -1), t], 1) + self.pos
        return self.head(self.bn(self.layers(t).mean(1)))


def over_channels(norm: nn.BatchNorm1d, t: Tensor) -> Tensor:
    return norm(t.transpose(1, 2)).transpose(1, 2)


FAMILIES = {"sequential": Sequential, "resnet_cifar_A": ResNetA, "resnet_s": ResNetS, "vit_bn": VitBn}


@cache
def manifest() -> dict[str, Any]:
    """The kit's own description of its networks, by name."""
    return json.loads((ROOT / "manifest.json").read_text())


def model(name: str) -> nn.Module:
    """One of the kit's networks, normalisation inside, in eval mode, with frozen weights."""
    entry = manifest()[name]
    architecture = dict(entry["architecture"])
    network = FAMILIES[architecture.pop("family")](**architecture)
    weights = load_file(ROOT / entry["file"])
    counters = {key: value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")}
    network.load_state_dict({**counters, **weights})
    return Normalised(network, entry["mean"], entry["std"]).eval().requires_grad_(False)


def cifar10(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """CIFAR-10 test images at `indices`, (n, 3, 32, 32) in [0,1], and their labels."""
    x, y = images("cifar10_test")
    rows = np.asarray(indices)
    return torch.from_numpy(x[rows]).permute(0, 3, 1, 2).contiguous().float() / 255, torch.from_numpy(y[rows])


def mnist(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    """MNIST test images at `indices`, (n, 1, 28, 28) in [0,1], and their labels."""
    x, y = images("mnist_test")
    rows = np.asarray(indices)
    return torch.from_numpy(x[rows]).unsqueeze(1).float() / 255, torch.from_numpy(y[rows])


@cache
def images(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(ROOT / f"{name}.npz", allow_pickle=False) as arrays:
        return arrays["x"], arrays["y"]
