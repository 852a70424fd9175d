"""`robustkit train`: a recipe, an architecture and data to a folder that `--model ./DIR` evaluates."""

import shlex
from pathlib import Path
from typing import Any

import click

from robustkit.cli import completion, options, output
from robustkit.cli.choice import OneOf
from robustkit.spec import number


@click.command()
@click.argument("recipe", shell_complete=completion.recipe)
@click.option("--arch", required=True, metavar="NAME", help="digits-cnn, cifar-resnet8, timm/NAME, python/pkg.make.")
@click.option("--data", required=True, metavar="SPEC", shell_complete=completion.dataset,
              help="digits, cifar10; of a dataset with splits, train is used.")  # fmt: skip
@click.option("--test", default="", metavar="SPEC", help="For progress only; by default the data's test split.")
@options.out("The model's folder.", required=True)
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True, help="Passes over the data.")
@click.option("--batch", type=click.IntRange(1), default=128, show_default=True, help="Images a batch.")
@click.option("--optimiser", type=OneOf(["adamw", "sgd"]), default="adamw", show_default=True)
@click.option("--rate", default="2e-3", show_default=True, help="The peak learning rate.")
@click.option("--momentum", default="0.9", show_default=True, help="Of sgd.")
@click.option("--weight-decay", default="1e-4", show_default=True, help="The optimiser's.")
@click.option("--shape", type=OneOf(["cosine", "steps", "triangle", "constant"]), default="cosine",
              show_default=True, help="How the rate goes.")  # fmt: skip
@click.option("--milestones", default="0.5+0.75", show_default=True, metavar="A+B",
              help="Shares of the training after which steps multiplies by 0.1.")  # fmt: skip
@click.option("--augment", type=OneOf(["none", "crop", "crop-flip"]), default="none", show_default=True)
@options.seed()
@options.eps("Of the quick robust accuracy; by default the recipe's, else 8/255.")
@click.option("--check", type=int, default=1000, show_default=True, metavar="N", help="Test images for progress.")
@click.option("--check-robust", type=int, default=200, show_default=True, metavar="N", help="Of these under quick PGD.")
@options.device()
@click.option("--precision", type=OneOf(["float32", "bf16"]), default="float32", show_default=True,
              help="bf16: autocast of the forward passes.")  # fmt: skip
@options.threads
@options.trust
@options.fresh
@options.offline
@options.quiet
@options.json_to("the card")
def train(recipe: str, out: Path, fresh: bool, quiet: bool, json_to: str | None, **asked: Any) -> None:
    """Train a network by a RECIPE. Killed and run again, it continues, to the same weights.

    \b
    robustkit train standard --arch digits-cnn --data digits --epochs 15 --out my-model
    robustkit train at:eps=0.2,steps=10 --arch digits-cnn --data digits --out my-robust-model
    robustkit train trades:eps=8/255,beta=6 --arch timm/resnet18 --data cifar10 --augment crop-flip --out my-cifar-model
    robustkit eval --model ./my-robust-model --attack autoattack --eps 0.2
    \b
    `robustkit list recipes` and `robustkit show recipe at` say what there is. The folder holds model.safetensors,
    card.json, recipe.json (all settings, and this command) and curves.csv.
    """  # noqa: D301
    from robustkit.models.sources.trained import code_of
    from robustkit.report.training import TrainingProgress
    from robustkit.spec import listed
    from robustkit.training.recipes import Schedule
    from robustkit.training.run import Request
    from robustkit.training.run import train as run

    milestones = tuple(number(item) for item in listed(asked.pop("milestones")))
    numbers: dict[str, Any] = {name: number(asked.pop(name)) for name in ("rate", "momentum", "weight_decay")}
    shape = {name: asked.pop(name) for name in ("epochs", "batch", "optimiser", "shape", "augment")}
    asked["eps"] = number(asked["eps"]) if asked["eps"] else 0.0
    request = Request(recipe, schedule=Schedule(**shape, **numbers, milestones=milestones),
                      **{**asked, "threads": asked["threads"] or 0})  # fmt: skip
    progress = TrainingProgress()
    with progress, output.computing(quiet=quiet):
        card = run(request, out, fresh=fresh, on_event=(lambda event: None) if quiet else progress)
    where = shlex.quote(str(out) if out.is_absolute() or str(out).startswith(".") else f"./{out}")
    trusting = " --trust" if code_of(card) else ""
    text = f"{card['notes']}\nin {out}; evaluate it: robustkit eval --model {where}{trusting}"
    output.tell({"schema": "robustkit/card/1", **card}, text, json_to)
