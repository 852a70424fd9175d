"""Trains the bundled networks again: `python -m robustkit.sources.zoo.make digits-cnn`.

On one machine the same command gives the same bytes.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import click
import torch
from safetensors.torch import save

from robustkit.datasets import load_dataset
from robustkit.report.training import TrainingProgress
from robustkit.sources.zoo import FOLDER
from robustkit.sources.zoo.architectures import ARCHITECTURES
from robustkit.sources.zoo.first import EpochDone, Plan, train
from robustkit.sources.zoo.requests import REQUESTS, make_trained
from robustkit.training.loop import accuracy

PLANS: Mapping[str, Plan] = {
    "digits-cnn": Plan(epochs=15),
    "digits-cnn-at": Plan(epochs=100, eps=0.2),
}


def make(name: str, folder: Path, plan: Plan, on_event: Callable[[EpochDone], None]) -> None:
    """Train a network of the zoo and write its weights and its card."""
    architecture, threads = "digits-cnn", torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads round by their number
    try:
        network = train(ARCHITECTURES[architecture], load_dataset("digits:split=train"), plan, on_event)
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


@click.command()
@click.argument("name", type=click.Choice(sorted([*PLANS, *REQUESTS])))
@click.option("--epochs", type=click.IntRange(1), help="Train for fewer or more epochs than the recipe says.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=FOLDER, hidden=True)
def main(name: str, epochs: int | None, folder: Path) -> None:
    """Train the network NAME from scratch and write its weights and its card."""
    if name in REQUESTS:
        request = REQUESTS[name]
        schedule = request.schedule if epochs is None else replace(request.schedule, epochs=epochs)
        with TrainingProgress() as progress:
            make_trained(name, folder, replace(request, schedule=schedule), progress)
        return
    plan = PLANS[name] if epochs is None else replace(PLANS[name], epochs=epochs)
    make(name, folder, plan, lambda e: click.echo(f"{e.epoch}/{e.epochs} loss {e.loss:.4f} accuracy {e.accuracy:.4f}"))


if __name__ == "__main__":
    main()
