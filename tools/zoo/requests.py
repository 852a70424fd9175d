"""The bundled networks that recipes train: what `robustkit train` is asked for each, on the CPU with one thread."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from robustkit.events import TrainingEvent
from robustkit.models.sources.trained import WEIGHTS
from robustkit.records.files import dumps, write_text
from robustkit.spec import parse
from robustkit.training.recipes import Schedule
from robustkit.training.run import Request, train

WORK = Path("build/zoo")  # where trainings and evaluations go on when they were stopped


class Measured(NamedTuple):
    """A card's robust accuracy: under AutoAttack in linf, on the first n test images, in tiles of this width."""

    eps: str
    n: int
    tile: int = 64


_DIGITS = Request("", "digits-cnn", "digits", schedule=Schedule(60, 64), eps=0.2, device="cpu", threads=1)
_SCENES = Request(
    "", "scenes-cnn", "scenes:n=3000", "scenes:n=1000", Schedule(8, 64, rate=3e-3), eps=16 / 255, check=500,
    check_robust=50, device="cpu", threads=1,
)  # fmt: skip
_CIFAR10 = Request(
    "", "cifar-resnet8", "cifar10", device="cpu", precision="bf16", threads=1,
    schedule=Schedule(6, optimiser="sgd", rate=0.1, weight_decay=5e-4, shape="triangle", augment="crop-flip"),
)  # fmt: skip

REQUESTS: Mapping[str, Request] = {
    "digits-dverge": Request(
        "dverge:plain_epochs=15", "digits-cnn", "digits", schedule=Schedule(30, 128), device="cpu", threads=1
    ),
    "digits-self-ensemble": Request(
        "self-ensemble:backbone_epochs=25,resolutions=8+4,noise=0.05,jitter=1", "digits-cnn", "digits",
        schedule=Schedule(40, 32, rate=3e-3), device="cpu", threads=1,
    ),
    "digits-fusion": Request(  # no digit has a background: the second network is one more of the kind
        "fusion:foreground=digits-cnn,background=digits-teacher,alpha=0.01+0", "digits-cnn", "digits",
        schedule=Schedule(20, 64), device="cpu", threads=1,
    ),
    "scenes-dverge": Request(
        "dverge:plain_epochs=12", "scenes-cnn:width=8", "scenes:n=1000", "scenes:n=500", Schedule(16, 32, rate=3e-3),
        device="cpu", threads=1,
    ),
    "scenes-self-ensemble": Request(
        "self-ensemble:backbone_epochs=14,pool=4,noise=0.1", "scenes-cnn:width=8", "scenes:n=2000", "scenes:n=1000",
        Schedule(20, 32, rate=3e-3), device="cpu", threads=1,
    ),
    "scenes-fusion": Request(
        "fusion:foreground=scenes-foreground,background=scenes-background,alpha=0.01+0", "pooled-cnn", "scenes:n=4000",
        "scenes:n=1000", Schedule(8, 64, rate=3e-3), device="cpu", threads=1,
    ),
    "digits-trades": replace(_DIGITS, recipe="trades:eps=0.2,beta=6", schedule=Schedule(100, 64)),
    "digits-teacher": replace(_DIGITS, recipe="standard:temperature=20"),
    "digits-distillation": replace(_DIGITS, recipe="distillation:teacher=digits-teacher,temperature=20"),
    "scenes-cnn": replace(_SCENES, recipe="standard"),
    "scenes-cnn-at": replace(
        _SCENES, recipe="at:eps=16/255,steps=3", schedule=Schedule(16, 64, rate=3e-3)
    ),
    "scenes-trades": replace(_SCENES, recipe="trades:eps=16/255,beta=6,steps=3"),
    "scenes-teacher": replace(_SCENES, recipe="standard:temperature=20", schedule=Schedule(15, 64, rate=3e-3)),
    "scenes-distillation": replace(
        _SCENES, recipe="distillation:teacher=scenes-teacher,temperature=20", schedule=Schedule(15, 64, rate=3e-3)
    ),
    "cifar10-resnet8": replace(_CIFAR10, recipe="standard"),
    "cifar10-resnet8-at": replace(
        _CIFAR10, recipe="fast-at:eps=8/255", schedule=replace(_CIFAR10.schedule, epochs=5)
    ),
}  # fmt: skip

_ON_DIGITS, _ON_SCENES = Measured("0.2", 355), Measured("16/255", 200)
MEASURED: Mapping[str, Measured] = {
    **dict.fromkeys(
        ("digits-cnn", "digits-cnn-at", "digits-trades", "digits-teacher", "digits-distillation", "digits-fusion"),
        _ON_DIGITS,
    ),
    **dict.fromkeys(
        ("scenes-cnn", "scenes-cnn-at", "scenes-trades", "scenes-teacher", "scenes-distillation", "scenes-fusion"),
        _ON_SCENES,
    ),
    **dict.fromkeys(("cifar10-resnet8", "cifar10-resnet8-at"), Measured("8/255", 200)),
}


def make_trained(
    name: str,
    folder: Path,
    request: Request,
    on_event: Callable[[TrainingEvent], None],
    work: Path = WORK,
    *,
    fresh: bool = False,
) -> None:
    """Train a network of the zoo by its recipe and write its weights and its card."""
    card = train(request, work / name, fresh=fresh, on_event=on_event)
    asked = REQUESTS[name].schedule.epochs
    changed = "" if request.schedule.epochs == asked else f" --epochs {request.schedule.epochs}"
    content = {
        **card,
        "name": name,
        "dataset": parse(request.data).name,
        "command": f"python -m tools.zoo.make {name}{changed}",
        "licence": "Apache-2.0",
    }
    shutil.copyfile(work / name / WEIGHTS, folder / f"{name}.safetensors")
    write_text(folder / f"{name}.json", dumps(content))
