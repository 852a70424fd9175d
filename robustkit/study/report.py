"""A study's report: report.md, tables.csv and tables.tex, from the facts in its folder. No torch."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from robustkit.records import findings
from robustkit.records.schema import ROBUST, WRONG
from robustkit.records.text import percent
from robustkit.report.tex import latex_table, tex
from robustkit.report.text import cell as safe
from robustkit.spec import Spec, parse
from robustkit.stats import Proportion
from robustkit.study import transfers
from robustkit.study.plan import NO_DEFENSE, Study
from robustkit.study.results import Results, share
from robustkit.study.tables import ALL, LEVEL, Column, Entry, Subject, Tables, latex_cell

AS_GOOD, DOUBT = "†", "‡"
LEGEND = (
    f"In percent, with 95 % Wilson intervals. **Bold**: the best of a column; {AS_GOOD}: not significantly worse than "
    f"the best (exact McNemar test on the same images, two-sided, Holm-corrected, p ≥ {LEVEL}); {DOUBT}: the audit "
    "calls it suspect or invalid, so that it does not compete (see Notes); –: not established."
)


class Block(NamedTuple):
    """One table: its title, and its columns with their heads."""

    title: str
    columns: tuple[Column, ...]
    heads: tuple[str, ...]


def blocks(tables: Tables) -> Iterator[Block]:
    """The tables of a study: for each norm one of all attacks or, with several radii, one over them for each attack."""
    for norm in dict.fromkeys(column.norm for column in tables.columns):
        here = [column for column in tables.columns if column.norm == norm]
        radii = list(dict.fromkeys(column.eps for column in here))
        if len(radii) == 1:
            yield Block(f"{norm}, eps {radii[0]}", tuple(here), tuple(column.attack for column in here))
            continue
        for attack in tables.attacks:
            columns = tuple(column for column in here if column.attack == attack)
            yield Block(f"{attack}, {norm}", columns, tuple(f"eps {column.eps}" for column in columns))


def clean_of(tables: Tables, subject: Subject, columns: Sequence[Column]) -> Proportion | None:
    """The clean accuracy of a row; of several runs of a randomised model the images that are right in all."""
    entries = [tables.entries.get((subject, column)) for column in columns]
    found = [entry.clean for entry in entries if entry is not None and entry.clean is not None]
    return min(found, key=float, default=None)


def markdown(tables: Tables, drawn: Sequence[str]) -> str:
    """The content of `report.md`."""
    results, study = tables.results, tables.results.study
    parts = [f"# {safe(study.title)}"]
    if study.provenance:
        parts.append(f"Settings: {safe(study.provenance)}")
    parts.append("\n".join(f"- {name}: {safe(text)}" for name, text in asked(tables).items()))
    failed = [outcome for outcome in results.outcomes if outcome.failed]
    if failed:
        rows = [f"| {safe(str(each.cell))} | {safe(each.failed)} |" for each in failed]
        head = f"## Not established\n\n{len(failed)} of {len(results.outcomes)} cells have no number.\n\n"
        parts.append(head + "| cell | because |\n|---|---|\n" + "\n".join(rows))
    if tables.cells:
        parts.append(f"## Robust accuracy\n\n{LEGEND}")
        if ALL in tables.attacks:
            parts.append(f"*{ALL}*: a sample is robust if none of the attacks broke it.")
        parts += [f"### {safe(block.title)}\n\n{_table(tables, block)}" for block in blocks(tables)]
        parts += [f"![{safe(name)}]({name})" for name in drawn]
    parts += transfers.markdown(results)
    if found := notes(tables):
        parts.append("## Notes\n\n" + "\n".join(f"- {safe(note)}" for note in found))
    parts.append("## What ran\n\n" + "\n".join(f"- {safe(name)}: {safe(text)}" for name, text in named(study)))
    return "\n\n".join(parts) + "\n"


def asked(tables: Tables) -> dict[str, str]:
    """What the study asked, on which machine, with which versions."""
    study = tables.results.study
    jobs = [facts.job for facts in tables.results.facts.values()]
    jobs += [record.job for record in tables.results.transfers.values()]
    sizes = sorted({len(facts.index) for facts in tables.results.facts.values()})
    sizes += sorted({record.n for record in tables.results.transfers.values()})
    found = {
        "data": f"{published(study.data)}, n = {', '.join(map(str, dict.fromkeys(sizes))) or '–'}",
        "seeds": f"{', '.join(map(str, study.seeds))}"
        + (" (a sample counts as robust if no seed's run broke it)" if len(study.seeds) > 1 else ""),
    }
    if target := study.options.get("target"):
        found["target"] = str(target)
    if jobs:
        places = {f"{job['device']}, {job['threads']} threads, tiles of {job['tile']}" for job in jobs}
        versions = [job.get("versions") or job["code"]["versions"] for job in jobs]
        found["computed on"] = "; ".join(sorted(places))
        found["versions"] = "; ".join(
            dict.fromkeys(", ".join(f"{k} {v}" for k, v in sorted(each.items())) for each in versions)
        )
    if facts := tables.results.facts.values():
        found["rule"] = "; ".join(dict.fromkeys(each.rule for each in facts))
        verdicts = [each.verdict for each in facts]
        found["audit"] = ", ".join(f"{name}: {verdicts.count(name)} runs" for name in dict.fromkeys(verdicts))
    return found


def published(data: str) -> str:
    """The name of the data without the folder they lie in, which is nobody's business."""
    parsed = parse(data)
    name = Path(parsed.name).name if parsed.source in ("file", "folder") else parsed.name
    return str(Spec(parsed.source, name, {key: text for key, text in parsed.options.items() if key != "path"}))


def named(study: Study) -> list[tuple[str, str]]:
    """What each label of the study stands for."""
    rows = [(f"model {label}", text) for label, text in study.models.items()]
    rows += [(f"defense {label}", " + ".join(texts)) for label, texts in study.defenses.items() if label != NO_DEFENSE]
    rows += [(f"attack {label}", text) for label, text in study.attacks.items()]
    rows += [(f"left out {place}", ", ".join(f"{a} {b}" for a, b in rule.items()))
             for place, rule in enumerate(study.skip, start=1)]  # fmt: skip
    if study.transfer:
        rows += [(f"surrogate {label}", text) for label, text in study.transfer.surrogates.items()]
        rows += [(f"victim {label}", text) for label, text in study.transfer.victims.items()]
        rows += [(f"transfer attack {label}", text) for label, text in study.transfer.attacks.items()]
    return rows


def notes(tables: Tables) -> list[str]:
    """What the runs note, each once with the cells it is of; and the verdicts that are not fine."""
    found: dict[str, list[str]] = {}
    for cell, facts in tables.results.facts.items():
        for note in (*([facts.warning] if facts.warning else []), *facts.notes):
            found.setdefault(note, []).append(str(cell))
    for transfer_cell, record in tables.results.transfers.items():
        for flag in record.flags:
            found.setdefault(str(flag["message"]), []).append(str(transfer_cell))
    return [
        f"{note} ({cells[0] if len(cells) == 1 else f'{len(cells)} cells, first {cells[0]}'})"
        for note, cells in found.items()
    ]


def _doubts(tables: Tables) -> list[str]:
    facts = tables.results.facts.items()
    return [f"{cell}: {one.warning}" for cell, one in facts if one.verdict in findings.DOUBTED]


def _table(tables: Tables, block: Block) -> str:
    lines = ["| model | clean | " + " | ".join(safe(head) for head in block.heads) + " |"]
    lines.append("|---|---:|" + "---:|" * len(block.columns))
    for subject in tables.subjects:
        entries = [tables.entries.get((subject, column)) for column in block.columns]
        if not any(entries):
            continue
        texts = [_marked(entry) if entry else "" for entry in entries]
        clean = percent(clean_of(tables, subject, block.columns))
        lines.append(f"| {safe(str(subject))} | {clean} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _marked(entry: Entry) -> str:
    if entry.robust is None:
        return "–"
    number, interval = percent(entry.robust).split(" ", 1)
    number = f"**{number}**" if entry.mark and entry.mark.best else number
    spread = ""
    if len(set(entry.by_seed)) > 1:
        spread = f" (seeds {100 * min(entry.by_seed):.1f}–{100 * max(entry.by_seed):.1f})"
    return f"{number} {interval}{spread}" + (f" {sign}" if (sign := _sign(entry)) else "")


def _sign(entry: Entry) -> str:
    """What stands behind a number that is not the best."""
    if entry.doubted:
        return DOUBT
    return AS_GOOD if entry.mark and entry.mark.as_good else ""


CSV_COLUMNS = (
    "norm", "eps", "attack", "model", "defense", "seed", "n", "clean", "clean_low", "clean_high", "robust",
    "robust_low", "robust_high", "best", "p_against_best", "verdict", "forwards", "backwards", "seconds", "why_none",
)  # fmt: skip


def rows(tables: Tables) -> Iterator[dict[str, Any]]:
    """All entries as rows: with the seed "all" what the tables show, then each run by itself."""
    for (subject, column), entry in tables.entries.items():
        first = {"norm": column.norm, "eps": column.eps, "attack": column.attack, **subject._asdict()}
        mark = {"best": entry.mark.best, "p_against_best": entry.mark.p} if entry.mark else {}
        verdicts = dict.fromkeys(run.verdict for run in entry.runs)
        yield {**first, "seed": "all", **_numbers(entry.clean, entry.robust), **mark, "verdict": "; ".join(verdicts),
               "forwards": sum(run.forwards for run in entry.runs), "backwards": sum(r.backwards for r in entry.runs),
               "seconds": sum(run.seconds for run in entry.runs), "why_none": entry.why}  # fmt: skip
        for run in entry.runs if column.attack != ALL else ():
            why = run.undecided or run.unknown_because
            robust = None if why else share(run.status == ROBUST)
            yield {**first, "seed": run.job["seed"], **_numbers(share(run.status != WRONG), robust),
                   "verdict": run.verdict, "forwards": run.forwards, "backwards": run.backwards,
                   "seconds": run.seconds, "why_none": why}  # fmt: skip


def _numbers(clean: Proportion | None, robust: Proportion | None) -> dict[str, Any]:
    found: dict[str, Any] = {"n": clean.n if clean else None}
    for name, value in (("clean", clean), ("robust", robust)):
        if value is not None:
            found |= {name: float(value), f"{name}_low": value.low, f"{name}_high": value.high}
    return found


def csv_text(tables: Tables) -> str:
    """The content of `tables.csv`; shares as fractions, an empty field where there is none."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _csv_value(value) for key, value in row.items()} for row in rows(tables))
    return out.getvalue()


def _csv_value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def latex(tables: Tables) -> str:
    r"""The content of `tables.tex`; needs \usepackage{booktabs}."""
    parts = [_latex_table(tables, block) for block in blocks(tables)] if tables.cells else []
    return "\n".join([*parts, *transfers.latex(tables.results)])


def _latex_table(tables: Tables, block: Block) -> str:
    body: list[list[str] | str] = []
    for place, subject in enumerate(tables.subjects):
        entries = [tables.entries.get((subject, column)) for column in block.columns]
        if not any(entries):
            continue
        if place and tables.subjects[place - 1].model != subject.model and len(tables.results.study.defenses) > 1:
            body.append(r"\midrule")
        cells = [latex_cell(entry.robust, entry.mark, doubted=entry.doubted) if entry else "" for entry in entries]
        clean = latex_cell(clean_of(tables, subject, block.columns), None)
        body.append([tex(str(subject)), clean, *cells])
    study = tables.results.study
    seeds = f"seed{'s' * (len(study.seeds) > 1)} {', '.join(map(str, study.seeds))}"
    sizes = {len(facts.index) for facts in tables.results.facts.values()}
    caption = (
        f"{study.title}: robust accuracy, {block.title}, on {published(study.data)} "
        f"(n = {', '.join(map(str, sorted(sizes)))}), {seeds}, in percent with 95 % Wilson intervals. Bold: the best; "
    ) + f"a dagger: not significantly worse (exact paired test, Holm-corrected, p at least {LEVEL}); two: doubted."
    heads = ["", "clean", *(tex(head) for head in block.heads)]
    return latex_table(caption, f"l{'r' * (len(heads) - 1)}", heads, body)


def summary(results: Results) -> str:
    """The tables as plain text, for the terminal."""
    tables = Tables(results)
    lines = [results.study.title]
    for block in blocks(tables) if tables.cells else ():
        width = max(len(str(subject)) for subject in tables.subjects)
        lines += ["", block.title, f"{'':<{width}}  {'clean':>20}" + "".join(f"  {head:>22}" for head in block.heads)]
        for subject in tables.subjects:
            entries = [tables.entries.get((subject, column)) for column in block.columns]
            if any(entries):
                cells = "".join(f"  {_plain(entry) if entry else '':>22}" for entry in entries)
                clean = percent(clean_of(tables, subject, block.columns))
                lines.append(f"{subject!s:<{width}}  {clean:>20}{cells}".rstrip())
    if tables.cells:
        lines += ["", f"95 % Wilson intervals; * best of its column, {AS_GOOD} not significantly worse (p ≥ {LEVEL})"]
        lines += [f"{DOUBT} the audit doubts it: {why}" for why in _doubts(tables)]
    for cell, record in results.transfers.items():
        lines += ["", f"{cell}: {len(record.cells)} success rates, in the report"]
    lines += [f"not established: {each.cell}: {each.failed}" for each in results.outcomes if each.failed]
    return "\n".join(lines)


def _plain(entry: Entry) -> str:
    return f"{percent(entry.robust)}{'*' if entry.mark and entry.mark.best else _sign(entry) or ' '}"


def to_json(results: Results) -> Mapping[str, Any]:
    """The tables as JSON data, and what failed."""
    found = [{key: row.get(key) for key in CSV_COLUMNS} for row in rows(Tables(results))] if results.facts else []
    return {
        "schema": "robustkit/study-tables/1",
        "title": results.study.title,
        "rows": found,
        "transfers": [
            {**cell.to_json(), "matrix": [each.to_json() for each in record.cells.values()]}
            for cell, record in results.transfers.items()
        ],
        "outcomes": [outcome.to_json() for outcome in results.outcomes],
    }
