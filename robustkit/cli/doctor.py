"""The command `robustkit doctor`: what is on this machine, and whether a model gets the input it was trained on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from robustkit.cli import options, output
from robustkit.cli.endings import end
from robustkit.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import Console

    from robustkit.doctor import Diagnosis
    from robustkit.doctor.machine import Machine


@click.command()
@options.model(required=False)
@options.dataset()
@options.defense()
@options.first_n("N images, from all over it.", default=256)
@options.norm(about="Of a robustbench model.")
@options.outputs
@options.trust
@options.device()
@options.tile
@options.offline
@options.json_to("what was found")
def doctor(model: str | None, json_to: str | None, **asked: Any) -> None:
    """What robustkit finds here; with --model, whether the model gets the input it was trained on.

    \b
    robustkit doctor
    robustkit doctor --model digits-cnn-at
    robustkit doctor --model ./net.safetensors:arch=timm/resnet18 --dataset cifar10 -n 1000
    \b
    The model's clean accuracy as given is compared with other mean/std, pixels in 0–255, BGR, swapped axes and
    labels numbered otherwise, on the same images; only what is clearly better (5 points, p < 0.001) is a finding.
    Exit codes: 0 all is well, 2 bad usage, 3 a finding.
    """  # noqa: D301
    from robustkit.doctor.machine import machine

    with output.computing():
        found = machine()
        diagnosis = _diagnosis(model, **asked) if model else None
    data = {"schema": "robustkit/doctor/1", "machine": found.to_json(), "model": model,
            "defense": list(asked["defense"]),
            "diagnosis": diagnosis.to_json() if diagnosis else None}  # fmt: skip
    if json_to != "-":
        _show(found, " behind ".join([model or "", *asked["defense"]]), diagnosis)
    output.tell(data, "", json_to)
    if found.broken_plugins or found.namesake or (diagnosis and not diagnosis.healthy):
        end(ExitCode.NOT_ESTABLISHED)


def _diagnosis(
    model: str, *, dataset: str | None, defense: Sequence[str], n: int, norm: str, tile: int | None, **asked: Any
) -> "Diagnosis":
    from robustkit import datasets
    from robustkit.doctor import diagnose, spread
    from robustkit.models import defended
    from robustkit.models.opening import check_model, load

    named, defenses = options.dataset_of(model, dataset), defended.resolve(defense)
    check_model(model, named, norm)
    data = datasets.resolve(named)
    loaded = load(model, data.name, norm, **asked)
    x, y = data.batch(spread(len(data), n))
    module, behind = defended.protect(loaded.module, defenses), bool(defenses) or "defended/" in model
    return diagnose(module, x, y, loaded.card, outputs=loaded.outputs, tile=tile, thorough=True, defended=behind)


def _show(found: "Machine", model: str, diagnosis: "Diagnosis | None") -> None:
    from rich.console import Console

    from robustkit.doctor.machine import install

    console = Console(highlight=False, markup=False, soft_wrap=True)
    rows = [
        ("devices", ", ".join(found.devices)),
        ("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())),
        ("cache", found.cache),
    ]
    rows += [("missing", f"{', '.join(names)}: {install(extra)}") for extra, names in found.missing.items()]
    rows += [("plugin", f"broken: {reason}") for reason in found.broken_plugins]
    rows += [("package", found.namesake)] if found.namesake else []
    for name, text in rows:
        console.print(f"{name:<9} {text or 'none'}")
    if diagnosis is not None:
        console.print()
        _show_diagnosis(console, model, diagnosis)


def _show_diagnosis(console: "Console", model: str, diagnosis: "Diagnosis") -> None:
    from rich.table import Table

    table = Table(title=f"clean accuracy of {model}", title_justify="left")
    for name in ("setting", "accuracy [95 %]", "images", "better", "worse", "p"):
        table.add_column(name, justify="left" if name == "setting" else "right", no_wrap=name != "setting")
    for i, trial in enumerate(diagnosis.trials):
        paired = (str(trial.better), str(trial.worse), f"{trial.p:.2g}") if i else ("", "", "")
        failed = f" (fails: {trial.error})" if trial.error else ""
        table.add_row(trial.setting + failed, str(trial.right), str(trial.right.n), *paired)
    console.print(table)
    for note in diagnosis.notes:
        console.print(f"note: {note}")
    for finding in diagnosis.findings:
        console.print(f"finding ({finding.kind}): {finding.message}")
    if diagnosis.healthy:
        console.print("no finding: no other setting is clearly better")
