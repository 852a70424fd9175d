"""The command `robustkit corruptions`. What is slow to import is imported where it is used."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import click

from robustkit.cli import cache as cli_cache
from robustkit.cli import completion
from robustkit.cli import options as cli_options
from robustkit.errors import UsageError


@click.command()
@click.option(
    "--model",
    required=True,
    metavar="SPEC",
    shell_complete=completion.model,
    help="digits-cnn-at, robustbench/NAME, ./net.safetensors:arch=…",
)
@click.option(
    "--dataset",
    "--data",
    required=True,
    metavar="SPEC",
    shell_complete=completion.dataset,
    help="cifar10-c, cifar100-c, imagenet-c; or any other, corrupted on the fly.",
)
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    help="gaussian-noise, jpeg …; repeat it, or separate by commas. By default all standard ones.",
)
@click.option("--severity", default="1,2,3,4,5", show_default=True, metavar="1,3,5")
@click.option(
    "--baseline",
    metavar="alexnet|FILE",
    help="What mCE is relative to: a record written by --out; for imagenet-c AlexNet's published errors.",
)
@click.option("-n", "n", type=int, metavar="N", help="The first N samples.")
@click.option("--indices", metavar="0-199,400", help="These samples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random corruptions made here.")
@click.option("--outputs", type=click.Choice(["logits", "probs"]), default="logits", show_default=True)
@click.option("--trust", is_flag=True, help="Let models run code of theirs: pickled checkpoints, callables in a card.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda:0",
              shell_complete=completion.device)  # fmt: skip
@click.option("--tile", type=click.IntRange(1), help="Width of the batches the model sees.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the record there, as JSON.")
@cli_options.json_option("the record")
@cli_cache.offline
@click.option("--quiet", is_flag=True, help="No progress.")
def corruptions(
    model: str, dataset: str, kinds: tuple[str, ...], severity: str, out: Path | None, json_to: str | None,
    quiet: bool, **asked: Any,
) -> None:  # fmt: skip
    """Measure a model's accuracy under common corruptions, and its mean corruption error.

    \b
    robustkit corruptions --model digits-cnn --dataset digits --severity 1,3,5
    robustkit corruptions --model robustbench/Standard --dataset cifar10-c --out standard.json
    robustkit corruptions --model digits-cnn-at --dataset digits --baseline standard.json --kind jpeg
    \b
    What is corrupted here does not compare with what is in the archives: its kinds are fewer and partly others.
    """  # noqa: D301
    from robustkit.corruptions import CellDone, evaluate_corruptions

    try:
        severities = tuple(int(part) for part in severity.split(","))
    except ValueError:
        raise UsageError(f"--severity {severity!r} must be whole numbers from 1 to 5, such as 1,3,5") from None
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    named = [kind for part in kinds for kind in part.split(",")]
    terminal = sys.stderr.isatty()

    def show(event: CellDone) -> None:
        what = f"{event.kind} {event.severity}" if event.kind else "clean"
        text = f"[{event.done}/{event.total}] {what}: {event.accuracy}"
        click.echo(f"\r\x1b[K{text}" if terminal else text, nl=not terminal, err=True)

    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result: a model may print
        record = evaluate_corruptions(
            model, dataset, named or None, severities, on_event=None if quiet else show, **asked
        )
    if terminal and not quiet:
        click.echo("\r\x1b[K", nl=False, err=True)
    if out is not None:
        record.save(out)
    if json_to == "-":
        click.echo(json.dumps(record.to_json(), indent=1, ensure_ascii=False, allow_nan=False))
        return
    if json_to:
        record.save(Path(json_to))
    click.echo(record.summary())
