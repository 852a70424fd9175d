"""The transfer runs in a study's report: success rates, and which attack is best against a victim. No torch."""

from collections.abc import Mapping

import numpy as np

from robustkit.records.text import percent
from robustkit.records.transfer import SUCCESS, TransferRecord
from robustkit.records.transfer_text import WHITE_BOX, denominator
from robustkit.report.tex import latex_table, tex
from robustkit.report.text import cell as safe
from robustkit.study.results import Results
from robustkit.study.tables import Mark, latex_cell, marks

Row = tuple[str, str]


def markdown(results: Results) -> list[str]:
    """The parts of `report.md` that are about transfer; none without transfer runs."""
    parts = []
    for cell, record in results.transfers.items():
        found = best(record)
        names = record.columns
        lines = [
            f"| surrogates | attack | {' | '.join(safe(name) for name in names)} |",
            "|---|---|" + "---:|" * len(names),
        ]
        for row in record.rows:
            texts = [_cell(record, row, name, found[name]) for name in names]
            lines.append(f"| {safe(row[0])} | {safe(row[1])} | {' | '.join(texts)} |")
        about = (
            f"{denominator(record, 'all')} In percent, with 95 % Wilson intervals; \\{WHITE_BOX} white-box: the victim "
            "is one of the surrogates. **Bold**: the highest of a column, white-box apart; †: not significantly lower "
            "(exact paired test, Holm-corrected)."
        )
        parts.append(f"## {safe(str(cell))[0].upper()}{safe(str(cell))[1:]}\n\n{about}\n\n" + "\n".join(lines))
    return parts


def latex(results: Results) -> list[str]:
    """The tables of `tables.tex` that are about transfer."""
    tables = []
    for cell, record in results.transfers.items():
        found = best(record)
        body: list[list[str] | str] = []
        for place, row in enumerate(record.rows):
            if place and record.rows[place - 1][0] != row[0]:
                body.append(r"\midrule")
            cells = []
            for name in record.columns:
                value = record.cells[(*row, name)]
                cells.append(latex_cell(value.of_all, found[name].get(row)) + ("$^{*}$" if value.white_box else ""))
            body.append([*(tex(part) for part in row), *cells])
        caption = (
            f"{results.study.title}, {cell}. {denominator(record, 'all')} {WHITE_BOX} white-box. Bold: the highest."
        )
        heads = ["surrogates", "attack", *(tex(name) for name in record.columns)]
        tables.append(latex_table(caption, f"ll{'r' * len(record.columns)}", heads, body))
    return tables


def best(record: TransferRecord) -> dict[str, dict[Row, Mark]]:
    """The marks of the rows, for each victim; a white-box row is no competitor."""
    success = _successes(record)
    found = {}
    for name in record.columns:
        cells = {row: record.cells[(*row, name)] for row in record.rows}
        rows = [row for row, cell in cells.items() if not cell.white_box and cell.of_all is not None]
        found[name] = marks({row: success[(*row, name)] for row in rows})
    return found


def _successes(record: TransferRecord) -> Mapping[tuple[str, str, str], np.ndarray]:
    """Which samples are a success, in the order of their indices."""
    columns = record.transfer
    order = np.argsort(columns["index"], kind="stable")
    keys = list(zip(*(columns[key][order].tolist() for key in ("surrogates", "attack", "victim")), strict=True))
    hit = (columns["outcome"][order] == SUCCESS).tolist()
    found: dict[tuple[str, str, str], list[bool]] = {}
    for key, value in zip(keys, hit, strict=True):
        found.setdefault(key, []).append(value)
    return {key: np.array(values) for key, values in found.items()}


def _cell(record: TransferRecord, row: Row, name: str, found: Mapping[Row, Mark]) -> str:
    cell = record.cells[(*row, name)]
    if cell.of_all is None:
        return "–"
    (number, interval), mark = percent(cell.of_all).split(" ", 1), found.get(row)
    number = f"**{number}**" if mark and mark.best else number
    return (
        f"{number} {interval}" + (f"\\{WHITE_BOX}" if cell.white_box else "") + (" †" if mark and mark.as_good else "")
    )
