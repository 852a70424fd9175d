"""The command `robustkit compare`."""

from pathlib import Path

import click

from robustkit.cli import options, output


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@options.json_to("the comparison")
def compare(before: Path, after: Path, json_to: str | None) -> None:
    """Compare two stored runs sample by sample: BEFORE and AFTER are folders of runs or sweeps, or baselines.

    \b
    robustkit compare robustkit-runs/old robustkit-runs/new
    robustkit compare reports/baselines/digits-cnn-at.json robustkit-runs/new --json -
    A sweep is compared at each eps that the other side has.
    Exit codes: 0 compared, 2 bad usage, 3 a sample of either is UNKNOWN.
    """  # noqa: D301
    from robustkit.records import sweep
    from robustkit.records.compare import compare as pair
    from robustkit.records.schema import SWEEP_COMPARISON
    from robustkit.records.sweep import Sweep
    from robustkit.report import comparison as texts

    one, other, width = sweep.read(before), sweep.read(after), output.columns()
    if isinstance(one, Sweep) or isinstance(other, Sweep):
        rows = sweep.compare_sweeps(one, other)
        data = {"schema": SWEEP_COMPARISON, "table": [row.to_json() for row in rows]}
        output.tell(data, output.fitted(texts.sweeps(rows, width), width), json_to)
        return
    found = pair(one, other)
    text = output.fitted(texts.comparison(found, one, other, width), width)
    output.tell(found.to_json(), text, json_to)
