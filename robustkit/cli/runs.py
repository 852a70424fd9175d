"""The command `robustkit runs`."""

from pathlib import Path

import click

from robustkit.cli import options, output
from robustkit.errors import UsageError


@click.command()
@click.argument("folder", default=output.RUNS, type=click.Path(path_type=Path), metavar="[DIR]")
@options.json_to("the list")
def runs(folder: Path, json_to: str | None) -> None:
    """List the runs below DIR: date, model, attack, number, verdict, and whether each is finished.

    \b
    robustkit runs
    robustkit runs reports/paper --json -
    \b
    DIR is robustkit-runs by default. The numbers are computed from each run's stored facts; a run that is not finished
    has what stands so far. Dates are UTC; of records that have none, when the file was written.
    """  # noqa: D301
    from robustkit.records import listing

    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; give the one that holds the runs, such as --out's parent")
    rows = listing.runs(folder)
    data = {"schema": "robustkit/runs/1", "folder": str(folder), "runs": [row.to_json() for row in rows]}
    if not rows:
        click.echo(f"no runs in {folder}", err=True)
    output.tell(data, listing.table(rows) if rows else "", json_to)
