"""Trains the bundled networks again: `python -m tools.zoo.make digits-cnn`.

On one machine the same command gives the same weights.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import click
import torch
from safetensors.torch import save

from robustkit.datasets import Pair, load_dataset
from robustkit.errors import NotEstablishedError
from robustkit.evaluation import evaluate
from robustkit.models.sources.zoo import FOLDER, Zoo
from robustkit.models.sources.zoo.architectures import ARCHITECTURES
from robustkit.report.training import TrainingProgress
from robustkit.training.loop import accuracy
from tools.zoo.first import EpochDone, Plan, train
from tools.zoo.requests import MEASURED, REQUESTS, WORK, make_trained

PLANS: Mapping[str, Plan] = {
    "digits-cnn": Plan(epochs=15),
    "digits-cnn-at": Plan(epochs=100, eps=0.2),
    "scenes-background": Plan(epochs=4, rate=4e-3),
    "scenes-foreground": Plan(epochs=8, rate=4e-3),
}


class Subject(NamedTuple):
    """What a network is: its architecture, the data it learns from, and the data it is tried on and meant for."""

    architecture: str
    train: str
    test: str


_DIGITS = Subject("digits-cnn", "digits:split=train", "digits")
SUBJECTS: Mapping[str, Subject] = {
    "digits-cnn": _DIGITS,
    "digits-cnn-at": _DIGITS,
    # Both learn where shape and background tell nothing of each other, so that each knows its own part of an image.
    "scenes-background": Subject(
        "pooled-cnn", "scenes:context=0.1,label=context,n=2000,split=train", "scenes:label=context"
    ),
    "scenes-foreground": Subject("pooled-cnn", "scenes:context=0.1,n=6000,split=train", "scenes"),
}
_TRIED = 2000  # images of the test split


def make(name: str, folder: Path, plan: Plan, on_event: Callable[[EpochDone], None]) -> None:
    """Train a network of the zoo and write its weights and its card."""
    subject, threads = SUBJECTS[name], torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads round by their number
    try:
        data = load_dataset(subject.train)
        drawn = Pair(*data.batch(range(len(data))), data.name, data.classes)  # once, not in every epoch
        network = train(ARCHITECTURES[subject.architecture], drawn, plan, on_event)
        test = load_dataset(subject.test)
        x, y = test.batch(range(min(len(test), _TRIED)))
        clean = accuracy(network, x, y)
    finally:
        torch.set_num_threads(threads)
    weights = save({key: value.contiguous() for key, value in network.state_dict().items()})
    changed = "" if plan.epochs == PLANS[name].epochs else f" --epochs {plan.epochs}"
    kind = f"PGD adversarial training, linf eps {plan.eps:g}" if plan.eps else "standard training"
    card = {
        "name": name,
        "architecture": subject.architecture,
        "dataset": subject.test,
        "split": "train",
        "trained_on": subject.train,
        "classes": test.classes,
        "input_shape": list(x.shape[1:]),
        "eps": plan.eps,
        "notes": f"{kind}; clean accuracy {clean:.2%} on {_images(len(y), len(test))}",
        "recipe": {"optimiser": "AdamW, cosine", **asdict(plan)},
        "clean_accuracy": round(clean, 6),
        "command": f"python -m tools.zoo.make {name}{changed}",
        "licence": "Apache-2.0",
        "sha256": hashlib.sha256(weights).hexdigest(),
        "bytes": len(weights),
    }
    (folder / f"{name}.safetensors").write_bytes(weights)
    (folder / f"{name}.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _images(n: int, of: int) -> str:
    return f"the {n} test images" if n == of else f"the first {n} of {of} test images"


@click.command()
@click.argument("name", type=click.Choice(sorted([*PLANS, *REQUESTS])))
@click.option("--epochs", type=click.IntRange(1), help="Train for fewer or more epochs than the recipe says.")
@click.option("--only-measure", is_flag=True, help="Keep the weights, and measure the card's robust accuracy anew.")
@click.option("--fresh", is_flag=True, help="Forget what --work holds of a training or a run that was another.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=FOLDER, hidden=True)
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), default=WORK, show_default=True,
              help="Where trainings by recipes go on when they were stopped.")  # fmt: skip
def main(name: str, epochs: int | None, only_measure: bool, fresh: bool, folder: Path, work: Path) -> None:
    """Train the network NAME from scratch and write its weights and its card."""
    if only_measure and name not in MEASURED:
        raise click.UsageError(f"the card of {name} states no robust accuracy; these do: {', '.join(sorted(MEASURED))}")
    torch.set_num_threads(1)  # sums over several threads round by their number
    if not only_measure:
        _train(name, epochs, fresh, folder, work)
    if name in MEASURED and epochs is None:
        measure(name, folder, work, fresh=fresh)


def _train(name: str, epochs: int | None, fresh: bool, folder: Path, work: Path) -> None:
    if name in REQUESTS:
        request = REQUESTS[name]
        schedule = request.schedule if epochs is None else replace(request.schedule, epochs=epochs)
        with TrainingProgress() as progress:
            make_trained(name, folder, replace(request, schedule=schedule), progress, work, fresh=fresh)
        return
    plan = PLANS[name] if epochs is None else replace(PLANS[name], epochs=epochs)
    make(name, folder, plan, lambda e: click.echo(f"{e.epoch}/{e.epochs} loss {e.loss:.4f} accuracy {e.accuracy:.4f}"))


def measure(name: str, folder: Path, work: Path, *, fresh: bool = False) -> None:
    """Write the robust accuracy of a network, with its 95 % interval and what was run, into its card.

    The run is kept in `work`.

    Raises:
        NotEstablishedError: if there is none.
    """
    asked = MEASURED[name]
    work.mkdir(parents=True, exist_ok=True)
    module, card = Zoo(folder).load(name, {})
    out = work / f"{name}-autoattack-{asked.n}"
    record = evaluate(module, card.dataset, "autoattack", **asked._asdict(), device="cpu", out=out, fresh=fresh)
    found = record.robust_accuracy
    if found is None:
        raise NotEstablishedError(record.why_no_robust_accuracy)
    text = f"AutoAttack at linf {asked.eps}: {found} of {found.n} images"
    file = folder / f"{name}.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["notes"] = f"{content['notes'].partition('; AutoAttack')[0]}; {text}"
    content["robust"] = {"attack": "autoattack", "norm": "linf", **asked._asdict(), **found.to_json(), "text": text}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
