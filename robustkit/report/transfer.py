"""A transfer record as Markdown, CSV, LaTeX and a heat map. The numbers come from the record's facts."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from robustkit.records.text import percent
from robustkit.records.transfer import Cell, Of, TransferRecord
from robustkit.records.transfer_text import WHITE_BOX, denominator, heading, unsettled
from robustkit.report.plots import style
from robustkit.report.tex import latex_table, tex
from robustkit.report.text import cell as markdown_cell
from robustkit.stats import Proportion

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def markdown(record: TransferRecord) -> str:
    """The run's `report.md`."""
    job = record.job
    parts = [f"# {markdown_cell(heading(record))}"]
    parts += [f"**{denominator(record, of)}** In percent, with 95 % Wilson intervals.\n\n{table(record, of)}"
              for of in ("all", "correct")]  # fmt: skip
    parts.append(f"{WHITE_BOX.replace('*', chr(92) + '*')} white-box: the victim is one of the surrogates.")
    costs = [
        f"| {markdown_cell(surrogates)} | {markdown_cell(attack)} | {cost.forwards:.1f} | {cost.backwards:.1f} | "
        f"{cost.seconds:.1f} |"
        for (surrogates, attack), cost in record.costs.items()
    ]
    head = "| surrogates | attack | forwards an image | backwards an image | seconds |\n|---|---|---|---|---|\n"
    parts.append(head + "\n".join(costs))
    notes = [flag["message"] for flag in record.flags] + [f"not established: {text}" for text in unsettled(record)]
    if notes:
        parts.append("\n".join(f"- {markdown_cell(text)}" for text in notes))
    facts = {
        "job": job["id"],
        "data sha256": job["data_sha256"],
        "device": f"{job['device']}, {job['threads']} threads, tiles of {job['tile']}",
        **{f"surrogates {name}": ", ".join(members) for name, members in job["surrogates"].items()},
        **{f"weights sha256 of {name}": model["weights_sha256"] for name, model in job["models"].items()},
    }
    parts.append("\n".join(f"- {markdown_cell(name)}: {markdown_cell(str(value))}" for name, value in facts.items()))
    return "\n\n".join(parts) + "\n"


def table(record: TransferRecord, of: Of) -> str:
    """One matrix as a Markdown table; the first row is the clean error, what no attack is behind."""
    names = [markdown_cell(name) for name in record.columns]
    lines = [f"| surrogates | attack | {' | '.join(names)} |", "|---|---|" + "---:|" * len(names)]
    if of == "all" and not record.job["target"]:
        errors = [Proportion(share.n - share.k, share.n) for share in record.clean_accuracy.values()]
        lines.append("| | none (clean error) | " + " | ".join(percent(value) for value in errors) + " |")
    for row in record.rows:
        cells = [record.cells[(*row, name)] for name in record.columns]
        texts = [percent(found.rate(of)) + ("\\*" if found.white_box else "") for found in cells]
        lines.append(f"| {markdown_cell(row[0])} | {markdown_cell(row[1])} | {' | '.join(texts)} |")
    return "\n".join(lines)


def csv_text(record: TransferRecord) -> str:
    """One line a (surrogate set, attack, victim): both success rates with their intervals, as fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    shares = [f"success_of_{of}{end}" for of in ("all", "correct") for end in ("", "_low", "_high", "_n")]
    writer.writerow(["surrogates", "attack", "victim", "white_box", "clean_accuracy", *shares, "why_none"])
    for found in record.cells.values():
        clean = record.clean_accuracy[found.victim]
        row = [found.surrogates, found.attack, found.victim, str(found.white_box).lower(), repr(float(clean))]
        for value in (found.of_all, found.of_correct):
            row += [repr(float(value)), repr(value.low), repr(value.high), str(value.n)] if value else [""] * 4
        writer.writerow([*row, found.why])
    return out.getvalue()


def latex(record: TransferRecord) -> str:
    r"""Both matrices as `table` environments; they need \usepackage{booktabs}."""
    return "\n".join(_latex_table(record, of) for of in ("all", "correct"))


def _latex_table(record: TransferRecord, of: Of) -> str:
    names = [tex(name) for name in record.columns]
    body: list[list[str] | str] = []
    for place, (surrogates, attack) in enumerate(record.rows):
        if place and record.rows[place - 1][0] != surrogates:
            body.append(r"\midrule")
        cells = [record.cells[surrogates, attack, name] for name in record.columns]
        body.append([tex(surrogates), tex(attack), *(_latex_cell(found, of) for found in cells)])
    caption = (
        f"{heading(record)}. {denominator(record, of)} In percent, with 95 % Wilson intervals; "
        f"{WHITE_BOX} white-box: the victim is one of the surrogates."
    )
    return latex_table(caption, f"ll{'r' * len(names)}", ["surrogates", "attack", *names], body)


def _latex_cell(found: Cell, of: Of) -> str:
    value = found.rate(of)
    if value is None:
        return "--"
    mark = "$^{*}$" if found.white_box else ""
    return rf"{100 * float(value):.1f}{mark} {{\scriptsize[{100 * value.low:.1f}, {100 * value.high:.1f}]}}"


def heatmap(record: TransferRecord, path: Path, of: Of = "all") -> None:
    """Draw one matrix as a .pdf, .svg or .png; the same record gives the same bytes with the same matplotlib.

    Raises:
        UsageError: for another ending, or if matplotlib is not installed.
    """
    style.check(path)
    with style.paper():
        style.save(heatmap_figure(record, of), path)


def heatmap_figure(record: TransferRecord, of: Of = "all", inches: float | None = None) -> "Figure":
    """One matrix as a figure, drawn inside `style.paper()`; `inches` is its width, by default what its cells need."""
    from matplotlib.figure import Figure

    rows, columns = record.rows, record.columns
    cells = [[record.cells[(*row, name)] for name in columns] for row in rows]
    values = [[_percent(found.rate(of)) for found in line] for line in cells]
    figure = Figure(figsize=(inches or 3.5 + 0.75 * len(columns), 2.5 + 0.32 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=False)
    image = axes.imshow(values, vmin=0, vmax=100, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    axes.set_yticks(range(len(rows)), [" · ".join(row) for row in rows])
    for i, line in enumerate(cells):
        for j, found in enumerate(line):
            known = found.rate(of) is not None
            text = f"{values[i][j]:.0f}{WHITE_BOX if found.white_box else ''}" if known else "–"
            colour = "white" if known and values[i][j] < 60 else "black"
            axes.text(j, i, text, ha="center", va="center", size=8, color=colour)
    share = "all" if of == "all" else "initially correct"
    figure.suptitle(f"{heading(record)}\nsuccess rate, % of {share} images; {WHITE_BOX} white-box", size=8, wrap=True)
    figure.colorbar(image, ax=axes)
    return figure


def _percent(value: Proportion | None) -> float:
    return float("nan") if value is None else 100 * float(value)
