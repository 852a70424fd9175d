"""A record of certificates as an HTML page, Markdown, CSV and LaTeX. The numbers come from the record's facts."""

import csv
import io
import statistics
from typing import Any

import numpy as np

from robustkit.records.certificate import ABSTAINED, Certified, CertifiedRecord, most
from robustkit.report import svg
from robustkit.report.again import ranges
from robustkit.report.facts import POINTS, Curve
from robustkit.report.fill import bar, fill, given, machine, markup, versions
from robustkit.report.tables import latex_share
from robustkit.report.tex import latex_table
from robustkit.report.text import cell as safe
from robustkit.stats import Proportion

CLASSES = 100  # rows of the classes' table


def page(record: CertifiedRecord) -> str:
    """The `report.html` of a record of certificates.

    Raises:
        UsageError: if jinja2 is not installed.
    """
    title, n = record.about.label or record.model, len(record.images)
    middle = record.radii[len(record.radii) // 2]
    rows, about = _classes(record)
    values = {
        "title": title,
        "heading": record.heading(),
        "date": record.about.date,
        "figures": [
            ("Right, and certified at all", record.accuracy(0.0), f"n = {n}"),
            (f"Certified at L2 radius {middle:g}", record.accuracy(middle), f"n = {n}"),
            ("Abstained", Proportion(record.abstained, n), f"{record.abstained} of {n} images"),
        ],
        "means": _means(record),
        "curve": _curve(record),
        "rows": [{"radius": f"{radius:g}", "share": record.accuracy(radius), "bar": bar(record.accuracy(radius))}
                 for radius in record.radii],
        "classes": rows,
        "classes_about": about,
        "provenance": _provenance(record),
        "n": n,
        "indices": ranges([image.index for image in record.images]),
    }  # fmt: skip
    return fill("certificate.html.j2", values, title)


def _means(record: CertifiedRecord) -> str:
    job = record.job
    ceiling = most(job["sigma"], job["draws"], job["alpha"])
    return (
        f"Of the network smoothed with Gaussian noise of sigma {job['sigma']:g}, not of the network itself: within the "
        f"radius of an image its decision cannot change. Each certificate may be wrong with probability "
        f"{job['alpha']:g}, over the noise; {job['draws']:,} copies of an image can certify at most {ceiling:.4g}."
    )


def _curve(record: CertifiedRecord) -> dict[str, Any]:
    right = sorted(image.radius for image in record.images if image.decision == image.label)
    places = np.linspace(0, max(0, len(right) - 1), min(POINTS, len(right))).astype(int)
    known = {0.0, *record.radii, *(float(right[place]) for place in places)}
    x = sorted(known)
    # At a radius the share counts what reaches it; just beyond, what goes further: the step is drawn there.
    shares = [Proportion(sum(radius > at for radius in right), len(record.images)) for at in x]
    drawn = svg.curves(
        [Curve("certified", tuple(x), tuple(shares), True)], "L2 radius", "certified accuracy",
        title="certified accuracy over the radius",
    )  # fmt: skip
    return {"svg": markup(drawn), "caption": "Band: 95 % Wilson, over images."}


def _classes(record: CertifiedRecord) -> tuple[list[dict[str, Any]], str]:
    by_class: dict[int, list[Certified]] = {}
    for image in record.images:
        by_class.setdefault(image.label, []).append(image)
    rows = []
    for label, images in sorted(by_class.items())[:CLASSES]:
        right = [image.radius for image in images if image.decision == label]
        share = Proportion(len(right), len(images))
        rows.append({"name": record.about.named(label), "n": len(images), "right": share, "bar": bar(share),
                     "abstained": sum(image.decision == ABSTAINED for image in images),
                     "median": f"{statistics.median(right):.3g}" if right else "–"})  # fmt: skip
    cut = f" The first {CLASSES} of {len(by_class)}." if len(by_class) > CLASSES else ""
    return rows, f"By the true class; the median radius is that of images decided rightly.{cut}"


def _provenance(record: CertifiedRecord) -> list[tuple[str, str]]:
    job = record.job
    return given(
        [
            *record.about.told().items(),
            ("model", record.model),
            ("model sha256", job.get("model_sha256")),
            ("probe sha256", job.get("probe_sha256")),
            ("data", job.get("data")),
            ("data sha256", job.get("data_sha256")),
            ("noise", f"sigma {job['sigma']:g}, {job['first']} + {job['draws']} copies, alpha {job['alpha']:g}"),
            ("seed", job["seed"]),
            ("device", f"{job.get('device')}, {job.get('threads')} threads, tiles of {job.get('tile')}"),
            ("machine", machine(record.environment)),
            ("versions", versions(job.get("versions", {}))),
        ]
    )


def markdown(record: CertifiedRecord) -> str:
    """The `report.md` of a record of certificates."""
    lines = ["| L2 radius | certified accuracy |", "|---:|---:|"]
    lines += [f"| {radius:g} | {record.accuracy(radius)} |" for radius in record.radii]
    parts = [
        f"# {safe(record.heading())}",
        f"Abstained on {record.abstained} of {len(record.images)}. {safe(_means(record))} 95 % Wilson intervals.",
        "\n".join(lines),
        "\n".join(f"- {safe(name)}: {safe(value)}" for name, value in _provenance(record)),
    ]
    return "\n\n".join(parts) + "\n"


def csv_text(record: CertifiedRecord) -> str:
    """One line a radius, as fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["radius", "certified_accuracy", "low", "high", "k", "n"])
    for radius in record.radii:
        share = record.accuracy(radius)
        writer.writerow([repr(radius), repr(float(share)), repr(share.low), repr(share.high), share.k, share.n])
    return out.getvalue()


def latex(record: CertifiedRecord) -> str:
    r"""The certified accuracies as a `table` environment; it needs \usepackage{booktabs}."""
    caption = f"{record.heading()}. {_means(record)} In percent, with 95 % Wilson intervals."
    body = [[f"{radius:g}", latex_share(record.accuracy(radius))] for radius in record.radii]
    return latex_table(caption, "rr", ["$L_2$ radius", "certified accuracy"], body)
