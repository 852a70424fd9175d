"""The command `robustkit certify`. What is slow to import is imported where it is used."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustkit.cli import options, output
from robustkit.errors import UsageError

if TYPE_CHECKING:
    from robustkit.certificates.proofs import ImagesDone
    from robustkit.certificates.smoothing import ImageDone


_SMOOTHING = ("sigma", "first", "draws", "alpha", "radii", "seed")  # options of randomised smoothing alone


@click.command()
@options.model(about="The bare network: digits-cnn, ./net.safetensors:arch=…")
@options.dataset()
@options.defense("What stands before the model (jpeg), not its noise.")
@options.method(about="Bounds of the network itself, up to this one, in place of smoothing.")
@options.norm(("linf", "l2", "l1"), about="With --method: of the ball.")
@options.eps("With --method: its radius, pixels in [0,1]; by default the norm's.")
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
    model: str, dataset: str | None, method: str | None, norm: Any, eps: str | None, out: Path | None,
    json_to: str | None, threads: int | None, quiet: bool, **asked: Any,
) -> None:  # fmt: skip
    """Certify a network: with --method by bounds of itself, else smoothed with Gaussian noise.

    Bounds prove that no image of a ball is misclassified, or leave it open. Smoothing gives the L2 radius in which each
    decision of the smoothed network cannot change.

    \b
    robustkit certify --model digits-cnn --method alpha-crown --eps 0.05 -n 200
    robustkit certify --model digits-cnn --sigma 0.25 -n 100
    robustkit certify --model python/my.net --dataset cifar10 --sigma 0.5 -n 500 --radii 0,0.5,1 --out ./certificates
    \b
    A network trained without noise is seldom right on noisy copies: little can be certified of it.
    A copy is one forward pass: first + draws of them for each image.
    Exit codes: 0 done, 2 bad usage, 130 interrupted (with --out DIR everything so far is kept).
    """  # noqa: D301
    source = click.get_current_context().get_parameter_source
    given = [name for name in (*_SMOOTHING, "norm", "eps") if source(name) is click.core.ParameterSource.COMMANDLINE]
    wrong = [name for name in given if (name in _SMOOTHING) == (method is not None)]
    if wrong:
        kind = "randomised smoothing, which --method is not" if method else "bounds; add --method ibp|crown|alpha-crown"
        raise UsageError(f"--{wrong[0]} is an option of {kind}")

    def measure(folder: Path | None) -> Any:
        if method is not None:
            from robustkit.certificates.proofs import evaluate_bounds

            data = options.dataset_of(model, dataset)
            bounded = {name: value for name, value in asked.items() if name not in _SMOOTHING}
            with output.line(quiet=quiet) as say, output.computing(threads=threads, quiet=quiet):
                return evaluate_bounds(
                    model, data, method=method, norm=norm, eps=eps, **bounded, out=folder,
                    label=options.given_label(), on_event=lambda event: say(_part(event)),
                )  # fmt: skip
        from robustkit.certificates.smoothing import evaluate_certificate

        data = options.dataset_of(model, dataset)
        with output.line(quiet=quiet) as say, output.computing(threads=threads, quiet=quiet):
            return evaluate_certificate(model, data, **asked, out=folder, label=options.given_label(),
                                        on_event=lambda event: say(_line(event)))  # fmt: skip

    output.tell_run(measure, out, json_to)


def _part(event: "ImagesDone") -> str:
    return f"[{event.done}/{event.total}] {event.proved} proved"


def _line(event: "ImageDone") -> str:
    image = event.image
    outcome = "abstained" if image.decision < 0 else "wrong" if image.decision != image.label else "right"
    return f"[{event.done}/{event.total}] image {image.index}: {outcome}, radius {image.radius:.4g}"
