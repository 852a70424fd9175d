"""The command `robustkit compare`."""

from pathlib import Path

import click

from robustkit.cli import options, output


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@options.json_to("the comparison")
def compare(before: Path, after: Path, json_to: str | None) -> None:
    """Compare two stored runs sample by sample: BEFORE and AFTER are run folders or baseline files.

    \b
    robustkit compare robustkit-runs/old robustkit-runs/new
    robustkit compare reports/baselines/digits-cnn-at.json robustkit-runs/new --json -
    \b
    Exit codes: 0 compared, 2 bad usage, 3 a sample of either is UNKNOWN.
    """  # noqa: D301
    from robustkit.records import baseline
    from robustkit.records.compare import compare as pair
    from robustkit.report.comparison import comparison

    first, second = baseline.read(before), baseline.read(after)
    found = pair(first, second)
    output.tell(found.to_json(), comparison(found, first, second), json_to)
