"""A run or a sweep as one self-contained HTML page; `fill` says of what kind pages are. Needs jinja2."""

from collections.abc import Mapping, Sequence
from typing import Any

from robustkit.records import sweep, text
from robustkit.records.findings import INVALID, NOT_AUDITED, OUTCOMES, SUSPECT, UNDECIDED, VALID
from robustkit.records.run import RunRecord
from robustkit.records.schema import WRONG
from robustkit.report import facts, gallery, svg
from robustkit.report.again import command, ranges
from robustkit.report.facts import Curve, LeftOut
from robustkit.report.fill import bar, fill, given, machine, markup, versions
from robustkit.stats import Proportion

CLASSES, MATRIX, PAIRS = 100, 20, 30  # rows of the classes' table, classes of the confusion matrix, mistakes named
WORSE = (VALID, NOT_AUDITED, UNDECIDED, SUSPECT, INVALID)  # verdicts, the one to warn of in a sweep last


def run_page(record: RunRecord) -> str:
    """The `report.html` of a run.

    Raises:
        UsageError: if jinja2 is not installed.
    """
    job = record.job
    return fill(
        "run.html.j2",
        {
            **_head(record),
            "robust": record.robust_accuracy,
            "why": record.why_no_robust_accuracy,
            "rule": record.rule,
            "quantized": record.quantized_robust_accuracy,
            "quantize": f"each adversarial rounded to {job['quantize']}",
            "certified": record.certified_accuracy,
            "bracket": _bracket(record),
            "counts": ", ".join(f"{count} {status}" for status, count in record.counts.items()) + ".",
            "labelled": [(label, text.share(value)) for label, value in text.labelled(record)],
            "waterfall": _waterfall(record),
            "violated": any(row.violated for row in record.by_attack),
            "curve": _curve(facts.distance_curve(record), {0.0: "0", float(job["eps"]): record.eps}),
            **_classes(record),
            "confusion": _confusion(record),
            "costs": _costs(record),
            "total": _total(record),
            "gallery": _gallery(record),
            "command": command(job, record.eps, audit=record.audit is not None),
        },
        record.called,
    )


def sweep_page(eps: Sequence[str], records: Sequence[RunRecord], folders: Sequence[str]) -> str:
    """The `report.html` of a sweep over `eps`; `folders` are where the report of each eps lies, beside the page.

    Raises:
        UsageError: if jinja2 is not installed.
    """
    first = records[0]
    found = facts.sweep_curve(records)
    rows = [
        {
            "eps": name,
            "share": record.robust_accuracy,
            "bar": bar(record.robust_accuracy),
            "carried": record.carried,
            "unknown": record.unknown,
            "verdict": record.verdict,
            "folder": folder,
        }
        for name, record, folder in zip(eps, records, folders, strict=True)
    ]
    worst = max(records, key=lambda record: WORSE.index(record.verdict))
    page = {
        **_head(worst),
        "heading": sweep.heading(first),
        "curve": _curve(found, {0.0: "0", **{float(r.job["eps"]): text for text, r in zip(eps, records, strict=True)}}),
        "rows": rows,
        "command": command(first.job, ",".join(eps), audit=first.audit is not None),
    }
    return fill("sweep.html.j2", page, first.called)


def _head(record: RunRecord) -> dict[str, Any]:
    notes = [str(flag["message"]) for flag in record.flags]
    notes += [f"{e['attack']}: {e['message']} ({len(e['indices'])} samples)" for e in record.errors]
    return {
        "model": record.called,
        "heading": text.heading(record),
        "date": record.about.date,
        "n": record.n,
        "clean": record.clean_accuracy,
        "verdict": record.verdict,
        "verdict_class": "unaudited" if record.verdict == NOT_AUDITED else record.verdict,
        "audit": _audit(record),
        "notes": notes,
        "provenance": _provenance(record),
        "indices": ranges(record.samples["index"].tolist()),
    }


def _provenance(record: RunRecord) -> list[tuple[str, str]]:
    job, environment = record.job, record.environment
    return given(
        [
            *record.about.told().items(),
            ("job", job["id"]),
            ("model", job["model"]),
            ("model sha256", job["model_sha256"]),
            ("probe sha256", job["probe_sha256"]),
            ("data", job["data"]),
            ("data sha256", job["data_sha256"]),
            ("attack", job["attack"]),
            ("seed", job["seed"]),
            ("device", f"{job['device']}, {job['threads']} threads, tiles of {job['tile']}, {job['precision']}"),
            ("machine", machine(environment)),
            ("versions", versions(job["versions"])),
            *((f"source of {name}", f"sha256 {digest}") for name, digest in job["attack_sources"].items()),
        ]
    )


def _waterfall(record: RunRecord) -> list[dict[str, Any]]:
    first = {"name": "no attack", "share": record.clean_accuracy, "bar": bar(record.clean_accuracy, 1),
             "attacked": "", "broken": "", "violated": ""}  # fmt: skip
    rows = [first]
    if record.carried:
        share = Proportion(record.n - record.counts[WRONG] - record.carried, record.n)
        rows.append({**first, "name": "smaller eps", "share": share, "bar": bar(share), "broken": record.carried})
    for row in record.by_attack:
        rows.append(
            {
                "name": row.name,
                "share": row.robust,
                "bar": bar(row.robust),
                "attacked": row.attacked,
                "broken": row.broken,
                "violated": row.violated,
            }
        )
    return rows


def _bracket(record: RunRecord) -> dict[str, Any] | None:
    parts = facts.bracket(record)
    if not parts:
        return None
    said = text.bracket(record)
    named = [(f"c{place}", part.name, part.samples) for place, part in enumerate(parts)]
    return {"svg": markup(svg.split([part.samples / record.n for part in parts])), "parts": named, "how": said[0]}


def _bar(share: Proportion | None, colour: int = 0) -> Any:
    return "" if share is None else markup(svg.bar(float(share), share.low, share.high, colour))


def _curve(found: Curve | LeftOut, written: Mapping[float, str]) -> Any:
    """The accuracy over eps as a chart; `written` are the eps that are told as they were given."""
    if isinstance(found, LeftOut):
        return found
    drawn = svg.curves([found], "eps", "accuracy", title=f"accuracy over eps: {found.name}", ticks=written)
    return {"svg": markup(drawn), "caption": f"{found.note} Band: 95 % Wilson.".strip()}


def _classes(record: RunRecord) -> dict[str, Any]:
    rows = facts.classes(record)
    shown = rows
    if len(rows) > CLASSES:
        shown = sorted(rows, key=lambda row: 1.0 if row.robust is None else float(row.robust))[:CLASSES]
    return {
        "classes": [
            {
                "label": record.about.named(row.label),
                "n": row.clean.n,
                "clean": row.clean,
                "robust": row.robust,
                "bar": bar(row.robust),
            }
            for row in shown
        ],
        "classes_left": len(rows) - len(shown),
    }


def _confusion(record: RunRecord) -> Any:
    found = facts.confusion(record)
    if isinstance(found, LeftOut):
        return found
    note = f" {found.left} samples are in no cell: undecided, or broken at a smaller eps." if found.left else ""
    rows = []
    if len(found.classes) <= MATRIX:
        for i, label in enumerate(found.classes):
            counts = found.counts[i].tolist()
            total = max(1, sum(counts))
            cells = [{"count": count, "share": count / total, "own": i == j} for j, count in enumerate(counts)]
            rows.append({"name": record.about.named(label), "cells": cells})
    names = [record.about.named(label) for label in found.classes]
    pairs = [(record.about.named(one), record.about.named(other), count) for one, other, count in found.pairs(PAIRS)]
    return {"names": names, "rows": rows, "pairs": pairs, "note": note}


def _costs(record: RunRecord) -> list[dict[str, Any]]:
    found = facts.costs(record)
    rows = []
    most = [max([1e-12, *(getattr(cost, what) for cost in found)]) for what in ("forwards", "backwards", "seconds")]
    for cost in found:
        values = zip((cost.forwards, cost.backwards, cost.seconds), most, strict=True)
        bars = [(f"{value:,.1f}", markup(svg.bar(value / top, place=2))) for value, top in values]
        rows.append({"name": cost.name, "bars": bars})
    return rows


def _total(record: RunRecord) -> str:
    rows = record.by_attack
    passes = f"{sum(r.forwards for r in rows):,} forwards and {sum(r.backwards for r in rows):,} backwards"
    spent = f"Altogether {passes}, a sample and pass each, in {sum(row.seconds for row in rows):,.1f} s."
    if not record.predicted:
        return spent
    most = record.predicted
    return f"{spent} At most {most['forwards']:,} and {most['backwards']:,} were announced before it began."


def _audit(record: RunRecord) -> dict[str, Any] | None:
    return None if record.audit is None else audit_parts(record.audit)


def audit_parts(audit: Mapping[str, Any]) -> dict[str, Any]:
    """The reasons, checks and charts of an audit's JSON data, for a page."""
    checks, charts = [], []
    for check in audit["checks"]:
        outcome = str(check["outcome"])
        checks.append(
            {
                "name": check["name"],
                "outcome": outcome,
                "style": outcome if outcome in OUTCOMES else "skipped",
                "text": check["text"],
                "value": _number(check.get("value")),
                "limit": _number(check.get("limit")),
            }
        )
        points = facts.series(check)
        if points and len(points[0]) > 1:
            labels = str(check["series"]["x_label"]), str(check["series"]["y_label"])
            limit = (
                None if check["name"] == "step-convergence" else check.get("limit")
            )  # whose limit is of a difference
            drawn = svg.line(*points, *labels, title=str(check["name"]), limit=limit)
            dashed = "; dashed: its limit" if 'class="limit"' in drawn else ""
            caption = f"{check['name']} ({outcome}): {labels[1]} over {labels[0]}{dashed}"
            charts.append({"svg": markup(drawn), "caption": caption})
    return {"reasons": [str(reason) for reason in audit["reasons"]], "checks": checks, "charts": charts}


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _gallery(record: RunRecord) -> Any:
    found = gallery.shown(record)
    if isinstance(found, LeftOut):
        return found
    with_original = all(item.clean for item in found)
    columns = "Original, adversarial, and what was added, amplified around grey."
    if not with_original:
        columns = "Adversarials only: this older run did not keep the originals."
    note = f"{columns} Rounded to 8 bits for display. {len(found)} of the {record.counts['BROKEN']} broken samples."
    return {"note": note, "shown": [_shown(item, record) for item in found]}


def _shown(item: gallery.Shown, record: RunRecord) -> dict[str, Any]:
    named = record.about.named
    attacked = f" → under attack {named(item.decided)}" if item.decided >= 0 else ""
    predicted = f"decided as {named(item.predicted)}{attacked}" if item.predicted >= 0 else ""
    added = f"added × {item.factor:.3g}" if item.added else ""
    what = f"sample {item.index}", f"true class {named(item.label)}"
    parts = [*what, predicted, f"{record.job['norm']} {item.distance:.4g}", added, item.attack]
    return {
        "index": item.index,
        "clean": item.clean,
        "adv": item.adv,
        "added": item.added,
        "small": item.small,
        "caption": " · ".join(part for part in parts if part),
    }
