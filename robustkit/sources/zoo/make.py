"""Trains the bundled networks again: `python -m robustkit.sources.zoo.make digits-cnn`.

On one machine the same command gives the same weights. A training that was stopped goes on, in build/zoo.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save

from robustkit.datasets import load_dataset
from robustkit.recipes import Schedule
from robustkit.sources.zoo import FOLDER
from robustkit.sources.zoo.architectures import ARCHITECTURES
from robustkit.sources.zoo.first import Plan
from robustkit.sources.zoo.first import train as train_first
from robustkit.training import run
from robustkit.training.events import EpochDone
from robustkit.training.loop import accuracy

Event = Callable[[Any], None]
WORK = Path("build/zoo")

PLANS: Mapping[str, Plan] = {
    "digits-cnn": Plan(epochs=15),
    "digits-cnn-at": Plan(epochs=100, eps=0.2),
}


@dataclass(frozen=True, slots=True)
class Bundled:
    """A network that `robustkit train` trains; AutoAttack at `attack_eps` measures the first `attack_n` test images."""

    request: run.Request
    attack_eps: str = ""
    attack_n: int = 0


def _digits(recipe: str, epochs: int) -> run.Request:
    return run.Request(recipe, "digits-cnn", "digits", schedule=Schedule(epochs=epochs, batch=64), eps=0.2, threads=1)


def _scenes(recipe: str, epochs: int) -> run.Request:
    schedule = Schedule(epochs=epochs, batch=64)
    return run.Request(
        recipe, "scenes-cnn", "scenes:n=4000", "scenes", schedule=schedule, eps=4 / 255, threads=1, device="cpu"
    )


def _cifar10(recipe: str, epochs: int) -> run.Request:
    schedule = Schedule(
        epochs=epochs, optimiser="sgd", rate=0.1, weight_decay=5e-4, shape="triangle", augment="crop-flip"
    )
    return run.Request(recipe, "cifar-resnet8", "cifar10", schedule=schedule, precision="bf16", threads=1, device="cpu")


BUNDLED: Mapping[str, Bundled] = {
    "digits-trades": Bundled(_digits("trades:eps=0.2,beta=6", 100), "0.2", 355),
    "digits-teacher": Bundled(_digits("standard:temperature=20", 60)),
    "digits-distillation": Bundled(_digits("distillation:teacher=digits-teacher,temperature=20", 60)),
    "scenes-cnn": Bundled(_scenes("standard", 10), "4/255", 200),
    "scenes-cnn-at": Bundled(_scenes("at:eps=4/255,steps=5", 10), "4/255", 200),
    "scenes-trades": Bundled(_scenes("trades:eps=4/255,beta=6,steps=5", 10), "4/255", 200),
    "scenes-teacher": Bundled(_scenes("standard:temperature=20", 20)),
    "scenes-distillation": Bundled(_scenes("distillation:teacher=scenes-teacher,temperature=20", 20)),
    "cifar10-resnet8": Bundled(_cifar10("standard", 6), "8/255", 200),
    "cifar10-resnet8-at": Bundled(_cifar10("fast-at:eps=8/255", 5), "8/255", 200),
}


def make(name: str, folder: Path, on_event: Event, epochs: int | None = None, work: Path = WORK) -> None:
    """Train a network of the zoo and write its weights and its card."""
    if name in PLANS:
        _make_first(name, folder, PLANS[name] if epochs is None else replace(PLANS[name], epochs=epochs), on_event)
        return
    bundled = BUNDLED[name]
    request = bundled.request
    if epochs is not None:
        request = replace(request, schedule=replace(request.schedule, epochs=epochs))
    card = dict(run.train(request, work / name, on_event=on_event))
    card["licence"] = "Apache-2.0"
    if bundled.attack_eps:
        card["robust"] = measured(work / name, card["dataset"], bundled)
        card["notes"] += f"; AutoAttack at linf {bundled.attack_eps}: {card['robust']['text']}"
    shutil.copyfile(work / name / "model.safetensors", folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measured(trained: Path, data: str, bundled: Bundled) -> dict[str, Any]:
    """Robust accuracy under AutoAttack, with its 95 % interval, and what was run."""
    from robustkit.engine import evaluate

    where = trained if trained.is_absolute() else f"./{trained}"
    record = evaluate(str(where), data, "autoattack", eps=bundled.attack_eps, n=bundled.attack_n, device="cpu",
                      out=trained.with_name(f"{trained.name}-autoattack"))  # fmt: skip
    found = record.robust_accuracy
    if found is None:
        raise RuntimeError(f"{trained}: a sample is UNKNOWN, so there is no robust accuracy")
    return {
        "attack": "autoattack",
        "norm": "linf",
        "eps": bundled.attack_eps,
        "n": found.n,
        "accuracy": float(found),
        "interval": [found.low, found.high],
        "text": f"{found} of {found.n} images",
    }


def _make_first(name: str, folder: Path, plan: Plan, on_event: Event) -> None:
    """Train one of the first two networks."""
    architecture, threads = "digits-cnn", torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads round by their number
    try:
        network = train_first(ARCHITECTURES[architecture], load_dataset("digits:split=train"), plan, on_event)
        test = load_dataset("digits")
        clean = accuracy(network, *test.batch(range(len(test))))
    finally:
        torch.set_num_threads(threads)
    weights = save({key: value.contiguous() for key, value in network.state_dict().items()})
    changed = "" if plan.epochs == PLANS[name].epochs else f" --epochs {plan.epochs}"
    kind = f"PGD adversarial training, linf eps {plan.eps:g}" if plan.eps else "standard training"
    card = {
        "name": name,
        "architecture": architecture,
        "dataset": "digits",
        "split": "train",
        "classes": 10,
        "input_shape": [1, 8, 8],
        "eps": plan.eps,
        "notes": f"{kind}; clean accuracy {clean:.2%} on the {len(test)} test images",
        "recipe": {"optimiser": "AdamW, cosine", **asdict(plan)},
        "clean_accuracy": round(clean, 6),
        "command": f"python -m robustkit.sources.zoo.make {name}{changed}",
        "licence": "Apache-2.0",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "bytes": len(weights),
    }
    (folder / f"{name}.safetensors").write_bytes(weights)
    (folder / f"{name}.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _line(event: Any) -> None:
    """Print an epoch's line, of either loop."""
    if hasattr(event, "accuracy"):
        click.echo(f"{event.epoch}/{event.epochs} loss {event.loss:.4f} accuracy {event.accuracy:.4f}")
    elif isinstance(event, EpochDone):
        loss, clean, robust = event.losses["loss"], event.clean, event.robust
        click.echo(f"{event.epoch} loss {loss:.4f} test {clean:.4f} clean, {robust:.4f} under quick PGD")


@click.command()
@click.argument("name", type=click.Choice(sorted([*PLANS, *BUNDLED])))
@click.option("--epochs", type=click.IntRange(1), help="Train for fewer or more epochs than the recipe says.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=FOLDER, hidden=True)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), default=WORK, show_default=True,
              help="Where trainings and evaluations go on when they were stopped.")  # fmt: skip
def main(name: str, epochs: int | None, folder: Path, work: Path) -> None:
    """Train the network NAME from scratch and write its weights and its card."""
    make(name, folder, _line, epochs, work)


if __name__ == "__main__":
    main()
