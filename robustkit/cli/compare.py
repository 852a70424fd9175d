"""The command `robustkit compare`."""

from pathlib import Path

import click

from robustkit.cli import options, output
from robustkit.errors import UsageError


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@options.labels("What BEFORE and AFTER are called; give two.")
@options.json_to("the comparison", labels=False)
def compare(before: Path, after: Path, json_to: str | None, labels: tuple[str, ...]) -> None:
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
    if labels and len(labels) != 2:
        raise UsageError(f"{len(labels)} labels for two runs; give --label twice, or not at all")
    one, other = (sweep.labelled(each, text) for each, text in zip((one, other), labels or ("", ""), strict=True))
    if isinstance(one, Sweep) or isinstance(other, Sweep):
        rows = sweep.compare_sweeps(one, other)
        data = {"schema": SWEEP_COMPARISON, "table": [row.to_json() for row in rows]}
        output.tell(data, output.fitted(texts.sweeps(rows, width), width), json_to, ", ".join(labels))
        return
    found = pair(one, other)
    text = output.fitted(texts.comparison(found, one, other, width), width)
    output.tell(found.to_json(), text, json_to, ", ".join(labels))
