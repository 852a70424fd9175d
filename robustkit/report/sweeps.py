"""A sweep over eps as Markdown, CSV and LaTeX. The numbers come from the facts of its records."""

from collections.abc import Sequence

from robustkit.records.run import RunRecord
from robustkit.records.sweep import heading
from robustkit.records.text import share
from robustkit.report.tables import DOUBTED, csv_line, latex_share, lines_as_csv
from robustkit.report.tex import latex_table, tex
from robustkit.report.text import cell


def markdown(eps: Sequence[str], records: Sequence[RunRecord]) -> str:
    """The `report.md` of a sweep."""
    first, proved = records[0], any(record.certified_accuracy for record in records)
    rows = [f"| 0 | {share(first.clean_accuracy)} |{' |' if proved else ''} | |"]
    rows += [
        f"| {cell(name)} | {share(record.robust_accuracy)} | "
        f"{share(record.certified_accuracy) + ' | ' if proved else ''}{record.carried} | {cell(record.verdict)} |"
        for name, record in zip(eps, records, strict=True)
    ]
    extra = (" certified |", "---|") if proved else ("", "")
    head = f"| eps | accuracy |{extra[0]} carried | audit |\n|---|---|{extra[1]}---|---|"
    reasons = [(name, record.why_no_robust_accuracy) for name, record in zip(eps, records, strict=True)]
    notes = [f"- eps {cell(name)}: {cell(why)}" for name, why in reasons if why]
    parts = [
        f"# {cell(heading(first))}",
        "What broke at a smaller eps counts as broken and is not attacked again. Intervals: Wilson, 95 %.",
        head + "\n" + "\n".join(rows),
        *(["\n".join(notes)] if notes else []),
    ]
    return "\n\n".join(parts) + "\n"


def csv_text(eps: Sequence[str], records: Sequence[RunRecord]) -> str:
    """One line an eps, beginning with the clean accuracy."""
    lines = [csv_line("clean", "0", records[0].clean_accuracy)]
    lines += [csv_line("robust", name, record.robust_accuracy) for name, record in zip(eps, records, strict=True)]
    lines += [
        csv_line("certified", name, record.certified_accuracy)
        for name, record in zip(eps, records, strict=True)
        if record.certified_accuracy is not None
    ]
    return lines_as_csv(lines)


def latex(eps: Sequence[str], records: Sequence[RunRecord]) -> str:
    r"""The accuracy at each eps as a `table` environment; it needs \usepackage{booktabs}."""
    first = records[0]
    caption = f"{heading(first)}. In percent, with 95 % Wilson intervals; what broke at a smaller eps counts as broken."
    if any(record.warning for record in records):
        caption += " Do not rely on a number with a double dagger: the audit doubts it."
    proved = any(record.certified_accuracy for record in records)
    rows = [["0", latex_share(first.clean_accuracy), *([""] if proved else []), ""]]
    for name, record in zip(eps, records, strict=True):
        certified = [latex_share(record.certified_accuracy)] if proved else []
        robust = latex_share(record.robust_accuracy, DOUBTED * bool(record.warning))
        rows.append([tex(name), robust, *certified, tex(record.verdict)])
    head = ["eps", "accuracy", *(["certified"] if proved else []), "audit"]
    return latex_table(caption, "lrrl" if proved else "lrl", head, rows)
