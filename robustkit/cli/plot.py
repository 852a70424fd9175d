"""The command `robustkit plot`. What is slow to import is imported where it is used."""

from importlib import import_module
from pathlib import Path
from typing import Any

import click

from robustkit.cli import options, output
from robustkit.cli.choice import OneOf
from robustkit.report.plots import KINDS


@click.command(epilog="\b\nKinds:\n" + "\n".join(f"  {kind:<9} {text}" for kind, text in KINDS.items()))
@click.argument("kind", type=OneOf(list(KINDS)))
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@options.out("The figure: .pdf, .svg or .png.", "-o", required=True, file=True)
@click.option("--width", type=OneOf(["one", "two"]), default="one", show_default=True,
              help="As wide as one column of a paper (3.25 in) or two (6.75 in).")  # fmt: skip
@options.labels("What a RUN is called; one for each, in order.")
@options.json_to("the figure's path", labels=False)
def plot(
    kind: str, runs: tuple[Path, ...], out: Path, width: Any, labels: tuple[str, ...], json_to: str | None
) -> None:
    """Draw a figure of a KIND from stored RUNs: folders of runs, sweeps or transfer runs.

    \b
    robustkit plot eps robustkit-runs/<sweep> robustkit-runs/<other sweep> -o curves.pdf
    robustkit plot scatter robustkit-runs/* -o scatter.svg --width two
    """  # noqa: D301
    from robustkit.report.plots import source, style

    style.check(out)
    sources = source.read(runs, labels)
    module = import_module(f"robustkit.report.plots.{kind}")
    with style.paper():
        style.save(module.draw(sources, width), out)
    output.tell({"schema": output.FILES, "files": [str(out)]}, str(out), json_to, ", ".join(labels))
