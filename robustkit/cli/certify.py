"""The command `robustkit certify`. What is slow to import is imported where it is used."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkit.cli import options, output

if TYPE_CHECKING:
    from robustkit.certificates.smoothing import ImageDone


@click.command()
@options.model(about="The bare network: digits-cnn, ./net.safetensors:arch=…")
@options.dataset()
@options.defense("What stands before the model (jpeg), not its noise.")
@click.option("--sigma", type=float, default=0.25, show_default=True, help="Of the Gaussian noise, pixels in [0,1].")
@click.option("--first", type=int, default=100, show_default=True, metavar="N", help="Copies that choose the class.")
@options.draws("Further copies that bound its probability: more certify larger radii.", default=10_000)
@click.option("--alpha", type=float, default=0.001, show_default=True,
              help="The probability with which a certificate may be wrong.")  # fmt: skip
@click.option("--radii", metavar="0,0.25,0.5", help="L2 radii of the table; by default multiples of sigma/2.")
@options.samples(seeds="Of the noise.")
@options.outputs
@options.trust
@options.device()
@options.tile
@options.threads
@options.resumable("image by image")
@options.json_to("the record")
@options.offline
@options.quiet
def certify(
    model: str, dataset: str | None, out: Path | None, json_to: str | None, threads: int | None, quiet: bool,
    **asked: Any,
) -> None:  # fmt: skip
    """Certify a network smoothed with Gaussian noise: the L2 radius in which each decision cannot change.

    \b
    robustkit certify --model digits-cnn --sigma 0.25 -n 100
    robustkit certify --model python/my.net --dataset cifar10 --sigma 0.5 -n 500 --radii 0,0.5,1 --out ./certificates
    \b
    A network trained without noise is seldom right on noisy copies: little can be certified of it.
    A copy is one forward pass: first + draws of them for each image.
    Exit codes: 0 done, 2 bad usage, 130 interrupted (with --out DIR everything so far is kept).
    """  # noqa: D301

    def measure(folder: Path | None) -> Any:
        from robustkit.certificates.smoothing import evaluate_certificate

        data = options.dataset_of(model, dataset)
        with output.line(quiet=quiet) as say, output.computing(threads=threads, quiet=quiet):
            return evaluate_certificate(model, data, **asked, out=folder, label=options.given_label(),
                                        on_event=lambda event: say(_line(event)))  # fmt: skip

    output.tell_run(measure, out, json_to)


def _line(event: "ImageDone") -> str:
    image = event.image
    outcome = "abstained" if image.decision < 0 else "wrong" if image.decision != image.label else "right"
    return f"[{event.done}/{event.total}] image {image.index}: {outcome}, radius {image.radius:.4g}"
