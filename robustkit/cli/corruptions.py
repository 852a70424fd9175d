"""The command `robustkit corruptions`. What is slow to import is imported where it is used."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkit.cli import options, output
from robustkit.errors import UsageError

if TYPE_CHECKING:
    from robustkit.corruptions import CellDone


@click.command()
@options.model()
@options.dataset("cifar10-c, cifar100-c, imagenet-c; or any other, corrupted on the fly.", required=True)
@click.option("--kind", "kinds", multiple=True, metavar="KIND",
              help="gaussian-noise, jpeg …; repeat it, or write a,b. By default all standard ones.")  # fmt: skip
@click.option("--severity", default="1,2,3,4,5", show_default=True, metavar="1,3,5")
@click.option(
    "--baseline", metavar="alexnet|FILE",
    help="What mCE is relative to: what another --out has written, of the same images and kinds; for imagenet-c "
    "AlexNet's published errors.",
)  # fmt: skip
@options.defense()
@options.samples(seeds="Of random corruptions made here, and of a randomised model.")
@options.outputs
@options.draws("Of a randomised model, how many passes vote on an image.", default=1)
@options.trust
@options.device()
@options.tile
@options.resumable("cell by cell")
@options.json_to("the record")
@options.offline
@options.quiet
def corruptions(
    model: str, dataset: str, kinds: tuple[str, ...], severity: str, out: Path | None, json_to: str | None,
    quiet: bool, **asked: Any,
) -> None:  # fmt: skip
    """Measure a model's accuracy under common corruptions, and its mean corruption error.

    \b
    robustkit corruptions --model digits-cnn --dataset digits --kind jpeg --out ./base
    robustkit corruptions --model robustbench/Standard --dataset cifar10-c --out ./standard
    robustkit corruptions --model digits-cnn-at --dataset digits --baseline ./base --kind jpeg
    \b
    What is corrupted here does not compare with what is in the archives: its kinds are fewer and partly others.
    """  # noqa: D301
    try:
        severities = tuple(int(part) for part in severity.split(","))
    except ValueError:
        raise UsageError(f"--severity {severity!r} must be whole numbers from 1 to 5, such as 1,3,5") from None
    named = [kind for part in kinds for kind in part.split(",")] or None

    def measure(folder: Path | None) -> Any:
        from robustkit.corruptions import evaluate_corruptions

        with output.line(quiet=quiet) as say, output.computing(quiet=quiet):
            return evaluate_corruptions(
                model, dataset, named, severities, **asked, out=folder, on_event=lambda event: say(_line(event)),
                label=options.given_label(),
            )  # fmt: skip

    output.tell_run(measure, out, json_to)


def _line(event: "CellDone") -> str:
    what = f"{event.kind} {event.severity}" if event.kind else "clean"
    return f"[{event.done}/{event.total}] {what}: {event.accuracy}"
