"""A record of bounds as an HTML page, Markdown, CSV and LaTeX. The numbers come from the record's facts."""

import csv
import io
from typing import Any

from robustkit.records.bounds import MEANS, BoundsRecord, Proved
from robustkit.report import svg
from robustkit.report.again import ranges
from robustkit.report.fill import bar, fill, given, machine, markup, versions
from robustkit.report.tables import latex_share
from robustkit.report.tex import latex_table
from robustkit.report.text import cell as safe
from robustkit.stats import Proportion


def page(record: BoundsRecord) -> str:
    """The `report.html` of a record of bounds.

    Raises:
        UsageError: if jinja2 is not installed.
    """
    title, n = record.about.label or record.model, len(record.images)
    clean, proved = record.clean_accuracy, record.certified_accuracy
    parts = [("proved", proved.k), ("not proved", clean.k - proved.k), ("wrong", n - clean.k)]
    values = {
        "title": title,
        "heading": record.heading(),
        "date": record.about.date,
        "figures": [("Right and proved", proved, f"n = {n}"), ("Right", clean, f"n = {n}")],
        "means": MEANS,
        "split": markup(svg.split([count / n for _, count in parts])),
        "parts": [(f"c{place}", name, count) for place, (name, count) in enumerate(parts)],
        "rungs": list(record.rungs.items()),
        "classes": _classes(record),
        "provenance": _provenance(record),
        "n": n,
        "indices": ranges([image.index for image in record.images]),
    }
    return fill("bounds.html.j2", values, title)


def _classes(record: BoundsRecord) -> list[dict[str, Any]]:
    by_class: dict[int, list[Proved]] = {}
    for image in record.images:
        by_class.setdefault(image.label, []).append(image)
    rows = []
    for label, images in sorted(by_class.items()):
        share = Proportion(sum(image.proved for image in images), len(images))
        right = sum(image.right for image in images)
        rows.append({"name": record.about.named(label), "n": len(images), "right": right, "proved": share,
                     "bar": bar(share)})  # fmt: skip
    return rows


def _provenance(record: BoundsRecord) -> list[tuple[str, str]]:
    job = record.job
    return given(
        [
            *record.about.told().items(),
            ("model", record.model),
            ("model sha256", job.get("model_sha256")),
            ("probe sha256", job.get("probe_sha256")),
            ("data", job.get("data")),
            ("data sha256", job.get("data_sha256")),
            ("device", f"{job.get('device')}, {job.get('threads')} threads, tiles of {job.get('tile')}"),
            ("machine", machine(record.environment)),
            ("versions", versions(job.get("versions", {}))),
        ]
    )


def markdown(record: BoundsRecord) -> str:
    """The `report.md` of a record of bounds."""
    parts = [
        f"# {safe(record.heading())}",
        "\n".join(f"- {safe(name)}: {safe(value)}" for name, value in record.in_brief()),
        f"{safe(MEANS)} 95 % Wilson intervals.",
        "\n".join(f"- {safe(name)}: {safe(value)}" for name, value in _provenance(record)),
    ]
    return "\n\n".join(parts) + "\n"


def csv_text(record: BoundsRecord) -> str:
    """One line an image; no bound of one that is wrong unperturbed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["index", "label", "right", "proved", "rung", "bound"])
    for image in record.images:
        bound = repr(image.bound) if image.right else ""
        writer.writerow([image.index, image.label, image.right, image.proved, image.rung, bound])
    return out.getvalue()


def latex(record: BoundsRecord) -> str:
    r"""The accuracies as a `table` environment; it needs \usepackage{booktabs}."""
    caption = f"{record.heading()}. {MEANS} In percent, with 95 % Wilson intervals."
    body = [[latex_share(record.clean_accuracy), latex_share(record.certified_accuracy)]]
    return latex_table(caption, "rr", ["clean accuracy", "certified accuracy"], body)
