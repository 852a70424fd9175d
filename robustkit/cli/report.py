"""The command `robustkit report`. What is slow to import is imported where it is used."""

from pathlib import Path
from typing import Any

import click

from robustkit.cli import options
from robustkit.errors import UsageError


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@options.out("Write there instead of into RUN.")
@click.option("--format", "formats", multiple=True, type=click.Choice(["html", "md", "tex", "csv"]),
              help="Only this one; repeat it for several. By default all.")  # fmt: skip
def report(run: Path, out: Path | None, formats: tuple[Any, ...]) -> None:
    """Write the reports of a stored RUN: the folder of a run, a sweep or a transfer run. Nothing is computed anew.

    \b
    robustkit report robustkit-runs/<run>
    robustkit report robustkit-runs/<run> --out pages --format html
    """  # noqa: D301
    from robustkit.records import sweep
    from robustkit.records.folder import load_run, write_text
    from robustkit.records.transfer_folder import RESULT, load_transfer
    from robustkit.report import files

    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")
    chosen = list(dict.fromkeys(formats)) or list(files.NAMES)
    texts: dict[Path, str] = {}
    if (run / RESULT).is_file():
        if "html" in formats:
            raise UsageError("a transfer run has no HTML page; there are md, tex, csv, and `robustkit plot transfer`")
        chosen = [name for name in chosen if name != "html"]
        texts = {Path(name): text for name, text in files.of_transfer(load_transfer(run), chosen).items()}
    elif (run / sweep.FILE).is_file():
        found = sweep.load_sweep(run)
        for place, record in enumerate(found.records):
            folder = sweep.run_folder(Path(), place)
            texts |= {folder / name: text for name, text in files.of_run(record, chosen).items()}
        texts |= {Path(name): text for name, text in files.of_sweep(found, chosen).items()}
    else:
        texts = {Path(name): text for name, text in files.of_run(load_run(run), chosen).items()}
    for name, text in texts.items():
        path = (out or run) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        click.echo(path)
