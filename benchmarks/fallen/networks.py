"""The small networks that the fallen stand before, trained here and kept in a folder: seeded, seconds each."""

import copy
import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from robustkit_defenses.fallen import fitted
from safetensors.torch import load_file, save_file
from torch import nn

from robustkit import plugins
from robustkit.datasets import Pair, load_dataset
from robustkit.models.ensembles import Ensemble
from robustkit.models.sources import load_model, trained
from robustkit.training.data import held
from robustkit.training.loop import Loop, Watch
from robustkit.training.recipes import Schedule, Task
from tools.zoo.first import pgd

CACHE = Path(".benchmarks/fallen")
CPU = torch.device("cpu")


def bundled(name: str) -> nn.Module:
    """A network of the zoo, its weights frozen."""
    return load_model(name)[0].requires_grad_(False)


def digits_like(width: int = 1, channels: int = 1, outputs: int = 10) -> nn.Module:
    """digits-cnn, wider, for more channels or with other outputs."""
    return nn.Sequential(
        nn.Conv2d(channels, 16 * width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16 * width, 32 * width, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(512 * width, 64), nn.ReLU(), nn.Linear(64, outputs),
    )  # fmt: skip


def small(outputs: int = 10) -> nn.Module:
    """A smaller one, of which an ensemble has several."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, outputs),
    )  # fmt: skip


def ensemble(make: Callable[[], nn.Module], n: int) -> Callable[[], nn.Module]:
    """An ensemble of new networks."""
    return lambda: Ensemble([make() for _ in range(n)])


def learnt(
    name: str, make: Callable[[], nn.Module], *recipes: str, epochs: int = 25, data: str = "digits"
) -> nn.Module:
    """A network trained by one recipe after another, so many epochs each; from the folder, if it was trained before."""
    file = CACHE / "networks" / f"{name}.safetensors"
    network = make()
    if not file.exists():
        source = load_dataset(f"{data}:split=train")
        images = held(source, CPU)
        for recipe in recipes:
            schedule = Schedule(epochs=epochs, batch=64)
            start = None if recipe is recipes[0] else copy.deepcopy(network)
            task = Task(source.classes, images.image, make if start is None else lambda start=start: start, load_model)
            ended = {}
            Loop(
                trained.recipe(recipe), task, images, schedule, Watch(images, 0.1, 1, 1),
                save=lambda checkpoint, ended=ended: ended.update(checkpoint.network),
            ).train()  # fmt: skip
            network.load_state_dict(ended)
        kept(file, network)
    network.load_state_dict(load_file(file))
    return network.eval().requires_grad_(False)


def second_member(first: nn.Module, eps: float) -> nn.Module:
    """The second network of a boosted mixture: trained on adversarials of the first."""
    file, network = CACHE / "networks" / "second-member.safetensors", digits_like()
    if file.exists():
        network.load_state_dict(load_file(file))
        return network.eval().requires_grad_(False)
    x, y = load_dataset("digits:split=train").batch(range(1400))
    adv = pgd(first, x, y, eps, 20, torch.Generator().manual_seed(0))
    data = held(Pair(adv, y, "adversarials", 10), CPU)
    task = Task(10, data.image, digits_like, load_model)
    loop = Loop(trained.recipe("standard"), task, data, Schedule(epochs=25, batch=64), Watch(data, 0.1, 1, 1))
    network, _ = loop.train()
    kept(file, network)
    return network.eval().requires_grad_(False)


def kept(file: Path, network: nn.Module) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous().clone() for name, value in network.state_dict().items()}, file)


def fit(name: str, *given: object, data: str = "digits", tag: str = "", **more: object) -> str:
    """The file of what a defense fits on training images; from the folder, if it was fitted before."""
    file = CACHE / "fitted" / f"{name}{tag}.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        module = importlib.import_module(plugins.load("defenses", name).__module__)
        before = [one for one in given if isinstance(one, nn.Module)]
        after = [one for one in given if not isinstance(one, nn.Module)]
        fitted.save(file, name, module.fit(*before, load_dataset(f"{data}:split=train"), *after, **more))
    return str(file)
