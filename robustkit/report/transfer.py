"""A transfer record as Markdown, CSV, LaTeX and a heat map. The numbers come from the record's facts."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustkit.errors import UsageError
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
        **record.about.told(),
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


SMALLEST, LARGEST = 5.5, 8.0  # points of a cell's text; what is smaller is not read in print
POINTS = 72  # an inch
WORD = 0.56  # of a letter's height is its width, about


def heatmap_figure(record: TransferRecord, of: Of = "all", width: style.Width | None = None) -> "Figure":
    """One matrix as a figure, drawn inside `style.paper()`: as wide as a column of a paper, or two.

    Without a `width` it is one column's, as long as cells of that many models can be read in it. A cell has its number
    in whole percent; its shade goes from white to dark blue, so that it is told in grey print too. Rows of one
    surrogate set stand together. The caption's words (threat model, n) belong into the paper's caption; `report.md` and
    the .tex have them.

    Raises:
        UsageError: if one column is asked for, and its cells could not be read.
    """
    from matplotlib.figure import Figure

    rows, columns = record.rows, record.columns
    several = len(record.job["surrogates"]) > 1
    names = [style.label(f"{name} · {attack}" if several else attack) for name, attack in rows]
    names = [_cut(name, 30) for name in names]
    longest, heads = max(map(len, names)), [_cut(style.label(name), 24) for name in columns]
    for chosen in (width,) if width else ("one", "two"):
        inches = style.INCHES[chosen or "one"]
        left = min(0.45 * inches, longest * WORD * 7 / POINTS + 0.12)
        # What the last head, slanted, reaches beyond the middle of its column.
        right = max(
            0.06, (len(heads[-1]) * WORD * 7 / POINTS * 0.71 - 0.5 * (inches - left) / (len(columns) + 1)) + 0.08
        )
        cell = (inches - left - right) / len(columns)
        size = min(LARGEST, cell * POINTS / (4 * WORD))
        if size >= SMALLEST:
            break
    if width == "one" and size < SMALLEST:
        raise UsageError(f"{len(columns)} models in one column of a paper would not be readable; add --width two")
    top = max(map(len, heads)) * WORD * 7 / POINTS * 0.71 + 0.22
    line = max(0.15, 1.55 * size / POINTS)
    height = top + line * len(rows) + 0.24
    figure = Figure(figsize=(inches, height))
    wide, tall = 1 - (left + right) / inches, line * len(rows) / height
    axes = figure.add_axes((left / inches, 0.24 / height, wide, tall))
    axes.grid(visible=False)
    values = [[_percent(record.cells[(*row, name)].rate(of)) for name in columns] for row in rows]
    shades = _shades()
    axes.imshow(values, vmin=0, vmax=100, cmap=shades, aspect="auto")
    axes.set_xticks(
        range(len(columns)), heads, rotation=45, ha="left", rotation_mode="anchor", size=7, parse_math=False
    )
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), names, size=7, parse_math=False)
    axes.tick_params(length=0, pad=2)
    for side in axes.spines.values():
        side.set_visible(False)
    for i, row in enumerate(rows):
        for j, name in enumerate(columns):
            found, value = record.cells[(*row, name)], values[i][j]
            known = found.rate(of) is not None
            text = f"{value:.0f}{WHITE_BOX if found.white_box else ''}" if known else "–"
            ink = _ink(shades(value / 100)) if known else "black"
            axes.text(j, i, text, ha="center", va="center", size=size, color=ink)
    for place in range(1, len(rows)):
        if rows[place][0] != rows[place - 1][0]:
            axes.axhline(place - 0.5, color="white", linewidth=2.5)
    share = "all" if of == "all" else "initially correct"
    about = f"success, % of {share} images (n = {record.n})"
    white = f"; {WHITE_BOX} white-box" if any(cell.white_box for cell in record.cells.values()) else ""
    figure.text(0.5, 0.06 / height, f"{about}{white}", ha="center", va="bottom", size=7)
    return figure


def _shades() -> Any:
    """From white to dark blue, evenly darker, so that it reads in grey too, and every cell's text has contrast."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("success", ["#ffffff", "#c6dbef", "#5a9bd0", "#1f5fa8", "#08306b"])


def _ink(shade: Sequence[float]) -> str:
    """Black or white, whichever has more contrast with a shade (WCAG 2.2): never less than 4.5."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shade[:3]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else "white"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _percent(value: Proportion | None) -> float:
    return float("nan") if value is None else 100 * float(value)
