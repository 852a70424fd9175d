"""A corruption record as an HTML page, Markdown, CSV and LaTeX. The numbers come from the record's facts."""

import csv
import io
from typing import Any

from robustkit.records.corruption import CorruptionRecord, Estimate
from robustkit.report import heat, svg
from robustkit.report.again import ranges
from robustkit.report.facts import Curve, LeftOut
from robustkit.report.fill import fill, given, machine, markup, versions
from robustkit.report.tex import latex_table, tex
from robustkit.report.text import cell as safe
from robustkit.stats import Proportion

MOST_LINES = 8  # in the chart of accuracy over severity


def page(record: CorruptionRecord) -> str:
    """The `report.html` of a corruption record.

    Raises:
        UsageError: if jinja2 is not installed.
    """
    title = record.about.label or record.model
    name, value = record.mce_in_words
    number, _, about = value.partition(" (")
    figures = [("Mean accuracy under corruption", *_parted(record.mean_accuracy)), (name, *_parted(number, about))]
    if record.clean:
        share = record.accuracy(record.clean)
        small = f"95 % interval {100 * share.low:.2f} to {100 * share.high:.2f} %, n = {record.n}"
        figures.insert(0, ("Clean accuracy", f"{100 * float(share):.2f} %", small))
    values = {
        "title": title,
        "heading": record.heading(),
        "date": record.about.date,
        "figures": figures,
        "notes": list(record.notes),
        "table": _table(record),
        "curve": _curve(record),
        "provenance": _provenance(record),
        "n": record.n,
        "indices": ranges(record.indices),
    }
    return fill("corruptions.html.j2", values, title)


def _parted(value: Estimate | str, about: str = "") -> tuple[str, str]:
    """A figure with its interval in words."""
    number, _, interval = str(value).partition(" [")
    low_high = interval.partition("]")[0].replace(", ", " to ")
    words = [f"95 % interval {low_high}" if low_high else "", about.rstrip(")")]
    return number, "; ".join(word for word in words if word)


def _table(record: CorruptionRecord) -> dict[str, Any]:
    rows = []
    for kind in record.kinds:
        shares = [record.accuracy(cell) for cell in record.cells if cell.kind == kind]
        mean = {**heat.empty(), "text": f"{100 * sum(map(float, shares)) / len(shares):.1f}"}
        rows.append(heat.row([kind], [*(heat.cell(share, dark=False) for share in shares), mean]))
    columns = [*(f"severity {severity}" for severity in record.severities), "mean"]
    groups = [rows]
    if record.clean:
        clean = [heat.cell(record.accuracy(record.clean), dark=False), *[heat.empty()] * (len(columns) - 1)]
        groups.insert(0, [heat.row(["none (clean)"], clean, plain=True)])
    return heat.table("", "", ("corruption",), columns, groups)


def _curve(record: CorruptionRecord) -> Any:
    if len(record.severities) < 2:
        return LeftOut("a line takes two severities")
    errors = record.errors()
    kinds = sorted(record.kinds, key=lambda kind: -errors[kind])[:MOST_LINES]
    found = []
    for kind in kinds:
        cells = [cell for cell in record.cells if cell.kind == kind]
        x, y = [float(cell.severity) for cell in cells], [record.accuracy(cell) for cell in cells]
        if record.clean:
            x, y = [0.0, *x], [record.accuracy(record.clean), *y]
        found.append(Curve(kind, tuple(x), tuple(y)))
    ticks = {float(severity): str(severity) for severity in (0, *record.severities)}
    drawn = svg.curves(found, "severity", "accuracy", title="accuracy over severity", ticks=ticks, bands=False)
    few = f"The {MOST_LINES} hardest of {len(record.kinds)} kinds. " if len(kinds) < len(record.kinds) else ""
    return {"svg": markup(drawn), "names": kinds, "caption": f"{few}Intervals are in the table."}


def _provenance(record: CorruptionRecord) -> list[tuple[str, str]]:
    job = record.job
    return given(
        [
            *record.about.told().items(),
            ("model", record.model),
            ("model sha256", job.get("model_sha256")),
            ("probe sha256", job.get("probe_sha256")),
            ("data", job.get("data")),
            ("data sha256", job.get("data_sha256")),
            ("seed", job.get("seed")),
            ("baseline", record.baseline),
            ("device", f"{job.get('device')}, {job.get('threads')} threads, tiles of {job.get('tile')}"),
            ("machine", machine(record.environment)),
            ("versions", versions(job.get("versions", {}))),
        ]
    )


def markdown(record: CorruptionRecord) -> str:
    """The `report.md` of a corruption record."""
    head = "| corruption | " + " | ".join(f"severity {s}" for s in record.severities) + " | mean |"
    lines = [head, "|---|" + "---:|" * (len(record.severities) + 1)]
    for kind, shares in _rows(record):
        mean = f"{100 * sum(map(float, shares)) / len(shares):.1f}"
        lines.append(f"| {safe(kind)} | " + " | ".join(f"{100 * float(s):.1f}" for s in shares) + f" | {mean} |")
    figures = [f"- {safe(name)}: {safe(value)}" for name, value in record.in_brief()]
    parts = [f"# {safe(record.heading())}", "\n".join(figures), "\n".join(lines)]
    if record.notes:
        parts.append("\n".join(f"- {safe(note)}" for note in record.notes))
    parts.append("\n".join(f"- {safe(name)}: {safe(value)}" for name, value in _provenance(record)))
    return "\n\n".join(parts) + "\n"


def csv_text(record: CorruptionRecord) -> str:
    """One line a kind and severity, as fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["kind", "severity", "accuracy", "low", "high", "k", "n"])
    for cell in [*([record.clean] if record.clean else []), *record.cells]:
        share = record.accuracy(cell)
        writer.writerow([cell.kind or "clean", cell.severity, repr(float(share)), repr(share.low), repr(share.high),
                         share.k, share.n])  # fmt: skip
    return out.getvalue()


def latex(record: CorruptionRecord) -> str:
    r"""The accuracies as a `table` environment; it needs \usepackage{booktabs}."""
    name, value = record.mce_in_words
    caption = f"{record.heading()}. Accuracy in percent; mean accuracy {record.mean_accuracy}; {name} {value}."
    body = []
    for kind, shares in _rows(record):
        mean = f"{100 * sum(map(float, shares)) / len(shares):.1f}"
        body.append([tex(kind), *(f"{100 * float(share):.1f}" for share in shares), mean])
    heads = ["corruption", *(f"severity {severity}" for severity in record.severities), "mean"]
    return latex_table(caption, "l" + "r" * (len(heads) - 1), heads, body)


def _rows(record: CorruptionRecord) -> list[tuple[str, list[Proportion]]]:
    return [(kind, [record.accuracy(c) for c in record.cells if c.kind == kind]) for kind in record.kinds]
