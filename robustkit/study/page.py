"""A study's report as an HTML page: the same tables, marks and notes as `report.md`. No torch."""

from itertools import groupby
from typing import Any

from robustkit.records.about import day
from robustkit.records.findings import DOUBTED
from robustkit.records.schema import ROBUST
from robustkit.records.text import percent
from robustkit.records.transfer_text import WHITE_BOX, denominator
from robustkit.report import heat, svg
from robustkit.report.fill import fill, markup
from robustkit.report.svg import COLOURS, DASHES
from robustkit.report.transfer_page import matrix
from robustkit.study import figures, transfers
from robustkit.study.plan import Cell
from robustkit.study.report import AS_GOOD, DOUBT, Block, asked, blocks, clean_of, named, notes
from robustkit.study.results import Outcome, share
from robustkit.study.tables import LEVEL, Entry, Subject, Tables

LEGEND = (
    f"In percent, small: 95 % Wilson intervals. Bold: the best of a column. {AS_GOOD} not significantly worse than the "
    f"best (exact McNemar test on the same images, two-sided, Holm-corrected, p ≥ {LEVEL}). {DOUBT} the audit calls it "
    "suspect or invalid, so that it does not compete, see Notes. – not established. The darker, the more robust."
)


def page(tables: Tables) -> str:
    """The `report.html` of a study.

    Raises:
        UsageError: if jinja2 is not installed.
    """
    results, study = tables.results, tables.results.study
    values = {
        "title": study.title,
        "heading": f"{len(results.outcomes)} cells on {asked(tables)['data']}",
        "date": day(max((facts.finished for facts in results.facts.values()), default="")),
        "settings": study.provenance,
        "failed": [(str(each.cell), each.failed) for each in results.outcomes if each.failed],
        "total": len(results.outcomes),
        "tables": [_block(tables, block) for block in blocks(tables)] if tables.cells else [],
        "legend": LEGEND,
        "curves": _curves(tables),
        "transfers": [_transfer(str(cell), record) for cell, record in results.transfers.items()],
        "notes": notes(tables),
        "runs": [_run(tables, outcome) for outcome in results.outcomes],
        "asked": list(asked(tables).items()),
        "named": named(study),
    }
    return fill("study.html.j2", values, study.title)


def _block(tables: Tables, block: Block) -> dict[str, Any]:
    """One table: a group of rows a model, a row a defense."""
    several = len(tables.results.study.defenses) > 1
    groups = []
    for _, subjects in groupby(tables.subjects, key=lambda subject: subject.model):
        rows = [row for subject in subjects if (row := _row(tables, block, subject, several))]
        if rows and several:
            rows = [{**row, "names": [None if place else row["names"][0], row["names"][1]],
                     "spans": 0 if place else len(rows)} for place, row in enumerate(rows)]  # fmt: skip
        if rows:
            groups.append(rows)
    groups = groups if several else [[row for group in groups for row in group]]
    heads = ("model", "defense") if several else ("model",)
    return heat.table(block.title, "", heads, ("clean", *block.heads), groups)


def _row(tables: Tables, block: Block, subject: Subject, several: bool) -> dict[str, Any] | None:
    entries = [tables.entries.get((subject, column)) for column in block.columns]
    if not any(entries):
        return None
    clean = {**heat.cell(clean_of(tables, subject, block.columns)), "shade": 0.0}
    names = [subject.model, subject.defense] if several else [subject.model]
    return heat.row(names, [clean, *(_cell(entry) if entry else heat.empty() for entry in entries)])


def _cell(entry: Entry) -> dict[str, Any]:
    mark = DOUBT if entry.doubted else AS_GOOD if entry.mark and entry.mark.as_good else ""
    best = bool(entry.mark and entry.mark.best)
    return heat.cell(entry.robust, mark=mark if entry.robust else "", best=best)


def _curves(tables: Tables) -> list[dict[str, Any]]:
    """A chart for each norm with several radii and each attack."""
    found = []
    for curves, columns in figures.curves(tables) if tables.cells else ():
        some = curves[: COLOURS * DASHES]
        norm, attack = columns[0].norm, columns[0].attack
        drawn = svg.curves(
            some, f"eps ({norm})", "robust accuracy", title=f"{attack}, {norm}", ticks=figures.ticks(columns),
            bands=len(some) <= COLOURS,
        )  # fmt: skip
        left = f" The first {len(some)} of {len(curves)} lines." if len(some) < len(curves) else ""
        band = " Band: 95 % Wilson." if len(some) <= COLOURS else ""
        caption = f"{attack}, n = {some[0].y[0].n}.{band}{left}"
        found.append({"svg": markup(drawn), "names": [curve.name for curve in some], "caption": caption})
    return found


def _transfer(title: str, record: Any) -> dict[str, Any]:
    """The success rates of a transfer run, the highest of each column marked, white-box apart."""
    found, marks = matrix(record, "all"), transfers.best(record)
    rows = [row for group in found["groups"] for row in group if not row["plain"]]
    for key, row in zip(record.rows, rows, strict=True):
        for name, cell in zip(record.columns, row["cells"], strict=True):
            if mark := marks[name].get(key):
                cell["best"], cell["mark"] = mark.best, cell["mark"] or AS_GOOD * mark.as_good
    about = (
        f"{denominator(record, 'all')} In percent, small: 95 % Wilson intervals. {WHITE_BOX} white-box: the victim is "
        f"one of the surrogates. Bold: the highest of a column, white-box apart. {AS_GOOD} not significantly lower."
    )
    return {"title": f"{title[0].upper()}{title[1:]}", "about": about, "table": found}


def _run(tables: Tables, outcome: Outcome) -> dict[str, str]:
    facts = tables.results.facts.get(outcome.cell) if isinstance(outcome.cell, Cell) else None
    row = {"cell": str(outcome.cell), "number": "–", "verdict": "", "seconds": "", "folder": outcome.run}
    if facts is not None:
        established = not (facts.undecided or facts.unknown_because)
        number = percent(share(facts.status == ROBUST)) if established else "–"
        doubt = f" {DOUBT}" if facts.verdict in DOUBTED else ""
        row |= {"number": number + doubt, "verdict": facts.verdict, "seconds": f"{facts.seconds:,.1f}"}
    elif outcome.run:
        row["number"] = "see above"
    return row
