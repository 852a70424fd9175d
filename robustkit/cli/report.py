"""The command `robustkit report`. What is slow to import is imported where it is used."""

from collections.abc import Mapping
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
    from robustkit.records.files import rewrite_pages, write_text
    from robustkit.records.folder import load_run
    from robustkit.records.transfer_folder import RESULT, load_transfer
    from robustkit.report import files

    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")
    chosen = list(dict.fromkeys(formats)) or list(files.NAMES)
    pages: dict[Path, Mapping[str, str]] = {}  # by the record's file: into its folder, or below `out`
    if (run / RESULT).is_file():
        if "html" in formats:
            raise UsageError("a transfer run has no HTML page; there are md, tex, csv, and `robustkit plot transfer`")
        chosen = [name for name in chosen if name != "html"]
        pages = {Path(RESULT): files.of_transfer(load_transfer(run), chosen)}
    elif (run / sweep.FILE).is_file():
        found = sweep.load_sweep(run)
        for place, record in enumerate(found.records):
            pages[sweep.run_folder(Path(), place) / "run.json"] = files.of_run(record, chosen)
        pages[Path(sweep.FILE)] = files.of_sweep(found, chosen)
    else:
        pages = {Path("run.json"): files.of_run(load_run(run), chosen)}
    for file, texts in pages.items():
        folder = (out or run) / file.parent
        folder.mkdir(parents=True, exist_ok=True)
        if out is None:
            rewrite_pages(run / file, texts)
        else:
            for name, text in texts.items():
                write_text(folder / name, text)
        for name in texts:
            click.echo(folder / name)
