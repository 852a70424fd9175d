"""The tables of a run as CSV, one line a share, and as LaTeX. The numbers come from the record's facts."""

import csv
import io
from collections.abc import Iterable, Iterator

from robustkit.records.run import RunRecord
from robustkit.records.schema import BROKEN
from robustkit.records.text import heading, labelled
from robustkit.report import facts
from robustkit.report.tex import latex_table, tex
from robustkit.stats import MeanShare, Proportion

HEAD = (
    "table", "name", "value", "low", "high", "k", "n", "attacked", "broken", "violated", "forwards", "backwards",
    "seconds",
)  # fmt: skip
CLASSES = 30  # in the LaTeX table of classes: more do not fit on a page
DOUBTED = r"$^{\ddagger}$"  # of a number that the audit doubts
Share = Proportion | MeanShare | None


def csv_text(record: RunRecord) -> str:
    """One line a share, as fractions: accuracies, what stands after each attack, each class, the curve over eps.

    An empty value is not established. The passes of an attack are sums over the samples it met.
    """
    return lines_as_csv(_lines(record))


def lines_as_csv(lines: Iterable[list[str]]) -> str:
    """Lines under HEAD as CSV."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEAD)
    writer.writerows(lines)
    return out.getvalue()


def _lines(record: RunRecord) -> Iterator[list[str]]:
    yield csv_line("accuracy", "clean", record.clean_accuracy)
    yield csv_line("accuracy", "robust", record.robust_accuracy)
    if record.certified_accuracy is not None:
        yield csv_line("accuracy", "certified", record.certified_accuracy)
        for part in facts.bracket(record):
            yield csv_line("bracket", part.name, Proportion(part.samples, record.n))
    if record.audit:
        yield csv_line("audit", record.verdict, None)
    if "quantized_status" in record.samples:
        yield csv_line("accuracy", "robust after rounding", record.quantized_robust_accuracy)
    for label, value in labelled(record):
        yield csv_line("randomised", label, value)
    for row in record.by_attack:
        costs = [row.attacked, row.broken, row.violated, row.forwards, row.backwards, row.seconds]
        yield csv_line("after attack", row.name, row.robust)[:7] + [str(cost) for cost in costs]
    for found in facts.classes(record):
        name = record.about.named(found.label)
        yield csv_line("clean, by class", name, found.clean)
        yield csv_line("robust, by class", name, found.robust)
    curve = facts.distance_curve(record)
    if isinstance(curve, facts.Curve):
        for x, y in zip(curve.x, curve.y, strict=True):
            yield csv_line("accuracy over eps", repr(x), y)


def csv_line(table: str, name: str, value: Share) -> list[str]:
    """One line of the CSV: a share as fractions; empty where it is not established."""
    counts = ["", ""]
    if isinstance(value, Proportion):
        counts = [str(value.k), str(value.n)]
    elif value is not None:
        counts = ["", str(value.n)]
    numbers = [repr(float(value)), repr(value.low), repr(value.high)] if value is not None else ["", "", ""]
    return [table, name, *numbers, *counts, *[""] * 6]


def latex(record: RunRecord) -> str:
    r"""What stands after each attack, and each class, as `table` environments; they need \usepackage{booktabs}."""
    doubt = " (do not rely on a number with a double dagger)" if record.warning else ""
    what = f"{heading(record)}. Audit: {record.verdict}{doubt}. In percent, with 95 % Wilson intervals"
    mark = DOUBTED if record.warning else ""
    rows = [["no attack", "", "", latex_share(record.clean_accuracy), "", "", ""]]
    for row in record.by_attack:
        cells = [tex(row.name), str(row.attacked), str(row.broken), latex_share(row.robust, mark)]
        per_image = [f"{passes / max(1, row.attacked):.1f}" for passes in (row.forwards, row.backwards)]
        rows.append([*cells, *per_image, f"{row.seconds:.1f}"])
    if record.certified_accuracy is not None and record.certificates is not None:
        proved = latex_share(record.certified_accuracy)
        rows.append(
            [
                f"certified ({tex(record.certificates['method'])})",
                "",
                "",
                proved,
                "",
                "",
                f"{record.certificates['seconds']:.1f}",
            ]
        )
        what += f". {record.certified_accuracy.k} proved, {record.open} open, {record.counts[BROKEN]} broken"
    head = ["after", "attacked", "broke", "accuracy", "forwards", "backwards", "seconds"]
    why = record.why_no_robust_accuracy
    note = f"; the robust accuracy is not established: {why}" if why else ""
    tables = [latex_table(f"{what}; passes an attacked image{note}.", "lrrrrrr", head, rows)]
    found = facts.classes(record)
    if len(found) <= CLASSES:
        lines = [
            [
                tex(record.about.named(row.label)),
                str(row.clean.n),
                latex_share(row.clean),
                latex_share(row.robust, mark),
            ]
            for row in found
        ]
        columns = ["class", "n", "clean accuracy", "robust accuracy"]
        tables.append(latex_table(f"{what}; by class.", "lrrr", columns, lines))
    return "\n".join(tables)


def latex_share(value: Share, mark: str = "") -> str:
    """A share in percent, with a mark behind the number and its interval."""
    if value is None:
        return "--"
    return rf"{100 * float(value):.2f}{mark} {{\scriptsize[{100 * value.low:.2f}, {100 * value.high:.2f}]}}"
