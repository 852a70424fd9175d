"""The command `robustkit certify`. What is slow to import is imported where it is used."""

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkit.cli import cache as cli_cache
from robustkit.cli import completion
from robustkit.cli import options as cli_options
from robustkit.errors import UsageError

if TYPE_CHECKING:
    from robustkit.certificates.smoothing import ImageDone


@click.command()
@click.option("--model", required=True, metavar="SPEC", shell_complete=completion.model,
              help="The bare network: digits-cnn, ./net.safetensors:arch=…")  # fmt: skip
@click.option("--dataset", "--data", metavar="SPEC", shell_complete=completion.dataset,
              help="By default what the model was trained on.")  # fmt: skip
@click.option("--defense", multiple=True, metavar="SPEC", shell_complete=completion.defense,
              help="What stands before the model (jpeg), not its noise.")  # fmt: skip
@click.option("--sigma", type=float, default=0.25, show_default=True, help="Of the Gaussian noise, pixels in [0,1].")
@click.option("--first", type=int, default=100, show_default=True, metavar="N", help="Copies that choose the class.")
@click.option("--draws", type=int, default=10_000, show_default=True, metavar="N",
              help="Further copies that bound its probability: more certify larger radii.")  # fmt: skip
@click.option("--alpha", type=float, default=0.001, show_default=True,
              help="The probability with which a certificate may be wrong.")  # fmt: skip
@click.option("--radii", metavar="0,0.25,0.5", help="L2 radii of the table; by default multiples of sigma/2.")
@click.option("-n", "n", type=int, metavar="N", help="The first N samples.")
@click.option("--indices", metavar="0-199,400", help="These samples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise.")
@click.option("--outputs", type=click.Choice(["logits", "probs"]), default="logits", show_default=True)
@click.option("--trust", is_flag=True, help="Let models run code of theirs: pickled checkpoints, callables in a card.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda:0",
              shell_complete=completion.device)  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the record there, as JSON.")
@cli_options.json_option("the record")
@cli_cache.offline
@click.option("--quiet", is_flag=True, help="No progress.")
def certify(
    model: str, dataset: str | None, out: Path | None, json_to: str | None, threads: int | None, quiet: bool,
    **asked: Any,
) -> None:  # fmt: skip
    """Certify a network smoothed with Gaussian noise: the L2 radius in which each decision cannot change.

    \b
    robustkit certify --model digits-cnn --sigma 0.25 -n 100
    robustkit certify --model python/my.net --dataset cifar10 --sigma 0.5 -n 500 --radii 0,0.5,1 --json cert.json
    \b
    A network trained without noise is seldom right on noisy copies: little can be certified of it.
    A copy is one forward pass: first + draws of them for each image.
    Exit codes: 0 done, 2 bad usage, 130 interrupted (nothing is written).
    """  # noqa: D301
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    try:
        record = _measure(model, dataset, threads=threads, quiet=quiet, asked=asked)
    except KeyboardInterrupt:
        click.echo("\nError: interrupted; nothing was written", err=True)
        sys.exit(130)
    for file in (out, Path(json_to) if json_to and json_to != "-" else None):
        if file is not None:
            record.save(file)
    as_json = json_to == "-"
    text = json.dumps(record.to_json(), indent=1, ensure_ascii=False, allow_nan=False) if as_json else record.summary()
    click.echo(text)


def _measure(model: str, dataset: str | None, *, threads: int | None, quiet: bool, asked: dict[str, Any]) -> Any:
    """Call the function; progress goes to stderr, and so does what a model prints: stdout is for the result."""
    from robustkit.records.certificate import check_settings, parse_radii

    settings = (asked["sigma"], asked["draws"], asked["alpha"])
    check_settings(asked["sigma"], asked["first"], *settings[1:])
    parse_radii(asked["radii"], *settings)

    from robustkit.certificates.smoothing import evaluate_certificate
    from robustkit.models import sources

    data = dataset or sources.card_dataset(model)
    if not data:
        raise UsageError(f"--dataset is needed: {model} has no card that says what it was trained on; try digits")
    if threads:
        import torch

        torch.set_num_threads(threads)
    terminal = sys.stderr.isatty()

    def show(event: "ImageDone") -> None:
        image = event.image
        outcome = "abstained" if image.decision < 0 else "wrong" if image.decision != image.label else "right"
        text = f"[{event.done}/{event.total}] image {image.index}: {outcome}, radius {image.radius:.4g}"
        click.echo(f"\r\x1b[K{text}" if terminal else text, nl=not terminal, err=True)

    with contextlib.redirect_stdout(sys.stderr):
        record = evaluate_certificate(model, data, **asked, on_event=None if quiet else show)
    if terminal and not quiet:
        click.echo("\r\x1b[K", nl=False, err=True)
    return record
