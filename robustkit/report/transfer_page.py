"""A transfer run as an HTML page."""

from itertools import groupby
from typing import Any

from robustkit.records.transfer import Of, TransferRecord
from robustkit.records.transfer_text import WHITE_BOX, denominator, heading, unsettled
from robustkit.report import heat, svg
from robustkit.report.again import ranges
from robustkit.report.fill import bar, fill, given, machine, markup, versions
from robustkit.stats import Proportion

TITLES: dict[Of, str] = {
    "all": "Success rate of all images",
    "correct": "Success rate of images that were right before",
}


def page(record: TransferRecord) -> str:
    """The `report.html` of a transfer run.

    Raises:
        UsageError: if jinja2 is not installed.
    """
    title = record.about.label or f"Transfer to {_listed(record.job['victims'])}"
    values = {
        "title": title,
        "heading": heading(record),
        "date": record.about.date,
        "figures": _figures(record),
        "notes": [str(flag["message"]) for flag in record.flags] + [f"not established: {w}" for w in unsettled(record)],
        "tables": [matrix(record, of) for of in TITLES],
        "legend": f"In percent, small: 95 % Wilson intervals. {WHITE_BOX} white-box: the victim is a surrogate.",
        "models": _models(record),
        "costs": _costs(record),
        "provenance": _provenance(record),
        "n": record.n,
        "indices": ranges(record.samples["index"].tolist()),
    }
    return fill("transfer.html.j2", values, title)


def matrix(record: TransferRecord, of: Of) -> dict[str, Any]:
    """The success rates of one denominator: a row an attack, the rows of a surrogate set together, a column a model."""
    groups = []
    if of == "all" and not record.job["target"]:
        errors = [Proportion(share.n - share.k, share.n) for share in record.clean_accuracy.values()]
        groups.append([heat.row(["none", "clean error"], [heat.cell(share) for share in errors], plain=True)])
    for name, rows in groupby(record.rows, key=lambda pair: pair[0]):
        attacks = [attack for _, attack in rows]
        group = []
        for place, attack in enumerate(attacks):
            found = [record.cells[name, attack, victim] for victim in record.columns]
            cells = [
                heat.cell(each.rate(of), mark=WHITE_BOX if each.white_box else "", own=each.white_box) for each in found
            ]
            group.append(heat.row([None if place else name, attack], cells, spans=0 if place else len(attacks)))
        groups.append(group)
    return heat.table(TITLES[of], denominator(record, of), ("surrogates", "attack"), record.columns, groups)


def _figures(record: TransferRecord) -> list[tuple[str, Proportion | None, str]]:
    known = [cell for cell in record.cells.values() if not cell.white_box and cell.of_all is not None]
    if not known:
        return [("Success, not white-box", None, "no rate is established on a model that is no surrogate")]
    ends = [(words, choose(known, key=lambda cell: float(cell.of_all or 0)))
            for words, choose in (("Highest success", max), ("Lowest success", min))]  # fmt: skip
    return [(words, cell.of_all, f"{cell.surrogates} · {cell.attack} on {cell.victim}") for words, cell in ends]


def _models(record: TransferRecord) -> list[dict[str, Any]]:
    job = record.job
    found = []
    for name, share in record.clean_accuracy.items():
        sets = [label for label, members in job["surrogates"].items() if name in members]
        roles = ["victim"] * (name in job["victims"]) + [f"surrogate of {label}" for label in sets]
        known = job["models"][name]
        found.append({"name": name, "role": ", ".join(roles), "share": share, "bar": bar(share),
                      "spec": known.get("spec", name),
                      "sha256": str(known.get("weights_sha256", ""))[:16]})  # fmt: skip
    return found


def _costs(record: TransferRecord) -> list[dict[str, Any]]:
    most = max([1e-12, *(cost.seconds for cost in record.costs.values())])
    return [
        {"surrogates": cost.surrogates, "attack": cost.attack, "forwards": f"{cost.forwards:,.1f}",
         "backwards": f"{cost.backwards:,.1f}", "seconds": f"{cost.seconds:,.1f}",
         "bar": markup(svg.bar(cost.seconds / most, place=2))}
        for cost in record.costs.values()
    ]  # fmt: skip


def _provenance(record: TransferRecord) -> list[tuple[str, str]]:
    job = record.job
    return given(
        [
            *record.about.told().items(),
            ("job", job.get("id")),
            ("data", job["data"]),
            ("data sha256", job["data_sha256"]),
            ("threat model", f"{job['norm']}, eps {record.eps}" + (f", target {job['target']}" * bool(job["target"]))),
            ("seed", job["seed"]),
            ("defense of the victims", job.get("defense")),
            *((f"surrogates {name}", ", ".join(members)) for name, members in job["surrogates"].items()),
            *((f"attack {label}", spec) for label, spec in job["attacks"].items()),
            ("device", f"{job['device']}, {job['threads']} threads, tiles of {job['tile']}"),
            ("machine", machine(record.environment)),
            ("versions", versions((job.get("code") or {}).get("versions", {}))),
            *((f"weights of {name}", known.get("weights_sha256")) for name, known in job["models"].items()),
        ]
    )


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
