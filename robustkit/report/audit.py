"""An audit by itself as an HTML page, Markdown and CSV."""

import csv
import io

from robustkit.records.findings import MEANS, OUTCOMES, Audited
from robustkit.report.again import ranges
from robustkit.report.fill import fill, given, machine, versions
from robustkit.report.page import audit_parts
from robustkit.report.text import cell as safe


def page(record: Audited) -> str:
    """The `report.html` of an audit.

    Raises:
        UsageError: if jinja2 is not installed.
    """
    title, audit = record.about.label or record.model, record.audit
    means = MEANS[audit.verdict]
    values = {
        "title": f"Audit of {title}",
        "heading": record.heading(),
        "date": record.about.date,
        "verdict": audit.verdict,
        "means": f"{means[0].upper()}{means[1:]}.",
        "counts": _counts(record),
        "audit": audit_parts(audit.to_json()),
        "provenance": _provenance(record),
        "n": len(record.job["indices"]),
        "indices": ranges(record.job["indices"]),
    }
    return fill("audit.html.j2", values, f"audit of {title}")


def _counts(record: Audited) -> str:
    checks = record.audit.checks
    counts = [(outcome, sum(check.outcome == outcome for check in checks)) for outcome in OUTCOMES]
    return f"{len(checks)} checks: {', '.join(f'{count} {outcome}' for outcome, count in counts if count)}."


def _provenance(record: Audited) -> list[tuple[str, str]]:
    job = record.job
    return given(
        [
            *record.about.told().items(),
            ("model", record.model),
            ("model sha256", job.get("model_sha256")),
            ("probe sha256", job.get("probe_sha256")),
            ("data", job["data"]),
            ("data sha256", job.get("data_sha256")),
            ("threat model", f"{job['norm']}, eps {record.about.written(job['eps'])}"),
            ("seed", job["seed"]),
            ("device", f"{job.get('device')}, {job.get('threads')} threads, tiles of {job.get('tile')}"),
            ("machine", machine(record.environment)),
            ("versions", versions(job.get("versions", {}))),
        ]
    )


def markdown(record: Audited) -> str:
    """The `report.md` of an audit."""
    rows = [f"| {safe(check.name)} | {check.outcome} | {safe(check.text)} |" for check in record.audit.checks]
    parts = [
        f"# {safe(record.heading())}",
        f"**{safe(record.audit.bottom_line)}**",
        *(["\n".join(f"- {safe(reason)}" for reason in record.audit.reasons)] if record.audit.reasons else []),
        "| check | outcome | evidence |\n|---|---|---|\n" + "\n".join(rows),
        "\n".join(f"- {safe(name)}: {safe(value)}" for name, value in _provenance(record)),
    ]
    return "\n\n".join(parts) + "\n"


def csv_text(record: Audited) -> str:
    """One line a check."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["check", "outcome", "value", "limit", "evidence"])
    for check in record.audit.checks:
        numbers = ["" if value is None else repr(value) for value in (check.value, check.limit)]
        writer.writerow([check.name, check.outcome, *numbers, check.text])
    return out.getvalue()
